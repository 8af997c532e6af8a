package instrument

import (
	"go/ast"
	"go/constant"
	"go/types"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Whether a call changes the world is decided by what is called. What is not
// known here is an effect, or a package that somebody has to put into one of
// these lists first: an effect without points does not get in unseen.

// readers are the functions of packages full of effects that have none: they
// read, or change only this process.
var readers = map[string][]string{
	"os": {
		"Environ", "Exit", "Executable", "Getenv", "Geteuid", "Getpagesize", "Getpid", "Getuid", "Hostname", "IsExist", "IsNotExist", "LookupEnv", "Lstat", "NewFile",
		"Open", "OpenRoot", "Pipe", "ReadDir", "ReadFile", "Readlink", "SameFile", "Stat", "TempDir",
		"File.Close", "File.Fd", "File.Name", "File.Read", "File.ReadAt", "File.ReadDir", "File.Readdirnames", "File.Seek", "File.SetReadDeadline", "File.Stat",
		"ProcessState.ExitCode",
		"Root.Close", "Root.FS", "Root.Lstat", "Root.Name", "Root.Open", "Root.OpenRoot", "Root.Readlink", "Root.Stat",
	},
	"golang.org/x/sys/unix": {
		"Access", "ByteSliceFromString", "Close", "Dup2", "Exec", "Faccessat", "FcntlFlock", "FcntlInt", "Flock", "Fstat", "Fstatat", "Fstatfs", "Getdents", "Lstat",
		"Openat2", "PidfdOpen", "Pipe2", "Poll", "Read", "ReadDirent", "Readlinkat", "Seek", "SignalName", "Stat", "Statfs", "Statx", "Uname", "Wait4", "Wgetpgrp", "IoctlGetTermios",
	},
	"syscall": {"ForkExec"}, // of the command inside a container
	"os/exec": {"Command", "CommandContext"},
	"net":     {"Dialer.DialContext", "JoinHostPort", "SplitHostPort", "TCPConn.Read", "TCPConn.SyscallConn", "UnixListener.Accept", "UnixListener.Addr", "UnixListener.Close", "UnixListener.SetUnlinkOnClose", "Conn.Close"},
}

// effects are the functions of packages with few of them.
var effects = map[string][]string{
	"net/http":                                {"Client.Do", "Client.Get", "Client.Head", "Client.Post", "Client.PostForm"},
	"github.com/dgraph-io/badger/v4":          {"Open", "DB.Close", "Txn.Commit", "WriteBatch.Flush"},
	"github.com/google/nftables":              {"Conn.Flush"},
	"github.com/aws/aws-sdk-go-v2/service/s3": {"Client.AbortMultipartUpload", "Client.CompleteMultipartUpload", "Client.CreateMultipartUpload", "Client.PutObject", "Client.UploadPart"},
	"github.com/spf13/viper":                  {"Viper.SafeWriteConfig", "Viper.SafeWriteConfigAs", "Viper.WriteConfig", "Viper.WriteConfigAs", "Viper.WriteConfigTo"},
	"io":                                      {"Copy", "CopyBuffer", "CopyN"},
	module + "/internal/engine":               nil, // see calls
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob":      nil,
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob": {"Client.CommitBlockList", "Client.StageBlock", "Client.Upload"},
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container": nil,
}

// calls are the methods of interfaces, and of the Docker Engine, that change
// nothing. Any other method of an interface of deckhand's is an effect of whoever
// calls it, whatever is behind it.
var calls = []string{
	// Of the engine.
	"Changes", "Container", "Containers", "CopyFrom", "Image", "Images", "Info", "IsPodman", "LayerBytes", "Log", "Logs", "Manifest", "Networks", "PullNeed", "RemoteDigest", "Restarted", "Volumes", "Wait", "WaitNext",
	// Of storage.
	"Join", "List", "Open", "ReadDir", "Stat", "hash", "list", "published",
	// Of the journal and the notes.
	"All", "Each", "Get", "Head", "Heads", "Images", "Kept", "Node", "Records", "SinkNames", "Undelivered", "scan",
	// What runs more of deckhand's own code, which has its points.
	"Deliver", "Do", "Probe", "State", "Undo", "Name",
}

// values are the effects that may be taken as values, because whoever calls them
// is known here.
var values = map[string]bool{"journal/unix.Fdatasync": true}

// variables are functions in variables that are effects.
var variables = map[string]bool{"journal.fdatasync": true}

// harmless are the packages without any effect on the world, by their path or
// the beginning of it.
var harmless = []string{
	"archive/", "bufio", "bytes", "cmp", "compress/", "container/", "context", "crypto/", "debug/", "encoding/", "errors", "fmt", "hash", "hash/", "html", "io/", "iter", "log/", "maps", "math",
	"mime", "net/netip", "net/textproto", "net/url", "os/signal", "os/user", "path", "reflect", "regexp", "runtime", "slices", "sort", "strconv", "strings", "sync", "text/", "time", "unicode", "unsafe", "embed",
	"github.com/aws/aws-sdk-go-v2/aws", "github.com/aws/aws-sdk-go-v2/config", "github.com/aws/smithy-go",
	"github.com/cenkalti/backoff/", "github.com/dgraph-io/badger/v4/", "github.com/dgraph-io/ristretto/", "github.com/distribution/reference", "github.com/docker/go-units", "github.com/google/flatbuffers/", "github.com/google/nftables/", "github.com/klauspost/compress/",
	"github.com/Azure/azure-sdk-for-go/sdk/azcore", "github.com/Azure/azure-sdk-for-go/sdk/azidentity",
	"github.com/looplab/fsm", "github.com/spf13/cobra", "github.com/spf13/pflag", "golang.org/x/oauth2", "golang.org/x/sync/", "golang.org/x/term", "golang.org/x/time/", "google.golang.org/protobuf/",
	"github.com/google/go-containerregistry/", "github.com/opencontainers/", "github.com/prometheus/",
	module + "/",
}

// effectOf names the effect that a call is.
func (w *rewriter) effectOf(call *ast.CallExpr) (name string, is bool) {
	ids := named(call.Fun)
	if len(ids) == 0 {
		return "", false // a literal, a conversion, or a function that was just returned
	}
	switch callee := w.pkg.TypesInfo.Uses[ids[0]].(type) {
	case *types.Func:
		return w.classify(call, callee, call)
	case *types.Var:
		return callee.Name(), variables[relative(w.pkg.PkgPath)+"."+callee.Name()]
	}
	return "", false
}

// classify decides about a function; call is nil when it is not called.
func (w *rewriter) classify(at ast.Node, f *types.Func, call *ast.CallExpr) (name string, is bool) {
	f = f.Origin()
	if f.Pkg() == nil {
		return "", false // error.Error
	}
	path, method := f.Pkg().Path(), f.Name()
	recv := f.Signature().Recv()
	if recv != nil {
		t := recv.Type()
		if p, ok := t.(*types.Pointer); ok {
			t = p.Elem()
		}
		named, ok := t.(*types.Named)
		if !ok {
			return "", false // of an interface without a name
		}
		method = named.Obj().Name() + "." + f.Name()
		name = method
		ours := strings.HasPrefix(path, module+"/")
		if ours && (types.IsInterface(named) || method == "Docker."+f.Name() && path == module+"/internal/engine") {
			return name, !slices.Contains(calls, f.Name()) && !slices.Contains(composed, method)
		}
	} else {
		name = f.Pkg().Name() + "." + f.Name()
	}
	if list, ok := readers[path]; ok {
		return name, !slices.Contains(list, method) && (call == nil || !w.readOnly(call, f.Name()))
	}
	if list, ok := effects[path]; ok {
		return name, slices.Contains(list, method) && (path != "io" || call == nil || w.toFile(call))
	}
	if !slices.ContainsFunc(harmless, func(p string) bool { return path == p || strings.HasPrefix(path, p) }) {
		w.fail(at, "package %s is in none of the lists: does %s change the world?", path, name)
	}
	return name, false
}

// composed are methods of interfaces behind which there is only code of
// deckhand's with points of its own.
var composed = []string{"Containers.Create", "Containers.Remove", "Docker.Close", "docker.Close", "record.Close"}

// readOnly says whether a call opens a file only to read it.
func (w *rewriter) readOnly(call *ast.CallExpr, function string) bool {
	if function != "OpenFile" && function != "Open" && function != "Openat" {
		return false
	}
	for _, arg := range call.Args {
		v := w.pkg.TypesInfo.Types[arg].Value
		if v == nil || v.Kind() != constant.Int {
			continue
		}
		// The flags come before the mode.
		flags, _ := constant.Int64Val(v)
		return flags&(unix.O_CREAT|unix.O_TRUNC) == 0
	}
	return false
}

// toFile says whether a copy may go to a file.
func (w *rewriter) toFile(call *ast.CallExpr) bool {
	t := w.pkg.TypesInfo.TypeOf(call.Args[0])
	return types.IsInterface(t) || slices.Contains([]string{"*os.File", "*io.OffsetWriter"}, t.String())
}
