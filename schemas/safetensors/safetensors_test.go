package safetensors

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/scavenge/scavenge/schemas/dtype"
)

func sample() []Tensor {
	return []Tensor{
		{Name: "half", Type: dtype.Float16, Shape: []int{3}, Data: []byte{1, 2, 3, 4, 5, 6}},
		{Name: "w", Type: dtype.Float32, Shape: []int{2, 2}, Data: bytes.Repeat([]byte{7}, 16)},
		{Name: "mask", Type: "BOOL", Shape: []int{1, 1, 5}, Data: []byte{1, 0, 1, 0, 1}},
		{Name: "scalar", Type: dtype.Int64, Shape: []int{}, Data: []byte{9, 0, 0, 0, 0, 0, 0, 0}},
		{Name: "none", Type: dtype.Float32, Shape: []int{0, 4}, Data: []byte{}},
	}
}

func byName(list []Tensor) map[string]Tensor {
	m := map[string]Tensor{}
	for _, t := range list {
		m[t.Name] = t
	}
	return m
}

func TestReadInvertsWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.safetensors")
	if err := Write(path, sample(), map[string]string{"epoch": "3"}); err != nil {
		t.Fatal(err)
	}
	got, meta, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"epoch": "3", "format": "pt"}; !reflect.DeepEqual(meta, want) {
		t.Errorf("metadata %v, want %v", meta, want)
	}
	if a, b := byName(got), byName(sample()); !reflect.DeepEqual(a, b) {
		t.Errorf("got %v\nwant %v", a, b)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := binary.LittleEndian.Uint64(raw); n%8 != 0 {
		t.Errorf("header of %d bytes leaves the data unaligned", n)
	}
	again := filepath.Join(t.TempDir(), "b.safetensors")
	if err := Write(again, sample(), map[string]string{"epoch": "3"}); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(again); !bytes.Equal(raw, b) {
		t.Error("the same tensors gave different bytes")
	}
}

// A file cut short anywhere is refused, in one line that names it.
func TestTruncatedAnywhereIsRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.safetensors")
	if err := Write(path, sample(), nil); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(dir, "cut.safetensors")
	for n := range raw {
		if err := os.WriteFile(cut, raw[:n], 0o666); err != nil {
			t.Fatal(err)
		}
		_, _, err := Read(cut)
		if err == nil {
			t.Fatalf("%d of %d bytes were read without an error", n, len(raw))
		}
		if !strings.Contains(err.Error(), cut) || strings.Contains(err.Error(), "\n") {
			t.Fatalf("%d bytes: %q is not one line that names the file", n, err)
		}
	}
	if err := os.WriteFile(cut, append(raw, 0), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Read(cut); err == nil {
		t.Error("a byte too many was not seen")
	}
}

func TestBadHeadersAreRefusedByTensor(t *testing.T) {
	for _, c := range []struct{ header, want string }{
		{`[]`, "not a JSON object"},
		{`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}`, "header"},
		{`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}} x`, "after its end"},
		{`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, `"a": there twice`},
		{`{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}`, `"a": 8 bytes, but shape [3] of F32 takes 12`},
		{`{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}`, `"a": shape [-2]`},
		{`{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}`, `"a": shape`},
		{`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,9]}}`, `"a": truncated`},
		{`{"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}`, `"a": data_offsets`},
		{`{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}`, `"a": data_offsets`},
		{`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}}`, `"a": data_offsets has 1`},
		{`{"a":{"dtype":"F32","shape":[2]}}`, `"a": data_offsets has 0`},
		{`{"a":{"dtype":"F32","data_offsets":[0,8]}}`, `"a": no shape`},
		{`{"a":{"shape":[2],"data_offsets":[0,8]}}`, `"a": no dtype`},
		{`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, "8 bytes of data, the tensors have 4"},
		{`{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, `"a": 4 bytes before it`},
		{`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, `"b": overlaps`},
		{`{"a":{"dtype":"F32","shape":[18446744073709551617],"data_offsets":[0,8]}}`, `"a"`},
		{`{"__metadata__":{"x":1},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, "__metadata__"},
	} {
		_, _, err := parseHeader([]byte(c.header), 8)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n  gave %v, want %q", c.header, err, c.want)
		}
	}
	path := filepath.Join(t.TempDir(), "huge")
	if err := os.WriteFile(path, binary.LittleEndian.AppendUint64(nil, 1<<62), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Read(path); err == nil || !strings.Contains(err.Error(), "not a safetensors file") {
		t.Errorf("a header of 2⁶² bytes: %v", err)
	}
}

func TestWriteRefusesWhatReadWould(t *testing.T) {
	dir := t.TempDir()
	for name, list := range map[string][]Tensor{
		"twice":     {{Name: "a", Type: dtype.Float32, Shape: []int{1}, Data: make([]byte, 4)}, {Name: "a", Type: dtype.Float32, Shape: []int{1}, Data: make([]byte, 4)}},
		"misshapen": {{Name: "a", Type: dtype.Float32, Shape: []int{2}, Data: make([]byte, 4)}},
		"reserved":  {{Name: "__metadata__", Type: dtype.Float32, Shape: []int{1}, Data: make([]byte, 4)}},
	} {
		path := filepath.Join(dir, name)
		if err := Write(path, list, nil); err == nil {
			t.Errorf("%s: written", name)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s: left a file", name)
		}
	}
}

// FuzzHeader: a header from anywhere gives an error or tensors that lie inside
// the data, cover it, and fit their shapes.
func FuzzHeader(f *testing.F) {
	f.Add([]byte(`{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  `), int64(8))
	f.Add([]byte(`{"a":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"b":{"dtype":"F4","shape":[3],"data_offsets":[8,10]}}`), int64(10))
	f.Add([]byte(`{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}`), int64(0))
	f.Add([]byte(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},"a":{}}`), int64(8))
	f.Fuzz(func(t *testing.T, header []byte, size int64) {
		if size < 0 {
			return
		}
		list, _, err := parseHeader(header, size)
		if err != nil {
			if strings.Contains(fmt.Sprintf("%q", err.Error()), `\n`) && !bytes.Contains(header, []byte{'\n'}) {
				t.Fatalf("error of several lines: %q", err)
			}
			return
		}
		var end int64
		for _, x := range list {
			if x.offset != end || x.Bytes < 0 {
				t.Fatalf("tensor %q: bytes %d to %d after %d", x.Name, x.offset, x.offset+x.Bytes, end)
			}
			end += x.Bytes
			n := int64(width(x.Type))
			for _, d := range x.Shape {
				n *= int64(d)
			}
			if width(x.Type) > 0 && n != x.Bytes {
				t.Fatalf("tensor %q: %v of %s in %d bytes", x.Name, x.Shape, x.Type, x.Bytes)
			}
		}
		if end != size {
			t.Fatalf("%d bytes of %d covered", end, size)
		}
	})
}
