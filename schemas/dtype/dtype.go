// Package dtype converts between float32 and the number formats that cross a
// process boundary: safetensors files and activation records.
package dtype

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
)

// Type is an element type, spelt as safetensors spells it.
type Type string

// The element types that our formats use. Int8 is symmetric, with a float32
// scale a token beside the values (activation records only).
const (
	Float32  Type = "F32"
	Float16  Type = "F16"
	BFloat16 Type = "BF16"
	Float64  Type = "F64"
	Int8     Type = "I8"
	Int32    Type = "I32"
	Int64    Type = "I64"
)

// Size is the bytes of one element; 0 for a type this package does not know.
func (t Type) Size() int {
	switch t {
	case Int8:
		return 1
	case Float16, BFloat16:
		return 2
	case Float32, Int32:
		return 4
	case Float64, Int64:
		return 8
	}
	return 0
}

// Parse reads the name that flags use: float32, float16, bfloat16 or int8.
func Parse(name string) (Type, error) {
	switch name {
	case "float32":
		return Float32, nil
	case "float16":
		return Float16, nil
	case "bfloat16":
		return BFloat16, nil
	case "int8":
		return Int8, nil
	}
	return "", fmt.Errorf("dtype %q: want float32, float16, bfloat16 or int8", name)
}

// Encode appends src to dst as little-endian elements of a float type,
// rounding to nearest even; float16 overflow becomes infinity.
func Encode(dst []byte, t Type, src []float32) ([]byte, error) {
	if t != Float32 && t != Float16 && t != BFloat16 {
		return dst, fmt.Errorf("dtype %s: not a float type to encode to", t)
	}
	n := len(dst)
	dst = slices.Grow(dst, t.Size()*len(src))[:n+t.Size()*len(src)]
	switch to := dst[n:]; t {
	case Float32:
		encodeFloat32(to, src)
	case Float16:
		encodeFloat16(to, src)
	case BFloat16:
		encodeBFloat16(to, src)
	}
	return dst, nil
}

// Decode fills dst from src, which must hold exactly len(dst) little-endian
// elements of a float type.
func Decode(dst []float32, t Type, src []byte) error {
	if t.Size() == 0 || len(src) != len(dst)*t.Size() {
		return fmt.Errorf("dtype %s: %d bytes do not hold %d elements", t, len(src), len(dst))
	}
	switch t {
	case Float32:
		decodeFloat32(dst, src)
	case Float16:
		decodeFloat16(dst, src)
	case BFloat16:
		decodeBFloat16(dst, src)
	case Float64:
		for i := range dst {
			dst[i] = float32(math.Float64frombits(binary.LittleEndian.Uint64(src[8*i:])))
		}
	default:
		return fmt.Errorf("dtype %s: not a float type to decode from", t)
	}
	return nil
}

// EncodeInt8 appends src / scale to dst, rounded to nearest even and cut to
// ±127. A scale that is not above zero stands for a row of zeros, or of values
// under float32's smallest.
func EncodeInt8(dst []byte, src []float32, scale float32) []byte {
	n := len(dst)
	dst = slices.Grow(dst, len(src))[:n+len(src)]
	if !(scale > 0) {
		clear(dst[n:])
		return dst
	}
	encodeInt8(dst[n:], src, scale)
	return dst
}

// DecodeInt8 fills dst with int8 · scale; src has as many elements.
func DecodeInt8(dst []float32, src []byte, scale float32) { decodeInt8(dst[:len(src)], src, scale) }

// MaxAbs is max|x|, 0 of none. NaN is above all numbers.
func MaxAbs(x []float32) float32 { return math.Float32frombits(maxAbs(x)) }
