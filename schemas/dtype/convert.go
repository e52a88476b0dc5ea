package dtype

import (
	"encoding/binary"
	"math"
)

// The portable twins of what is fast on amd64: the same bits for every input, NaNs
// included. They are also what the tests compare it with.

func encodeFloat32Twin(dst []byte, src []float32) {
	for i, v := range src {
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(v))
	}
}

func decodeFloat32Twin(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
	}
}

func encodeFloat16Twin(dst []byte, src []float32) {
	for i, v := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], float16Bits(v))
	}
}

func decodeFloat16Twin(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = float16Value(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

func encodeBFloat16Twin(dst []byte, src []float32) {
	for i, v := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], bfloat16Bits(v))
	}
}

func decodeBFloat16Twin(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16)
	}
}

func encodeInt8Twin(dst []byte, src []float32, scale float32) {
	for i, v := range src {
		dst[i] = byte(int8(max(-127, min(127, math.RoundToEven(float64(v)/float64(scale))))))
	}
}

func decodeInt8Twin(dst []float32, src []byte, scale float32) {
	for i, v := range src {
		dst[i] = float32(int8(v)) * scale
	}
}

func maxAbsTwin(x []float32) uint32 {
	var top uint32
	for _, v := range x {
		top = max(top, math.Float32bits(v)&0x7fffffff)
	}
	return top
}

// float16Bits rounds to IEEE 754 binary16, ties to even. A NaN stays one, quiet,
// with the upper bits of its payload.
func float16Bits(v float32) uint16 {
	b := math.Float32bits(v)
	sign := uint16(b >> 16 & 0x8000)
	abs := b & 0x7fffffff
	switch {
	case abs > 0x7f800000:
		return sign | 0x7e00 | uint16(abs>>13&0x1ff)
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
		if frac != 0 {
			frac |= 0x200 // quiet
		}
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
