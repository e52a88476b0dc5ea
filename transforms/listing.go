package transforms

import (
	"bufio"
	"cmp"
	"container/heap"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/scavenge/scavenge/schemas/store"
)

// A Listing is the files of an input, in the order of their paths, each once.
// What of it does not fit in a bounded part of memory is on the local disk,
// sorted: a corpus may have millions of files.
type Listing struct {
	groupBytes int64
	here       string // the current folder
	held       []listed
	parts      []*os.File // sorted, and gone from their folder
}

// listed is a file and what its grouping goes by.
type listed struct {
	File Piece // whole
	Heft int64 // bytes of text, about
	Cut  bool  // into pieces, where it is large
}

// heldFiles is how many files a listing has in memory, some 20 MB of them.
var heldFiles = 1 << 16

// List lists the files that globs name: globs, files, folders; local, or in
// s3:// and gs:// buckets. They will be grouped to about groupBytes of text
// each (0: DefaultGroupBytes). The caller closes the listing.
func List(ctx context.Context, globs []string, groupBytes int64) (*Listing, error) {
	if groupBytes == 0 {
		groupBytes = DefaultGroupBytes
	}
	if groupBytes < 1 {
		return nil, fmt.Errorf("groups of %d bytes of input: want at least 1", groupBytes)
	}
	here, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	l := &Listing{groupBytes: groupBytes, here: here}
	for _, glob := range globs {
		for i, err := range store.Find(ctx, glob) {
			if err == nil {
				err = l.add(ctx, i)
			}
			if err != nil {
				l.Close()
				return nil, fmt.Errorf("input %s: %w", glob, relative(err, glob))
			}
		}
	}
	return l, nil
}

// ErrNoInput is an empty input's.
var ErrNoInput = errors.New("no input: --input names the text files")

// relative takes the path out of an error where that is what the message has
// said already.
func relative(err error, glob string) error {
	var path *os.PathError
	if errors.As(err, &path) && (path.Path == glob || path.Path == strings.TrimSuffix(glob, "/")) {
		return path.Err
	}
	return err
}

// AddFile adds one file, under another name than its path.
func (l *Listing) AddFile(ctx context.Context, path, name string) error {
	i, err := store.Stat(ctx, path)
	if err != nil {
		return err
	}
	x, err := l.examine(ctx, i)
	if err != nil {
		return err
	}
	x.File.Name = name
	return l.hold(x)
}

func (l *Listing) add(ctx context.Context, i store.Info) error {
	x, err := l.examine(ctx, i)
	if err != nil {
		return err
	}
	return l.hold(x)
}

func (l *Listing) hold(x listed) error {
	l.held = append(l.held, x)
	if len(l.held) < heldFiles {
		return nil
	}
	return l.spill()
}

func byPath(a, b listed) int {
	if c := cmp.Compare(a.File.Path, b.File.Path); c != 0 {
		return c
	}
	return cmp.Compare(a.File.Name, b.File.Name)
}

// spill sorts what is in memory into a file.
func (l *Listing) spill() error {
	slices.SortFunc(l.held, byPath)
	f, err := os.CreateTemp("", "scavenge-listing-*")
	if err != nil {
		return err
	}
	os.Remove(f.Name()) // it ends with the process, where the system allows
	l.parts = append(l.parts, f)
	w := bufio.NewWriterSize(f, 1<<20)
	e := gob.NewEncoder(w)
	for i := range l.held {
		if err := e.Encode(&l.held[i]); err != nil {
			return err
		}
	}
	l.held = l.held[:0]
	return w.Flush()
}

// Close lets go of the disk.
func (l *Listing) Close() {
	for _, f := range l.parts {
		f.Close()
		os.Remove(f.Name())
	}
	l.parts = nil
}

// all yields the files in order, each once.
func (l *Listing) all() iter.Seq2[listed, error] {
	return func(yield func(listed, error) bool) {
		slices.SortFunc(l.held, byPath)
		m := merging{}
		held := l.held
		m.push(func(x *listed) error {
			if len(held) == 0 {
				return io.EOF
			}
			*x, held = held[0], held[1:]
			return nil
		})
		for _, f := range l.parts {
			d := gob.NewDecoder(bufio.NewReaderSize(io.NewSectionReader(f, 0, 1<<62), 1<<16))
			m.push(func(x *listed) error {
				*x = listed{} // gob leaves out zeros
				return d.Decode(x)
			})
		}
		last := ""
		for m.err == nil && len(m.heads) > 0 {
			x := m.pop()
			if x.File.Path == last {
				continue
			}
			last = x.File.Path
			if !yield(x, nil) {
				return
			}
		}
		if m.err != nil {
			yield(listed{}, fmt.Errorf("the list of input files: %w", m.err))
		}
	}
}

// merging merges sorted lists: a heap of their first entries.
type merging struct {
	heads []head
	err   error
}

type head struct {
	listed
	next func(*listed) error
}

func (m *merging) Len() int           { return len(m.heads) }
func (m *merging) Less(i, j int) bool { return byPath(m.heads[i].listed, m.heads[j].listed) < 0 }
func (m *merging) Swap(i, j int)      { m.heads[i], m.heads[j] = m.heads[j], m.heads[i] }
func (m *merging) Push(x any)         { m.heads = append(m.heads, x.(head)) }
func (m *merging) Pop() any {
	x := m.heads[len(m.heads)-1]
	m.heads = m.heads[:len(m.heads)-1]
	return x
}

func (m *merging) push(next func(*listed) error) {
	h := head{next: next}
	if err := next(&h.listed); err == nil {
		heap.Push(m, h)
	} else if err != io.EOF {
		m.err = err
	}
}

func (m *merging) pop() listed {
	x := m.heads[0].listed
	if err := m.heads[0].next(&m.heads[0].listed); err == nil {
		heap.Fix(m, 0)
	} else {
		heap.Pop(m)
		if err != io.EOF {
			m.err = err
		}
	}
	return x
}

// examine tells a file's layout and heft: by its name or, where it is large
// enough to be cut, by its first bytes. Millions of small files are not opened
// for that.
func (l *Listing) examine(ctx context.Context, i store.Info) (x listed, err error) {
	p := Piece{Name: i.Path, Path: i.Path, Size: i.Size, End: i.Size, Modified: i.Modified, Version: i.Version, Layout: layout(i.Path)}
	if !store.Remote(p.Path) && !filepath.IsAbs(p.Path) {
		p.Path = filepath.Join(l.here, p.Path)
	}
	x = listed{File: p, Heft: p.Size}
	if compressedName(p.Name) {
		x.Heft *= compressedWeight
	}
	if p.Size*compressedWeight < l.groupBytes+l.groupBytes/2 {
		return x, nil
	}
	f, err := p.open(ctx)
	if err != nil {
		return x, err
	}
	defer f.Close()
	var head [headBytes]byte
	n, err := f.ReadAt(head[:], 0)
	if err != nil && err != io.EOF {
		return x, err
	}
	x.Heft, x.Cut = p.Size*compressedWeight, false
	switch formOf(head[:n]) {
	case formParquet:
		x.File.Layout, x.Cut = layoutParquet, true
	case formGzip, formZstd, formXZ, formBzip2:
	case formTar: // what is in it may be
		x.File.Layout = layoutGuess
	default:
		x.Heft, x.Cut = p.Size, p.Layout == layoutLines
	}
	return x, nil
}
