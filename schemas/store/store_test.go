package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scavenge/scavenge/schemas/durable"
	"github.com/scavenge/scavenge/schemas/store"
	"github.com/scavenge/scavenge/schemas/store/storetest"
)

// everywhere runs a test in a local folder and in buckets; server is nil for
// the folder.
func everywhere(t *testing.T, test func(t *testing.T, root string, server *storetest.Server)) {
	t.Run("local", func(t *testing.T) { test(t, t.TempDir(), nil) })
	t.Run("s3", func(t *testing.T) { s := storetest.S3(t); test(t, s.Root, s) })
	t.Run("gs", func(t *testing.T) { s := storetest.GS(t); test(t, s.Root, s) })
}

func put(t *testing.T, path, content string) string {
	t.Helper()
	if !store.Remote(path) {
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o666); err != nil { // many, and not to last
			t.Fatal(err)
		}
		return path
	}
	err := store.WriteFile(context.Background(), path, func(w io.Writer) error { _, err := io.WriteString(w, content); return err })
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// random is text that does not repeat.
func random(n int) string {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return string(b)
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	everywhere(t, func(t *testing.T, root string, _ *storetest.Server) {
		ctx := context.Background()
		for _, size := range []int{0, 1, 100000, 8<<20 + 1, 40 << 20} { // in one request, and in parts
			content := random(size)
			path := store.Join(root, "a folder", "ünd+%?.bin")
			if err := store.MkdirAll(store.Join(root, "a folder")); err != nil {
				t.Fatal(err)
			}
			if err := store.WriteFile(ctx, path, func(w io.Writer) error { _, err := io.WriteString(w, content); return err }); err != nil {
				t.Fatal(err)
			}
			got, err := store.ReadFile(ctx, path)
			if err != nil || string(got) != content {
				t.Fatalf("%d bytes: %d came back, %v", size, len(got), err)
			}
			i, err := store.Stat(ctx, path)
			if err != nil || i.Size != int64(size) || i.Folder || time.Since(time.Unix(0, i.Modified)).Abs() > time.Minute {
				t.Errorf("%+v, %v", i, err)
			}
		}
		path := store.Join(root, "a folder", "ünd+%?.bin")
		u, err := store.Create(ctx, path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(u, random(20<<20)); err != nil {
			t.Fatal(err)
		}
		if i, err := store.Stat(ctx, path); err != nil || i.Size != 40<<20 {
			t.Errorf("before the new one is whole, the old one is %+v, %v", i, err)
		}
		u.Abort()
		if i, err := store.Stat(ctx, path); err != nil || i.Size != 40<<20 {
			t.Errorf("after the new one was given up, the old one is %+v, %v", i, err)
		}
		if err := store.Remove(ctx, path); err != nil {
			t.Error(err)
		}
		if err := store.Remove(ctx, path); err != nil {
			t.Errorf("removed twice: %v", err)
		}
		if _, err := store.Stat(ctx, path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("removed: %v", err)
		}
		if _, err := store.Open(ctx, path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("removed: %v", err)
		}
	})
}

func TestReadAtAndSeek(t *testing.T) {
	everywhere(t, func(t *testing.T, root string, server *storetest.Server) {
		content := random(3 << 20)
		f, err := store.Open(context.Background(), put(t, store.Join(root, "x"), content))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var requests atomic.Int64
		if server != nil {
			server.Fail(func(*http.Request) storetest.Fault { requests.Add(1); return storetest.Fault{} })
		}
		buf := make([]byte, 700)
		for at := 0; at < len(content); at += len(buf) { // two places, forward in small steps
			n, err := f.ReadAt(buf, int64(at))
			if want := content[at:min(len(content), at+len(buf))]; string(buf[:n]) != want || (err != nil) != (n < len(buf)) || err != nil && err != io.EOF {
				t.Fatalf("at %d: %d bytes, %v", at, n, err)
			}
			if back := at / 2; string(content[back:back+10]) != func() string { b := make([]byte, 10); f.ReadAt(b, int64(back)); return string(b) }() {
				t.Fatalf("at %d", back)
			}
		}
		if n := requests.Load(); n > 40 {
			t.Errorf("%d requests for %d bytes in small steps", n, 3*len(content)/2)
		}
		r := rand.New(rand.NewPCG(1, 2))
		for range 50 {
			at, n := r.IntN(len(content)), r.IntN(1<<20)
			if _, err := f.Seek(int64(at), io.SeekStart); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(io.LimitReader(f, int64(n)))
			if want := content[at:min(len(content), at+n)]; err != nil || string(got) != want {
				t.Fatalf("%d bytes at %d: %d came, %v", n, at, len(got), err)
			}
		}
		if n, err := f.ReadAt(buf, int64(len(content))); n != 0 || err != io.EOF {
			t.Errorf("at the end: %d, %v", n, err)
		}
	})
}

// found lists what Find finds, sorted, below root.
func found(t *testing.T, root, what string) (names []string, err error) {
	for i, err := range store.Find(context.Background(), what) {
		if err != nil {
			return nil, err
		}
		names = append(names, strings.TrimPrefix(filepath.ToSlash(i.Path), filepath.ToSlash(root)+"/"))
	}
	slices.Sort(names)
	return names, nil
}

func TestFindTakesFilesFoldersAndGlobs(t *testing.T) {
	everywhere(t, func(t *testing.T, root string, _ *storetest.Server) {
		for _, name := range []string{"z.txt", "a/y.txt", "a/b/x.txt", "ab/x.txt", "odd[1]*.txt", "c/one.jsonl", "c/two.jsonl.gz"} {
			put(t, store.Join(root, name), name)
		}
		for _, c := range []struct {
			what string
			want []string
		}{
			{"", []string{"a/b/x.txt", "a/y.txt", "ab/x.txt", "c/one.jsonl", "c/two.jsonl.gz", "odd[1]*.txt", "z.txt"}},
			{"a", []string{"a/b/x.txt", "a/y.txt"}}, {"a/", []string{"a/b/x.txt", "a/y.txt"}}, {"z.txt", []string{"z.txt"}}, {"odd[1]*.txt", []string{"odd[1]*.txt"}},
			{"*.txt", []string{"odd[1]*.txt", "z.txt"}}, {"*", []string{"odd[1]*.txt", "z.txt"}}, {"a*/x.txt", []string{"ab/x.txt"}}, {"?/*/x.txt", []string{"a/b/x.txt"}},
			{"*/*.jsonl*", []string{"c/one.jsonl", "c/two.jsonl.gz"}}, {"c/[n-p]*", []string{"c/one.jsonl"}},
		} {
			got, err := found(t, root, root+"/"+c.what)
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%q: %q, %v; want %q", c.what, got, err, c.want)
			}
		}
		for what, want := range map[string]string{"none": "no such file", "n*": "no such file", "a/*/none": "no such file", "[": "glob", "?": "folders only"} {
			if got, err := found(t, root, root+"/"+what); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %q, %v; want %q", what, got, err, want)
			}
		}
		if err := store.RemoveAll(context.Background(), store.Join(root, "a")); err != nil {
			t.Fatal(err)
		}
		if got, err := found(t, root, root); err != nil || len(got) != 5 {
			t.Errorf("without a/: %q, %v", got, err)
		}
	})
}

func TestAListOfManyPagesIsWhole(t *testing.T) {
	everywhere(t, func(t *testing.T, root string, _ *storetest.Server) {
		const n = 1234
		for i := range n {
			put(t, store.Join(root, fmt.Sprintf("many/%04d.txt", i)), "x")
		}
		if got, err := found(t, root, root+"/many/*.txt"); err != nil || len(got) != n || got[n-1] != "many/1233.txt" {
			t.Errorf("%d of %d, %v", len(got), n, err)
		}
	})
}

// remotely runs a test in buckets, where nothing waits long.
func remotely(t *testing.T, test func(t *testing.T, s *storetest.Server)) {
	defer func(d time.Duration) { store.Pause = d }(store.Pause)
	store.Pause = time.Millisecond
	t.Run("s3", func(t *testing.T) { test(t, storetest.S3(t)) })
	t.Run("gs", func(t *testing.T) { test(t, storetest.GS(t)) })
}

func TestAReadThatIsCutGoesOnWhereItWas(t *testing.T) {
	remotely(t, func(t *testing.T, s *storetest.Server) {
		content := random(1 << 20)
		path := s.Put(t, "x", content)
		var cuts atomic.Int64
		s.Fail(func(r *http.Request) storetest.Fault {
			if storetest.IsRead(r) {
				cuts.Add(1)
				return storetest.Fault{Cut: 100_000}
			}
			return storetest.Fault{}
		})
		got, err := store.ReadFile(context.Background(), path)
		if err != nil || string(got) != content {
			t.Errorf("%d of %d bytes came, %v", len(got), len(content), err)
		}
		if cuts.Load() < 10 {
			t.Errorf("cut %d times: too few for this test to mean anything", cuts.Load())
		}
		var busy atomic.Int64
		s.Fail(func(r *http.Request) storetest.Fault {
			if storetest.IsRead(r) && busy.Add(1) <= 2 {
				return storetest.Fault{Status: http.StatusServiceUnavailable}
			}
			return storetest.Fault{}
		})
		f, err := store.Open(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 10)
		if _, err := f.ReadAt(b, 500); err != nil || string(b) != content[500:510] {
			t.Errorf("after two errors: %v", err)
		}
		s.Fail(func(r *http.Request) storetest.Fault {
			if storetest.IsRead(r) {
				return storetest.Fault{Status: http.StatusBadRequest}
			}
			return storetest.Fault{}
		})
		if _, err := store.ReadFile(context.Background(), path); err == nil || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
			t.Errorf("errors without end: %v", err)
		}
	})
}

func TestAnObjectThatIsReplacedIsNotReadInHalves(t *testing.T) {
	remotely(t, func(t *testing.T, s *storetest.Server) {
		path := s.Put(t, "x", strings.Repeat("old ", 1<<20))
		f, err := store.Open(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		s.Fail(func(r *http.Request) storetest.Fault {
			if storetest.IsRead(r) {
				return storetest.Fault{Cut: 1 << 20}
			}
			return storetest.Fault{}
		})
		if _, err := io.CopyN(io.Discard, f, 1<<20); err != nil {
			t.Fatal(err)
		}
		s.Put(t, "x", strings.Repeat("new ", 1<<20))
		if _, err := io.Copy(io.Discard, f); !errors.Is(err, store.ErrChanged) {
			t.Errorf("%v", err)
		}
	})
}

func TestErrorsAreOneLineThatSaysWhatToDo(t *testing.T) {
	remotely(t, func(t *testing.T, s *storetest.Server) {
		ctx := context.Background()
		scheme, _, _ := strings.Cut(s.Root, ":")
		for path, want := range map[string]string{
			scheme + "://none/x": "no bucket none", s.Root + "/none": "no such object", scheme + ":///x": "no bucket", "abc://x/y": "reads local paths, s3://, gs://",
		} {
			_, err := store.ReadFile(ctx, path)
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v; want %q", path, err, want)
			}
		}
		for range store.List(ctx, s.Root+"/none") {
			t.Error("something in an empty folder")
		}
		for _, err := range store.List(ctx, scheme+"://none/x") {
			if err == nil || !strings.Contains(err.Error(), "none") {
				t.Errorf("%v", err)
			}
		}
		if err := store.WriteFile(ctx, scheme+"://none/x", func(w io.Writer) error { return nil }); err == nil || !strings.Contains(err.Error(), "none") {
			t.Errorf("writing: %v", err)
		}
		s.Fail(func(*http.Request) storetest.Fault { return storetest.Fault{Status: http.StatusForbidden} })
		if _, err := store.Stat(ctx, s.Root+"/x"); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "not allowed") {
			t.Errorf("forbidden: %v", err)
		}
	})
}

func TestWithoutCredentials(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/nowhere")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
	t.Setenv("HOME", t.TempDir())
	t.Setenv("GCE_METADATA_HOST", "127.0.0.1:1")
	store.Forget()
	t.Cleanup(store.Forget)
	if _, err := store.ReadFile(context.Background(), "s3://bucket/x"); err == nil || !strings.Contains(err.Error(), "no credentials for s3") {
		t.Errorf("%v", err)
	}
}

func TestALockIsHeldOnceRenewedAndTakenOver(t *testing.T) {
	remotely(t, func(t *testing.T, s *storetest.Server) {
		defer func(d time.Duration) { store.Lease = d }(store.Lease)
		store.Lease = 400 * time.Millisecond
		ctx, path := context.Background(), s.Root+"/set/.lock"
		held, unlock, err := store.Lock(ctx, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		told := ""
		if _, _, err := store.Lock(ctx, path, func(s string) { told = s }); !errors.Is(err, durable.ErrLocked) || !strings.Contains(told, path) {
			t.Errorf("a second lock: %v, %q", err, told)
		}
		if err := unlock(); err != nil || context.Cause(held) == nil {
			t.Error(err)
		}
		if _, err := store.Stat(ctx, path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("given back: %v", err)
		}
		put(t, path, "of a process that was killed 1\n")
		held, unlock, err = store.Lock(ctx, path, nil)
		if err != nil {
			t.Fatalf("a lock whose holder is gone: %v", err)
		}
		put(t, path, "of another that took it over 1\n")
		select {
		case <-held.Done():
		case <-time.After(30 * time.Second):
			t.Fatal("a lock that was taken over was not lost")
		}
		if err := unlock(); err != nil {
			t.Error(err)
		}
		if got, err := store.ReadFile(ctx, path); err != nil || !bytes.Contains(got, []byte("of another")) {
			t.Errorf("the other's lock: %q, %v", got, err)
		}
	})
}
