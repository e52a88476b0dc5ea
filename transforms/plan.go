package transforms

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Group is what one worker reads in one go.
type Group struct {
	Pieces []Piece
}

// Bytes is the size of the group's input.
func (g Group) Bytes() (n int64) {
	for _, p := range g.Pieces {
		n += p.End - p.Start
	}
	return n
}

// What a byte of a compressed file counts for: about what gzip, zstd and xz
// gain on text.
const compressedWeight = 3

// DefaultGroupBytes is about how much text a worker reads in one go: one that
// is killed loses no more.
const DefaultGroupBytes = 64 << 20

// groupPieces bounds the files of a group.
const groupPieces = 4096

// Plan expands globs and groups the files that they match, in the order of
// their names, to about groupBytes of text each (0: DefaultGroupBytes). JSON lines that are not
// compressed and Parquet files are cut where they are larger. How they are
// grouped has no influence on the token set.
func Plan(globs []string, groupBytes int64) ([]Group, error) {
	if groupBytes == 0 {
		groupBytes = DefaultGroupBytes
	}
	if groupBytes < 1 {
		return nil, fmt.Errorf("groups of %d bytes of input: want at least 1", groupBytes)
	}
	names, err := expand(globs)
	if err != nil {
		return nil, err
	}
	var groups []Group
	var pieces []Piece
	var weight int64
	flush := func() {
		if len(pieces) > 0 {
			groups = append(groups, Group{Pieces: pieces})
		}
		pieces, weight = nil, 0
	}
	for _, name := range names {
		p, compressed, err := examine(name)
		if err != nil {
			return nil, fmt.Errorf("input %s: %w", name, plain(err))
		}
		heft := p.Size
		if compressed || p.Layout == layoutParquet {
			heft *= compressedWeight
		}
		if weight > 0 && weight+heft > groupBytes || len(pieces) == groupPieces {
			flush()
		}
		parts := int64(1)
		if p.Layout == layoutParquet || p.Layout == layoutLines && !compressed {
			parts = max(1, min(p.Size, (heft+groupBytes/2)/groupBytes))
		}
		for i := range parts {
			part := p
			part.Start, part.End = p.Size*i/parts, p.Size*(i+1)/parts
			pieces = append(pieces, part)
			if weight += heft / parts; parts > 1 {
				flush()
			}
		}
	}
	flush()
	return groups, nil
}

// expand lists the files that globs match, and all files in folders that are
// named, each once, sorted.
func expand(globs []string) ([]string, error) {
	var names []string
	for _, glob := range globs {
		if st, err := os.Stat(glob); err == nil { // also names with *, ? or [ in them
			if !st.IsDir() {
				names = append(names, filepath.Clean(glob))
				continue
			}
			before := len(names)
			err := filepath.WalkDir(glob, func(path string, e fs.DirEntry, err error) error {
				if err == nil && !e.IsDir() {
					names = append(names, path)
				}
				return err
			})
			if err != nil {
				return nil, fmt.Errorf("input %s: %w", glob, err)
			}
			if len(names) == before {
				return nil, fmt.Errorf("input %s: a folder without files", glob)
			}
			continue
		}
		match, err := filepath.Glob(glob)
		if err != nil {
			return nil, fmt.Errorf("input %s: not a glob: %w", glob, err)
		}
		if len(match) == 0 {
			return nil, fmt.Errorf("input %s: no such file", glob)
		}
		found := false
		for _, name := range match {
			if st, err := os.Stat(name); err == nil && st.IsDir() {
				continue // dir/* is meant for the files
			}
			names, found = append(names, filepath.Clean(name)), true
		}
		if !found {
			return nil, fmt.Errorf("input %s: matches folders only", glob)
		}
	}
	if len(names) == 0 {
		return nil, errors.New("no input: --input names the text files")
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// examine looks at a file's name and its first bytes.
func examine(name string) (p Piece, compressed bool, err error) {
	path, err := filepath.Abs(name)
	if err != nil {
		return p, false, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return p, false, err
	}
	if !st.Mode().IsRegular() {
		return p, false, errors.New("not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return p, false, err
	}
	defer f.Close()
	var head [headBytes]byte
	n, err := io.ReadFull(f, head[:])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return p, false, err
	}
	p = Piece{Name: name, Path: path, Size: st.Size(), End: st.Size(), Modified: st.ModTime().UnixNano(), Layout: layout(name)}
	switch formOf(head[:n]) {
	case formParquet:
		p.Layout = layoutParquet
	case formGzip, formZstd, formXZ, formBzip2:
		compressed = true
	case formTar: // what is in it may be
		p.Layout, compressed = layoutGuess, true
	}
	return p, compressed, nil
}
