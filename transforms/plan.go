package transforms

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Group is what one pair of shards is made from: the descriptor that crosses
// the stage.
type Group struct {
	Index  int
	Of     int
	Pieces []Piece
}

// Bytes is the size of the group's input.
func (g Group) Bytes() (n int64) {
	for _, p := range g.Pieces {
		n += p.End - p.Start
	}
	return n
}

// compressedWeight is what a byte of a compressed text file counts for: about
// what gzip and zstd gain on text.
const compressedWeight = 3

// Plan expands globs and groups the files that they match, in the order of
// their names, to about shardBytes of text each. JSON lines that are not
// compressed are cut where they are larger. The plan depends on nothing but
// its arguments and the files, so that every run of it makes the same shards.
func Plan(globs []string, shardBytes int64) ([]Group, error) {
	if shardBytes < 1 {
		return nil, fmt.Errorf("shards of %d bytes of input: want at least 1", shardBytes)
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
			groups = append(groups, Group{Index: len(groups), Pieces: pieces})
		}
		pieces, weight = nil, 0
	}
	for _, name := range names {
		p, compressed, err := examine(name)
		if err != nil {
			return nil, fmt.Errorf("input %s: %w", name, plain(err))
		}
		if compressed {
			if weight > 0 && weight+p.Size*compressedWeight > shardBytes {
				flush()
			}
			pieces = append(pieces, p)
			weight += p.Size * compressedWeight
			continue
		}
		if weight > 0 && weight+p.Size > shardBytes {
			flush()
		}
		parts := int64(1)
		if p.Layout == layoutLines {
			parts = max(1, (p.Size+shardBytes/2)/shardBytes)
		}
		for i := range parts {
			part := p
			part.Start, part.End = p.Size*i/parts, p.Size*(i+1)/parts
			pieces = append(pieces, part)
			if weight += part.End - part.Start; parts > 1 {
				flush()
			}
		}
	}
	flush()
	for i := range groups {
		groups[i].Of = len(groups)
	}
	return groups, nil
}

// expand lists the files that globs match, each once, sorted.
func expand(globs []string) ([]string, error) {
	var names []string
	for _, glob := range globs {
		if _, err := os.Lstat(glob); err == nil { // also names with *, ? or [ in them
			names = append(names, filepath.Clean(glob))
			continue
		}
		match, err := filepath.Glob(glob)
		if err != nil {
			return nil, fmt.Errorf("input %s: not a glob: %w", glob, err)
		}
		if len(match) == 0 {
			return nil, fmt.Errorf("input %s: no such file", glob)
		}
		for _, name := range match {
			if st, err := os.Stat(name); err == nil && st.IsDir() {
				continue // dir/* is meant for the files
			}
			names = append(names, filepath.Clean(name))
		}
		if len(names) == 0 {
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
	if st.IsDir() {
		return p, false, errors.New("a folder: name the files in it, as in 'folder/*.txt'")
	}
	if !st.Mode().IsRegular() {
		return p, false, errors.New("not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return p, false, err
	}
	defer f.Close()
	var head [512]byte
	n, err := io.ReadFull(f, head[:])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return p, false, err
	}
	compressed = compression(head[:n]) != ""
	if what := unreadable(head[:n]); what != "" && !compressed {
		return p, false, fmt.Errorf("it is %s: only plain text and JSON lines are read, as they are or compressed with gzip or zstd", what)
	}
	return Piece{Name: name, Path: path, Size: st.Size(), End: st.Size(), Layout: layout(name)}, compressed, nil
}

// layout is what a file's name says of its layout.
func layout(name string) string {
	name = strings.ToLower(filepath.Base(name))
	for _, ext := range []string{".gz", ".zst", ".zstd"} {
		name = strings.TrimSuffix(name, ext)
	}
	switch filepath.Ext(name) {
	case ".jsonl", ".ndjson":
		return layoutLines
	case ".txt", ".text", ".md", ".raw":
		return layoutText
	}
	return layoutGuess
}
