package safetensors

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"sort"

	"github.com/scavenge/scavenge/schemas/durable"
)

// Write makes a file of tensors. The metadata gets {"format": "pt"}, without
// which transformers does not load a file.
func Write(path string, tensors []Tensor, metadata map[string]string) error {
	list := make([]Info, len(tensors))
	for i, t := range tensors {
		list[i] = Info{Name: t.Name, Type: t.Type, Shape: t.Shape, Bytes: int64(len(t.Data))}
	}
	return WriteStream(path, list, metadata, func(i int, w io.Writer) error {
		_, err := w.Write(tensors[i].Data)
		return err
	})
}

// WriteStream is Write for tensors that are made while the file is written:
// data is called once for each tensor, in an order of its own, and must write
// exactly Bytes bytes.
func WriteStream(path string, tensors []Info, metadata map[string]string, data func(i int, w io.Writer) error) error {
	// Wide elements first, so that every tensor is aligned to its element.
	order := make([]int, len(tensors))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(a, b int) bool { return width(tensors[order[a]].Type) > width(tensors[order[b]].Type) })
	header, err := makeHeader(tensors, order, metadata)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return durable.WriteFile(path, func(w io.Writer) error {
		if _, err := w.Write(header); err != nil {
			return err
		}
		for _, i := range order {
			c := counter{w: w}
			if err := data(i, &c); err != nil {
				return fmt.Errorf("tensor %q: %w", tensors[i].Name, err)
			}
			if c.n != tensors[i].Bytes {
				return fmt.Errorf("tensor %q: %d bytes were written, want %d", tensors[i].Name, c.n, tensors[i].Bytes)
			}
		}
		return nil
	})
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// makeHeader is the length and the header, so that the data starts at a
// multiple of 8 bytes.
func makeHeader(tensors []Info, order []int, metadata map[string]string) ([]byte, error) {
	all := maps.Clone(metadata)
	if all == nil {
		all = map[string]string{}
	}
	all["format"] = "pt"
	meta, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	b := append(make([]byte, 8), `{"__metadata__":`...)
	b = append(b, meta...)
	seen := map[string]bool{"__metadata__": true}
	var offset int64
	for _, i := range order {
		t := tensors[i]
		if seen[t.Name] {
			return nil, fmt.Errorf("tensor %q: there twice, or a reserved name", t.Name)
		}
		seen[t.Name] = true
		e := entry{Type: string(t.Type), Shape: make([]int64, len(t.Shape)), Offsets: []int64{offset, offset + t.Bytes}}
		for j, d := range t.Shape {
			e.Shape[j] = int64(d)
		}
		if _, err := e.check(t.Name, e.Offsets[1]); err != nil {
			return nil, fmt.Errorf("tensor %q: %w", t.Name, err)
		}
		offset += t.Bytes
		name, err := json.Marshal(t.Name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(e)
		if err != nil {
			return nil, err
		}
		b = append(append(append(append(b, ','), name...), ':'), value...)
	}
	b = append(b, '}')
	for len(b)%8 != 0 {
		b = append(b, ' ')
	}
	if len(b)-8 > maxHeader {
		return nil, fmt.Errorf("header of %d bytes: over the format's limit of %d", len(b)-8, maxHeader)
	}
	binary.LittleEndian.PutUint64(b, uint64(len(b)-8))
	return b, nil
}
