package storagetest

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/deckhand/deckhand/internal/storage"
)

// Versitygw starts a real S3 server on loopback, with one bucket, and stops it
// at the end of the test. The environment has its credentials.
func Versitygw(t testing.TB) (s Server, client *s3.Client) {
	t.Helper()
	base := t.TempDir()
	root := filepath.Join(base, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	address := freeAddress(t)
	cmd := exec.Command(tool(t, "bin/versitygw"), "--port", address, "--quiet", "--keep-alive", "posix", root)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY=testkey", "ROOT_SECRET_KEY=testsecret")
	serve(t, cmd, address, filepath.Join(base, "log"))

	t.Setenv("AWS_ACCESS_KEY_ID", "testkey")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
	client = s3.New(s3.Options{
		BaseEndpoint: aws.String("http://" + address), UsePathStyle: true, Region: "us-east-1",
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "testkey", SecretAccessKey: "testsecret"}, nil
		}),
	})
	bucket := "bucket"
	if _, err := client.CreateBucket(context.Background(), &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}
	s = Tree("s3://"+bucket+"/top", filepath.Join(root, bucket))
	s.Directories = true
	s.Options = storage.Options{S3: storage.S3{Endpoint: "http://" + address}}
	s.Store = func(t *testing.T, name string, content []byte) {
		t.Helper()
		_, err := client.PutObject(context.Background(), &s3.PutObjectInput{
			Bucket: &bucket, Key: aws.String("top/" + name), Body: bytes.NewReader(content),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	s.Load = func(t *testing.T, name string) []byte {
		t.Helper()
		out, err := client.GetObject(context.Background(), &s3.GetObjectInput{Bucket: &bucket, Key: aws.String("top/" + name)})
		if err != nil {
			t.Error(err)
			return nil
		}
		defer out.Body.Close()
		b, err := io.ReadAll(out.Body)
		if err != nil {
			t.Error(err)
		}
		return b
	}
	return s, client
}
