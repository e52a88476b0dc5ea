//go:build amd64 && !purego

package dtype

import (
	"unsafe"

	"golang.org/x/sys/cpu"
)

// fast tells whether this processor runs the assembly.
var fast = cpu.X86.HasAVX2 && cpu.X86.HasF16C

// The assembly takes a count of elements that is a multiple of 8, above 0; the
// twins do what is left.

//go:noescape
func encodeFloat16asm(n int, dst *byte, src *float32)

//go:noescape
func decodeFloat16asm(n int, dst *float32, src *byte)

//go:noescape
func encodeBFloat16asm(n int, dst *byte, src *float32)

//go:noescape
func decodeBFloat16asm(n int, dst *float32, src *byte)

//go:noescape
func encodeInt8asm(n int, dst *byte, src *float32, scale float64)

//go:noescape
func decodeInt8asm(n int, dst *float32, src *byte, scale float32)

//go:noescape
func maxAbsasm(n int, x *float32) uint32

// vectors is how many of n elements the assembly does.
func vectors(n int) int {
	if !fast {
		return 0
	}
	return n &^ 7
}

// bytesOf are a slice's own, which are little-endian here.
func bytesOf(x []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x))), 4*len(x))
}

func encodeFloat32(dst []byte, src []float32) { copy(dst[:4*len(src)], bytesOf(src)) }
func decodeFloat32(dst []float32, src []byte) { copy(bytesOf(dst), src[:4*len(dst)]) }

func encodeFloat16(dst []byte, src []float32) {
	n := vectors(len(src))
	if n > 0 {
		encodeFloat16asm(n, &dst[:2*n][0], &src[0])
	}
	encodeFloat16Twin(dst[2*n:], src[n:])
}

func decodeFloat16(dst []float32, src []byte) {
	n := vectors(len(dst))
	if n > 0 {
		decodeFloat16asm(n, &dst[0], &src[:2*n][0])
	}
	decodeFloat16Twin(dst[n:], src[2*n:])
}

func encodeBFloat16(dst []byte, src []float32) {
	n := vectors(len(src))
	if n > 0 {
		encodeBFloat16asm(n, &dst[:2*n][0], &src[0])
	}
	encodeBFloat16Twin(dst[2*n:], src[n:])
}

func decodeBFloat16(dst []float32, src []byte) {
	n := vectors(len(dst))
	if n > 0 {
		decodeBFloat16asm(n, &dst[0], &src[:2*n][0])
	}
	decodeBFloat16Twin(dst[n:], src[2*n:])
}

func encodeInt8(dst []byte, src []float32, scale float32) {
	n := vectors(len(src))
	if n > 0 {
		encodeInt8asm(n, &dst[:n][0], &src[0], float64(scale))
	}
	encodeInt8Twin(dst[n:], src[n:], scale)
}

func decodeInt8(dst []float32, src []byte, scale float32) {
	n := vectors(len(src))
	if n > 0 {
		decodeInt8asm(n, &dst[:n][0], &src[0], scale)
	}
	decodeInt8Twin(dst[n:], src[n:], scale)
}

func maxAbs(x []float32) uint32 {
	n := vectors(len(x))
	var top uint32
	if n > 0 {
		top = maxAbsasm(n, &x[0])
	}
	return max(top, maxAbsTwin(x[n:]))
}
