// Package dtype converts between float32 and the number formats that cross a
// process boundary: safetensors files and activation records.
package dtype

import (
	"encoding/binary"
	"fmt"
	"math"
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
	switch t {
	case Float32:
		for _, v := range src {
			dst = binary.LittleEndian.AppendUint32(dst, math.Float32bits(v))
		}
	case Float16:
		for _, v := range src {
			dst = binary.LittleEndian.AppendUint16(dst, float16Bits(v))
		}
	case BFloat16:
		for _, v := range src {
			dst = binary.LittleEndian.AppendUint16(dst, bfloat16Bits(v))
		}
	default:
		return dst, fmt.Errorf("dtype %s: not a float type to encode to", t)
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
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
		}
	case Float16:
		for i := range dst {
			dst[i] = float16Value(binary.LittleEndian.Uint16(src[2*i:]))
		}
	case BFloat16:
		for i := range dst {
			dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16)
		}
	case Float64:
		for i := range dst {
			dst[i] = float32(math.Float64frombits(binary.LittleEndian.Uint64(src[8*i:])))
		}
	default:
		return fmt.Errorf("dtype %s: not a float type to decode from", t)
	}
	return nil
}

// float16Bits rounds to IEEE 754 binary16, ties to even.
func float16Bits(v float32) uint16 {
	b := math.Float32bits(v)
	sign := uint16(b >> 16 & 0x8000)
	abs := b & 0x7fffffff
	switch {
	case abs > 0x7f800000: // NaN stays NaN
		return sign | 0x7e00
	case abs >= 0x477ff000: // rounds past 65504: infinity
		return sign | 0x7c00
	case abs < 0x38800000: // subnormal in binary16: let a float32 addition do the rounding
		return sign | uint16(math.Float32bits(math.Float32frombits(abs)+0.5)-0x3f000000)
	}
	return sign | uint16((abs+0xfff+(abs>>13&1)-0x38000000)>>13)
}

func float16Value(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	exp, frac := uint32(h>>10&0x1f), uint32(h&0x3ff)
	switch exp {
	case 0: // zero and subnormals: frac · 2⁻²⁴
		v := float32(frac) * (1.0 / (1 << 24))
		return math.Float32frombits(sign | math.Float32bits(v))
	case 0x1f:
		return math.Float32frombits(sign | 0x7f800000 | frac<<13)
	}
	return math.Float32frombits(sign | (exp+112)<<23 | frac<<13)
}

// bfloat16Bits rounds to the upper half of a float32, ties to even.
func bfloat16Bits(v float32) uint16 {
	b := math.Float32bits(v)
	if b&0x7fffffff > 0x7f800000 {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7fff + (b >> 16 & 1)) >> 16)
}
