package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"
)

// A File is open for reading. ReadAt may be called from several goroutines.
type File interface {
	io.Reader
	io.ReaderAt
	io.Seeker
	io.Closer
	Info() (Info, error)
}

type localFile struct{ *os.File }

func (f localFile) Info() (Info, error) {
	st, err := f.Stat()
	if err != nil {
		return Info{}, err
	}
	return localInfo(f.Name(), st), nil
}

// Open opens a file. ctx bounds all reading of an object, too.
func Open(ctx context.Context, p string) (File, error) {
	if !Remote(p) {
		f, err := os.Open(p)
		if err != nil {
			return nil, err
		}
		return localFile{f}, nil
	}
	i, err := Stat(ctx, p)
	if err != nil {
		return nil, err
	}
	return OpenVersion(ctx, i)
}

// OpenVersion opens a remote file as it was when Stat or a list described it.
// Nothing is asked of the bucket until the file is read.
func OpenVersion(ctx context.Context, i Info) (File, error) {
	b, name, err := bucketOf(ctx, i.Path)
	if err != nil {
		return nil, err
	}
	return &object{ctx: ctx, bucket: b, name: name, info: i}, nil
}

// object is an object that is read by ranges.
type object struct {
	ctx    context.Context
	bucket Bucket
	name   string
	info   Info

	at     int64 // of Read
	stream io.ReadCloser
	watch  *time.Timer

	mu      sync.Mutex
	windows [windowsKept]window // the last one used first
}

func (o *object) Info() (Info, error) { return o.info, nil }

func (o *object) Close() error {
	o.drop()
	return nil
}

// drop ends the stream, if there is one.
func (o *object) drop() {
	if o.stream != nil {
		o.watch.Stop()
		o.stream.Close()
		o.stream = nil
	}
}

func (o *object) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += o.at
	case io.SeekEnd:
		offset += o.info.Size
	}
	if offset < 0 {
		return 0, failed("seek", o.info.Path, fs.ErrInvalid)
	}
	if offset != o.at {
		o.drop()
		o.at = offset
	}
	return offset, nil
}

// Read reads a stream, which is opened again where it was cut.
func (o *object) Read(b []byte) (n int, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	if o.at >= o.info.Size {
		return 0, io.EOF
	}
	err = o.persist(func() error {
		if o.stream == nil {
			ctx, cancel := context.WithCancel(o.ctx)
			o.watch = time.AfterFunc(stall, cancel) // a connection that says nothing any more
			r, err := o.bucket.Read(ctx, o.name, o.info.Version, o.at, o.info.Size-o.at)
			if err != nil {
				o.watch.Stop()
				cancel()
				return err
			}
			o.stream = &cancelled{r, cancel}
		}
		o.watch.Reset(stall)
		n, err = o.stream.Read(b)
		o.watch.Stop()
		if n = int(min(int64(n), o.info.Size-o.at)); n > 0 {
			o.at += int64(n)
			return nil // an error that came with it comes again
		}
		o.drop()
		if err == nil {
			err = io.ErrNoProgress
		}
		return cut(err)
	})
	return n, err
}

// cut is an end of the stream before the object's.
func cut(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

type cancelled struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (c *cancelled) Close() error {
	err := c.ReadCloser.Close()
	c.cancel()
	return err
}

// How often reading is tried where nothing comes, and how long a stream may
// say nothing.
const (
	tries = 6
	stall = time.Minute
)

// Pause is how long the first pause between tries is; each is twice as long.
var Pause = 200 * time.Millisecond

// persist tries again what failed in a way that may pass.
func (o *object) persist(try func() error) error {
	var err error
	for i := range tries {
		if i > 0 {
			select {
			case <-time.After(Pause << (i - 1)):
			case <-o.ctx.Done():
			}
		}
		if e := o.ctx.Err(); e != nil {
			return failed("read", o.info.Path, e)
		}
		if err = try(); err == nil {
			return nil
		}
		if errors.Is(err, ErrChanged) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return failed("read", o.info.Path, err)
		}
	}
	return failed("read", o.info.Path, fmt.Errorf("%w (tried %d times)", err, tries))
}

// A window is a part of an object that is kept: readers at offsets go on from
// where they were, in small steps.
type window struct {
	from int64
	data []byte
	next int // how much to read after it
}

const (
	windowsKept = 2 // a reader of runs goes forward in two places
	firstWindow = 64 << 10
	lastWindow  = 1 << 20
)

// Prefetch reads a part of an object that ReadAt will want next, in one
// request. It does nothing for a local file, or for a part that is there or too
// large to keep: ReadAt finds those by itself.
func Prefetch(f File, at, size int64) error {
	o, ok := f.(*object)
	if !ok || size <= 0 || size > lastWindow {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if w := o.windowAt(at); w != nil && at+size <= w.from+int64(len(w.data)) {
		return nil
	}
	_, err := o.load(at, size)
	return err
}

// ReadAt reads at an offset. Where calls go forward through the object it
// reads ahead, more each time.
func (o *object) ReadAt(b []byte, at int64) (n int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if at < 0 {
		return 0, failed("read", o.info.Path, fs.ErrInvalid)
	}
	for n < len(b) && at < o.info.Size {
		w := o.windowAt(at)
		if w == nil {
			if w, err = o.load(at, int64(len(b)-n)); err != nil {
				return n, err
			}
		}
		got := copy(b[n:], w.data[at-w.from:])
		n, at = n+got, at+int64(got)
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// windowAt finds the window that holds a byte and puts it first.
func (o *object) windowAt(at int64) *window {
	for i, w := range o.windows {
		if at >= w.from && at < w.from+int64(len(w.data)) {
			copy(o.windows[1:i+1], o.windows[:i])
			o.windows[0] = w
			return &o.windows[0]
		}
	}
	return nil
}

// load reads a window, in the place of the one that it continues or else of
// the one used longest ago.
func (o *object) load(at, want int64) (*window, error) {
	place, size := windowsKept-1, int64(firstWindow)
	for i, w := range o.windows {
		if len(w.data) > 0 && at == w.from+int64(len(w.data)) {
			place, size = i, int64(w.next)
			break
		}
	}
	next := min(2*size, lastWindow)
	size = min(max(size, want), o.info.Size-at)
	w := window{from: at, next: int(next)}
	err := o.persist(func() error {
		ctx, cancel := context.WithTimeout(o.ctx, stall)
		defer cancel()
		r, err := o.bucket.Read(ctx, o.name, o.info.Version, at, size)
		if err != nil {
			return err
		}
		defer r.Close()
		w.data = make([]byte, size)
		_, err = io.ReadFull(r, w.data)
		return cut(err)
	})
	if err != nil {
		return nil, err
	}
	copy(o.windows[1:place+1], o.windows[:place])
	o.windows[0] = w
	return &o.windows[0], nil
}
