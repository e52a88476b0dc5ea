package durable

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := WriteFile(path, func(w io.Writer) error { _, err := io.WriteString(w, text); return err }); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFailedWriteLeavesThePreviousFileAlone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	write(t, path, "first")
	broken := errors.New("disk full")
	err := WriteFile(path, func(w io.Writer) error { io.WriteString(w, "sec"); return broken })
	if !errors.Is(err, broken) {
		t.Fatalf("error %v, want the writer's own", err)
	}
	if got := read(t, path); got != "first" {
		t.Fatalf("file holds %q", got)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Fatalf("left behind: %v", got)
	}
}

func TestFolderIsReplacedWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "deep", "model")
	for _, text := range []string{"one", "two"} {
		if err := WriteFolder(path, func(tmp string) error {
			return os.WriteFile(filepath.Join(tmp, text), []byte(text), 0o666)
		}); err != nil {
			t.Fatal(err)
		}
		if got := names(t, path); len(got) != 1 || got[0] != text {
			t.Fatalf("folder holds %v, want only %s", got, text)
		}
	}
	broken := errors.New("no")
	if err := WriteFolder(path, func(tmp string) error { return broken }); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if got := names(t, filepath.Dir(path)); len(got) != 1 {
		t.Fatalf("left behind: %v", got)
	}
	if got := read(t, filepath.Join(path, "two")); got != "two" {
		t.Fatalf("folder holds %q", got)
	}
}

func TestLinkMovesAndSweepRemovesOnlyTemporaries(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "latest")
	for _, target := range []string{"a", "b"} {
		if err := Link(target, link); err != nil {
			t.Fatal(err)
		}
		if got, err := os.Readlink(link); err != nil || got != target {
			t.Fatalf("link to %q, %v; want %q", got, err, target)
		}
	}
	write(t, filepath.Join(dir, ".hidden"), "kept")
	f, err := Create(filepath.Join(dir, "half"))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := os.MkdirAll(filepath.Join(dir, ".step-1.tmp-xyz", "deep"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(dir); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); len(got) != 2 || got[0] != ".hidden" || got[1] != "latest" {
		t.Fatalf("after the sweep: %v", got)
	}
	if err := Sweep(filepath.Join(dir, "absent")); err != nil {
		t.Fatal(err)
	}
}

func TestMissingFolderIsNamed(t *testing.T) {
	if _, err := Create(filepath.Join(t.TempDir(), "no", "file")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("error %v", err)
	}
}

func TestLockIsHeldOnceAndComesFree(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(path); !errors.Is(err, ErrLocked) {
		t.Fatalf("a second lock: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	unlock, err = Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}
