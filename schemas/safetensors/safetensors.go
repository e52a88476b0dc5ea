// Package safetensors reads and writes Hugging Face's safetensors files, the
// format of weights and optimiser state.
//
// A file is
//
//	8 bytes    n, the header's length, little-endian
//	n bytes    JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …}, padded with spaces
//	the rest   the tensors' elements, little-endian and row-major, one after the other
//
// data_offsets count from the end of the header; the tensors cover the data
// without holes. The key "__metadata__" holds strings by name instead of a
// tensor. A header may come from anywhere: it is checked in full before any
// tensor is read, and every error names the file and the tensor.
package safetensors

import "github.com/scavenge/scavenge/schemas/dtype"

// maxHeader is the reference implementation's limit, bytes.
const maxHeader = 100_000_000

// Tensor is a named array.
type Tensor struct {
	Name  string
	Type  dtype.Type // spelt as in the file; types that dtype does not know are opaque bytes
	Shape []int
	Data  []byte // little-endian, row-major
}

// Info is a tensor without its elements.
type Info struct {
	Name  string
	Type  dtype.Type
	Shape []int
	Bytes int64

	offset int64 // in the data
}

// width is the size of an element in bytes, 0 for a type that is opaque here.
func width(t dtype.Type) int {
	if n := t.Size(); n > 0 {
		return n
	}
	switch t {
	case "BOOL", "U8", "F8_E5M2", "F8_E4M3", "F8_E8M0":
		return 1
	case "U16", "I16":
		return 2
	case "U32":
		return 4
	case "U64", "C64":
		return 8
	}
	return 0
}
