// Package store opens, lists and makes files where a path says: on the local
// disk, or as objects of a bucket, s3://bucket/name and gs://bucket/name.
//
// A local path is an *os.File underneath, written as package durable writes. An
// object is read by ranges: a stream that is cut goes on where it was, and an
// object that was replaced meanwhile is an error and never half of each. An
// object that is written appears whole, when its upload is finished; nothing is
// ever renamed. A name up to a slash is a folder as soon as an object's name
// begins with it.
//
// Buckets are opened by drivers that a program links in: package
// schemas/store/cloud has those of s3 and gs.
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/scavenge/scavenge/schemas/durable"
)

// Info is what is known of a file before it is opened.
type Info struct {
	Path     string
	Size     int64  // bytes
	Modified int64  // nanoseconds since 1970
	Version  string // of an object: another as soon as it is written again; "" for local files
	Folder   bool   // a folder, or the beginning of objects' names up to a slash
}

// Errors that callers tell apart. A file that is not there is fs.ErrNotExist.
var (
	ErrChanged = errors.New("it was written to since it was opened")
	// ErrConflict is Swap's where another version is there.
	ErrConflict = errors.New("another version is there")
)

// A Bucket is where objects are. Names have no slash in front. Errors are of one
// line and name no path; those that a second try may mend are not final.
type Bucket interface {
	// Stat describes an object, in all but Path.
	Stat(ctx context.Context, name string) (Info, error)
	// Read opens size bytes of a version of an object, at byte from.
	Read(ctx context.Context, name, version string, from, size int64) (io.ReadCloser, error)
	// List yields the objects whose names begin with prefix, in the order of
	// their names, with these as paths: all of them or, if not deep, what of
	// them is up to the next slash, as a folder, once.
	List(ctx context.Context, prefix string, deep bool) iter.Seq2[Info, error]
	// Create starts an object of any size; it replaces one of this name.
	Create(ctx context.Context, name string) (Upload, error)
	// Swap writes a small object, if the one there is of the given version ("":
	// there is none; Any: whatever is), and gives the new version; else its
	// error is ErrConflict.
	Swap(ctx context.Context, name, version string, data []byte) (string, error)
	// Remove removes an object. It is no error that there is none.
	Remove(ctx context.Context, name string) error
	// Sweep gives up the uploads below prefix that were never finished.
	Sweep(ctx context.Context, prefix string) error
}

// Any, for Bucket.Swap, is whatever version is there, or none.
const Any = "*"

// An Upload is a file in the making: it is there when Commit has returned, or
// never.
type Upload interface {
	io.Writer
	Commit() error
	Abort()
}

// drivers open buckets, by scheme.
var drivers = map[string]func(ctx context.Context, bucket string) (Bucket, error){}

// Register makes a scheme known. It is for init functions.
func Register(scheme string, open func(ctx context.Context, bucket string) (Bucket, error)) {
	drivers[scheme] = open
}

// Remote says whether a path is not one of the local disk.
func Remote(path string) bool {
	scheme, _, ok := strings.Cut(path, "://")
	return ok && scheme != "" && strings.Trim(scheme, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}

var (
	opening sync.Mutex
	buckets = map[string]Bucket{} // open ones, by scheme and name
)

// bucketOf opens the bucket of a remote path; name is the rest.
func bucketOf(ctx context.Context, p string) (b Bucket, name string, err error) {
	scheme, rest, _ := strings.Cut(p, "://")
	host, name, _ := strings.Cut(rest, "/")
	open, ok := drivers[scheme]
	switch {
	case !ok:
		return nil, "", fmt.Errorf("%s: this program reads local paths%s", p, known())
	case host == "":
		return nil, "", fmt.Errorf("%s: no bucket: want %s://bucket/name", p, scheme)
	}
	opening.Lock()
	defer opening.Unlock()
	key := scheme + "://" + host
	if b, ok = buckets[key]; !ok {
		if b, err = open(ctx, host); err != nil {
			return nil, "", fmt.Errorf("%s: %w", key, err)
		}
		buckets[key] = b
	}
	return b, name, nil
}

// known lists the schemes, for an error.
func known() (list string) {
	for _, scheme := range []string{"s3", "gs"} {
		if drivers[scheme] != nil {
			list += ", " + scheme + "://"
		}
	}
	return list
}

// Forget lets go of all open buckets: the next use reads the environment and
// its credentials again.
func Forget() {
	opening.Lock()
	defer opening.Unlock()
	clear(buckets)
}

func failed(op, path string, err error) error { return &fs.PathError{Op: op, Path: path, Err: err} }

// Abs makes a path mean the same in every process.
func Abs(p string) (string, error) {
	if !Remote(p) {
		return filepath.Abs(p)
	}
	_, _, err := bucketOf(context.Background(), p)
	return strings.TrimSuffix(p, "/"), err
}

// Join is the path of something in a folder.
func Join(dir string, names ...string) string {
	if !Remote(dir) {
		return filepath.Join(append([]string{dir}, names...)...)
	}
	scheme, rest, _ := strings.Cut(dir, "://")
	return strings.TrimSuffix(scheme+"://"+path.Join(append([]string{rest}, names...)...), "/")
}

// Base is a path's last element.
func Base(p string) string {
	if Remote(p) {
		return path.Base(p)
	}
	return filepath.Base(p)
}

// Stat describes a file. A remote path that only begins names is no file.
func Stat(ctx context.Context, p string) (Info, error) {
	if !Remote(p) {
		st, err := os.Stat(p)
		if err != nil {
			return Info{}, err
		}
		return localInfo(p, st), nil
	}
	b, name, err := bucketOf(ctx, p)
	if err != nil {
		return Info{}, err
	}
	if name == "" {
		return Info{}, failed("stat", p, fs.ErrNotExist)
	}
	i, err := b.Stat(ctx, name)
	if err != nil {
		return Info{}, failed("stat", p, err)
	}
	i.Path = p
	return i, nil
}

func localInfo(p string, st fs.FileInfo) Info {
	return Info{Path: p, Size: st.Size(), Modified: st.ModTime().UnixNano(), Folder: st.IsDir()}
}

// ReadFile reads a whole file.
func ReadFile(ctx context.Context, p string) ([]byte, error) {
	if !Remote(p) {
		return os.ReadFile(p)
	}
	f, err := Open(ctx, p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// MkdirAll makes a folder, where folders have to be made.
func MkdirAll(p string) error {
	if Remote(p) {
		return nil
	}
	return os.MkdirAll(p, 0o777)
}

// Remove removes a file, or an empty folder of the local disk. It is no error
// that there is none.
func Remove(ctx context.Context, p string) error {
	if !Remote(p) {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	b, name, err := bucketOf(ctx, p)
	if err != nil {
		return err
	}
	if err := b.Remove(ctx, name); err != nil {
		return failed("remove", p, err)
	}
	return nil
}

// RemoveAll removes a folder with all that is in it.
func RemoveAll(ctx context.Context, dir string) error {
	if !Remote(dir) {
		return os.RemoveAll(dir)
	}
	b, name, err := bucketOf(ctx, dir)
	if err != nil {
		return err
	}
	for i, err := range b.List(ctx, folder(name), true) {
		if err == nil {
			err = b.Remove(ctx, i.Path)
		}
		if err != nil {
			return failed("remove", dir, err)
		}
	}
	return nil
}

// Sweep removes what killed writers left half done in a folder. No other
// writer may be at work there.
func Sweep(ctx context.Context, dir string) error {
	if !Remote(dir) {
		return durable.Sweep(dir)
	}
	b, name, err := bucketOf(ctx, dir)
	if err != nil {
		return err
	}
	if err := b.Sweep(ctx, folder(name)); err != nil {
		return failed("sweep", dir, err)
	}
	return nil
}

// folder is the prefix that the names in a folder have.
func folder(name string) string {
	if name = strings.TrimSuffix(name, "/"); name == "" {
		return ""
	}
	return name + "/"
}
