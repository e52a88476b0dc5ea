package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"sort"

	"github.com/scavenge/scavenge/schemas/dtype"
)

// File is an open safetensors file whose header has been checked.
type File struct {
	Tensors  []Info // in the order of their data
	Metadata map[string]string

	path  string
	f     *os.File
	start int64 // of the data
}

// Open reads and checks a file's header.
func Open(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	s := &File{path: path, f: f}
	if err := s.readHeader(); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

func (s *File) readHeader() error {
	st, err := s.f.Stat()
	if err != nil {
		return err
	}
	if st.IsDir() {
		return errors.New("is a folder")
	}
	var size [8]byte
	if n, err := io.ReadFull(s.f, size[:]); err != nil {
		return fmt.Errorf("truncated: %d bytes, less than the 8 of a header's length", n)
	}
	n := binary.LittleEndian.Uint64(size[:])
	if n > maxHeader {
		return fmt.Errorf("header of %d bytes: not a safetensors file (limit %d)", n, maxHeader)
	}
	if int64(n) > st.Size()-8 {
		return fmt.Errorf("truncated: the header has %d bytes, the file %d", n, st.Size()-8)
	}
	header := make([]byte, n)
	if _, err := io.ReadFull(s.f, header); err != nil {
		return fmt.Errorf("header: %w", err)
	}
	s.start = 8 + int64(n)
	s.Tensors, s.Metadata, err = parseHeader(header, st.Size()-s.start)
	return err
}

// parseHeader reads the JSON header of a file with size bytes of data.
func parseHeader(header []byte, size int64) ([]Info, map[string]string, error) {
	// A decoder of tokens, because encoding/json would keep the last of two
	// tensors of one name in silence.
	d := json.NewDecoder(bytes.NewReader(header))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, nil, errors.New("header: not a JSON object: not a safetensors file")
	}
	var list []Info
	var metadata map[string]string
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, nil, fmt.Errorf("header: %w", err)
		}
		name, _ := t.(string) // the decoder takes nothing but strings for keys
		if seen[name] {
			return nil, nil, fmt.Errorf("tensor %q: there twice", name)
		}
		seen[name] = true
		if name == "__metadata__" {
			if err := d.Decode(&metadata); err != nil {
				return nil, nil, fmt.Errorf("header: __metadata__: %w", err)
			}
			continue
		}
		var e entry
		if err := d.Decode(&e); err != nil {
			return nil, nil, fmt.Errorf("tensor %q: %w", name, err)
		}
		info, err := e.check(name, size)
		if err != nil {
			return nil, nil, fmt.Errorf("tensor %q: %w", name, err)
		}
		list = append(list, info)
	}
	if _, err := d.Token(); err != nil {
		return nil, nil, fmt.Errorf("header: %w", err)
	}
	if rest := bytes.TrimRight(header[d.InputOffset():], " "); len(rest) > 0 {
		return nil, nil, fmt.Errorf("header: %d bytes after its end", len(rest))
	}
	sort.SliceStable(list, func(i, j int) bool {
		a, b := list[i], list[j]
		return a.offset < b.offset || a.offset == b.offset && a.Bytes < b.Bytes
	})
	var end int64
	for _, t := range list {
		if t.offset < end {
			return nil, nil, fmt.Errorf("tensor %q: overlaps the one before it", t.Name)
		}
		if t.offset > end {
			return nil, nil, fmt.Errorf("tensor %q: %d bytes before it belong to no tensor", t.Name, t.offset-end)
		}
		end = t.offset + t.Bytes
	}
	if end != size {
		return nil, nil, fmt.Errorf("%d bytes of data, the tensors have %d", size, end)
	}
	return list, metadata, nil
}

// entry is a tensor in the header.
type entry struct {
	Type    string  `json:"dtype"`
	Shape   []int64 `json:"shape"`
	Offsets []int64 `json:"data_offsets"` // begin and end in the data
}

func (e entry) check(name string, size int64) (Info, error) {
	if e.Type == "" {
		return Info{}, errors.New("no dtype")
	}
	if e.Shape == nil {
		return Info{}, errors.New("no shape")
	}
	if len(e.Offsets) != 2 {
		return Info{}, fmt.Errorf("data_offsets has %d numbers, want 2", len(e.Offsets))
	}
	begin, end := e.Offsets[0], e.Offsets[1]
	if begin < 0 || end < begin {
		return Info{}, fmt.Errorf("data_offsets %v", e.Offsets)
	}
	if end > size {
		return Info{}, fmt.Errorf("truncated: ends at byte %d of %d", end, size)
	}
	t := Info{Name: name, Type: dtype.Type(e.Type), Shape: make([]int, len(e.Shape)), Bytes: end - begin, offset: begin}
	n := uint64(1)
	for i, d := range e.Shape {
		hi, lo := bits.Mul64(n, uint64(max(d, 0)))
		if d < 0 || hi != 0 || lo > 1<<48 {
			return Info{}, fmt.Errorf("shape %v", e.Shape)
		}
		n, t.Shape[i] = lo, int(d)
	}
	if w := width(t.Type); w > 0 && n*uint64(w) != uint64(t.Bytes) {
		return Info{}, fmt.Errorf("%d bytes, but shape %v of %s takes %d", t.Bytes, e.Shape, e.Type, n*uint64(w))
	}
	return t, nil
}

// Data reads the bytes of the i-th tensor into buf, which is grown as needed.
func (s *File) Data(i int, buf []byte) ([]byte, error) {
	t := s.Tensors[i]
	if buf == nil || int64(cap(buf)) < t.Bytes {
		buf = make([]byte, t.Bytes)
	}
	buf = buf[:t.Bytes]
	if _, err := s.f.ReadAt(buf, s.start+t.offset); err != nil && !(err == io.EOF && t.Bytes == 0) {
		return nil, fmt.Errorf("%s: tensor %q: %w", s.path, t.Name, err)
	}
	return buf, nil
}

// Close closes the file.
func (s *File) Close() error { return s.f.Close() }

// Read reads a whole file: its tensors in the order of their data, and its
// metadata.
func Read(path string) ([]Tensor, map[string]string, error) {
	f, err := Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	list := make([]Tensor, len(f.Tensors))
	for i, t := range f.Tensors {
		data, err := f.Data(i, nil)
		if err != nil {
			return nil, nil, err
		}
		list[i] = Tensor{Name: t.Name, Type: t.Type, Shape: t.Shape, Data: data}
	}
	return list, f.Metadata, nil
}
