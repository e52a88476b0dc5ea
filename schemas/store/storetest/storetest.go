// Package storetest is for tests: servers that speak the protocols of S3 and of
// Google Cloud Storage, in the test's own process, with faults on demand. They
// are gofakes3 and fake-gcs-server, which others wrote, and so know nothing of
// the clients here.
package storetest

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/fsouza/fake-gcs-server/fakestorage"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/scavenge/scavenge/schemas/store"
	_ "github.com/scavenge/scavenge/schemas/store/cloud" // what the servers are for
)

// A Server holds one bucket.
type Server struct {
	Root string   // path of the bucket, s3://bucket
	Env  []string // what makes another process find it, as os.Environ has it

	mu    sync.Mutex
	fault func(*http.Request) Fault
}

// Fault is what goes wrong with a request. The zero value is nothing.
type Fault struct {
	Status int // the answer, in place of the server's
	Cut    int // bytes of the answer's body after which the connection breaks; 0: none
}

// Fail calls f with each request from now on.
func (s *Server) Fail(f func(*http.Request) Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// IsRead says whether a request is for an object's bytes.
func IsRead(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/bucket/") && !r.URL.Query().Has("list-type") // gs's other requests go to /storage/
}

// IsWrite says whether a request makes an object, or a part of one.
func IsWrite(r *http.Request) bool { return r.Method == http.MethodPut || r.Method == http.MethodPost }

func (s *Server) serve(w http.ResponseWriter, r *http.Request, h http.Handler) {
	s.mu.Lock()
	fail := s.fault
	s.mu.Unlock()
	var f Fault
	if fail != nil {
		f = fail(r)
	}
	if f.Status != 0 {
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(f.Status)
		return
	}
	if f.Cut > 0 {
		w = &cutting{w, f.Cut}
	}
	h.ServeHTTP(w, r)
}

// cutting breaks the connection after some bytes.
type cutting struct {
	http.ResponseWriter
	left int
}

func (c *cutting) Write(b []byte) (int, error) {
	if len(b) <= c.left {
		c.left -= len(b)
		return c.ResponseWriter.Write(b)
	}
	c.ResponseWriter.Write(b[:c.left])
	c.ResponseWriter.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// start listens, and lets this process and its children find the server.
func (s *Server) start(t testing.TB, handler func(url string) http.Handler, env func(url string) map[string]string) {
	t.Helper()
	var h http.Handler
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, h) }))
	t.Cleanup(server.Close)
	h = handler(server.URL)
	for name, value := range env(server.URL) {
		t.Setenv(name, value)
		s.Env = append(s.Env, name+"="+value)
	}
	store.Forget()
	t.Cleanup(store.Forget)
}

// S3 starts a server of S3 with an empty bucket.
func S3(t testing.TB) *Server {
	t.Helper()
	s := &Server{Root: "s3://bucket"}
	s.start(t, func(string) http.Handler {
		b := s3mem.New()
		if err := b.CreateBucket("bucket"); err != nil {
			t.Fatal(err)
		}
		return gofakes3.New(b).Server()
	}, func(url string) map[string]string {
		return map[string]string{"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "eu-north-1",
			"AWS_CONFIG_FILE": "/nowhere", "AWS_SHARED_CREDENTIALS_FILE": "/nowhere"}
	})
	return s
}

// GS starts a server of Google Cloud Storage with an empty bucket.
func GS(t testing.TB) *Server {
	t.Helper()
	s := &Server{Root: "gs://bucket"}
	s.start(t, func(url string) http.Handler {
		slog.SetDefault(slog.New(slog.DiscardHandler)) // where the server talks
		f, err := fakestorage.NewServerWithOptions(fakestorage.Options{NoListener: true, ExternalURL: url, PublicHost: strings.TrimPrefix(url, "http://")})
		if err != nil {
			t.Fatal(err)
		}
		f.CreateBucketWithOpts(fakestorage.CreateBucketOpts{Name: "bucket"})
		return f.HTTPHandler()
	}, func(url string) map[string]string {
		return map[string]string{"STORAGE_EMULATOR_HOST": strings.TrimPrefix(url, "http://")}
	})
	return s
}

// Put makes an object and gives its path.
func (s *Server) Put(t testing.TB, name, content string) string {
	t.Helper()
	path := store.Join(s.Root, name)
	err := store.WriteFile(context.Background(), path, func(w io.Writer) error { _, err := io.WriteString(w, content); return err })
	if err != nil {
		t.Fatal(err)
	}
	return path
}
