package storagetest

import (
	"bytes"
	"context"
	"io"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"github.com/deckhand/deckhand/internal/storage"
)

// The account that Azurite is made with, and its key, which is in its documentation.
const (
	azuriteAccount = "devstoreaccount1"
	azuriteKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// Azurite starts a server of Azure Blob Storage on loopback, with one
// container, and stops it at the end of the test. The environment has its
// credentials. signature is a SAS of the container, as the query of a URL.
func Azurite(t testing.TB) (s Server, client *container.Client, signature string) {
	t.Helper()
	main := tool(t, "azurite/node_modules/azurite/dist/src/blob/main.js")
	node, err := exec.LookPath("node")
	if err != nil {
		missing(t, "node is not installed; apt-get install nodejs")
	}
	base := t.TempDir()
	address := freeAddress(t)
	host, port := split(address)
	serve(t, exec.Command(node, main, "--blobHost", host, "--blobPort", port, "--location", base,
		"--silent", "--skipApiVersionCheck", "--disableTelemetry"), address, filepath.Join(base, "log"))

	t.Setenv("AZURE_STORAGE_ACCOUNT", azuriteAccount)
	t.Setenv("AZURE_STORAGE_KEY", azuriteKey)
	key, err := blob.NewSharedKeyCredential(azuriteAccount, azuriteKey)
	if err != nil {
		t.Fatal(err)
	}
	client, err = container.NewClientWithSharedKeyCredential("http://"+address+"/"+azuriteAccount+"/bucket", key, nil)
	if err == nil {
		_, err = client.Create(context.Background(), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	values := sas.BlobSignatureValues{
		Protocol: sas.ProtocolHTTPSandHTTP, ExpiryTime: time.Now().Add(time.Hour), ContainerName: "bucket",
		Permissions: (&sas.ContainerPermissions{Read: true, Create: true, Write: true, List: true}).String(),
	}
	q, err := values.SignWithSharedKey(key)
	if err != nil {
		t.Fatal(err)
	}

	at := func(name string) *blockblob.Client { return client.NewBlockBlobClient("top/" + name) }
	s = Server{
		URL:         "az://bucket/top",
		Directories: true,
		Options:     storage.Options{Azure: storage.Azure{Endpoint: "http://" + address + "/{account}"}},
		Store: func(t *testing.T, name string, content []byte) {
			t.Helper()
			if _, err := at(name).UploadBuffer(context.Background(), content, nil); err != nil {
				t.Fatal(err)
			}
		},
		Load: func(t *testing.T, name string) []byte {
			t.Helper()
			out, err := at(name).DownloadStream(context.Background(), nil)
			if err != nil {
				t.Error(err)
				return nil
			}
			defer out.Body.Close()
			var b bytes.Buffer
			if _, err := io.Copy(&b, out.Body); err != nil {
				t.Error(err)
			}
			return b.Bytes()
		},
		Names: func(t *testing.T) []string {
			t.Helper()
			return AzureBlobs(t, client, false)
		},
	}
	return s, client, q.Encode()
}

// AzureBlobs lists the blobs of a container, with those of which there are only
// blocks that nobody has committed, or without.
func AzureBlobs(t *testing.T, client *container.Client, uncommitted bool) (names []string) {
	t.Helper()
	pages := client.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Include: container.ListBlobsInclude{UncommittedBlobs: uncommitted}})
	for pages.More() {
		page, err := pages.NextPage(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range page.Segment.BlobItems {
			names = append(names, *b.Name)
		}
	}
	return names
}
