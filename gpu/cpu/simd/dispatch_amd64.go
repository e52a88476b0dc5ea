//go:build amd64 && !purego

package simd

import (
	"unsafe"

	"golang.org/x/sys/cpu"
)

// fast tells whether this processor runs the assembly.
var fast = cpu.X86.HasAVX2 && cpu.X86.HasFMA

// The assembly takes strides in bytes, and for element-wise loops a count that
// is a multiple of 8: what is left goes through a buffer of 8, so that every
// element sees the same instructions.

//go:noescape
func tile32asm(n int, a *float32, ra, ca int, b *float32, rb int, c *float32, rc int, add bool)

//go:noescape
func tile64asm(n int, a *float64, ra, ca int, b *float64, rb int, c *float64, rc int, add bool)

// constants are the broadcast tables the assembly reads: Taylor coefficients,
// the tail's, then the scalars in the order of the offsets in simd_amd64.s.
var constants = func() (t [28][8]float32) {
	list := append(append([]float32{}, taylor[:]...), tail[:]...)
	list = append(list, log2e, ln2Hi, ln2Lo, expLow, expHigh, invSqrt2Pi, tailStep, -0.5, 1)
	for i, v := range list {
		for j := range t[i] {
			t[i][j] = v
		}
	}
	return t
}()

//go:noescape
func exp32asm(n int, dst, x *float32, scale, shift float32, constants *[28][8]float32, lanes *[8]float32)

//go:noescape
func gelu32asm(n int, y, d, h *float32, constants *[28][8]float32)

//go:noescape
func addScaled32asm(n int, dst, x *float32, s float32)

//go:noescape
func addProduct32asm(n int, dst, x, y *float32)

//go:noescape
func product32asm(n int, dst, x, y *float32)

//go:noescape
func scale32asm(n int, dst, x *float32, s float32)

//go:noescape
func copyLines64asm(n int, dst, src unsafe.Pointer, stride int)

//go:noescape
func gather32asm(tiles, n int, dst *float32, tile int, src *float32, stride int)

//go:noescape
func max32asm(n int, x *float32) float32

func tile32(n int, a []float32, ra, ca int, b []float32, bo, rb int, c []float32, rc int, add bool) {
	if !fast {
		tileTwin(n, a, ra, ca, b, bo, rb, c, rc, cols32, add)
		return
	}
	tile32asm(n, &a[0], 4*ra, 4*ca, &b[bo], 4*rb, &c[0], 4*rc, add)
}

func tile64(n int, a []float64, ra, ca int, b []float64, bo, rb int, c []float64, rc int, add bool) {
	if !fast {
		tileTwin(n, a, ra, ca, b, bo, rb, c, rc, cols64, add)
		return
	}
	tile64asm(n, &a[0], 8*ra, 8*ca, &b[bo], 8*rb, &c[0], 8*rc, add)
}

func expChunk(dst, x []float32, scale, shift float32) float64 {
	if !fast {
		return expChunkTwin(dst, x, scale, shift)
	}
	var lanes [8]float32
	n := len(x) &^ 7
	if n > 0 {
		exp32asm(n, &dst[0], &x[0], scale, shift, &constants, &lanes)
	}
	sum := 0.0
	for _, v := range lanes {
		sum += float64(v)
	}
	if n < len(x) {
		var in, out [8]float32
		copy(in[:], x[n:])
		exp32asm(8, &out[0], &in[0], scale, shift, &constants, &lanes)
		for i := range copy(dst[n:], out[:len(x)-n]) {
			sum += float64(out[i])
		}
	}
	return sum
}

func gelu(y, d, h []float32) {
	if !fast {
		geluTwin(y, d, h)
		return
	}
	n := len(h) &^ 7
	if n > 0 {
		gelu32asm(n, &y[0], &d[0], &h[0], &constants)
	}
	if n < len(h) {
		var in, outY, outD [8]float32
		copy(in[:], h[n:])
		gelu32asm(8, &outY[0], &outD[0], &in[0], &constants)
		copy(y[n:], outY[:len(h)-n])
		copy(d[n:], outD[:len(h)-n])
	}
}

func addScaled(dst, x []float32, s float32) {
	if !fast {
		addScaledTwin(dst, x, s)
		return
	}
	n := len(x) &^ 7
	if n > 0 {
		addScaled32asm(n, &dst[0], &x[0], s)
	}
	if n < len(x) {
		var a, b [8]float32
		copy(a[:], dst[n:])
		copy(b[:], x[n:])
		addScaled32asm(8, &a[0], &b[0], s)
		copy(dst[n:], a[:len(x)-n])
	}
}

func addProduct(dst, x, y []float32) {
	if !fast {
		addProductTwin(dst, x, y)
		return
	}
	n := len(x) &^ 7
	if n > 0 {
		addProduct32asm(n, &dst[0], &x[0], &y[0])
	}
	if n < len(x) {
		var a, b, c [8]float32
		copy(a[:], dst[n:])
		copy(b[:], x[n:])
		copy(c[:], y[n:])
		addProduct32asm(8, &a[0], &b[0], &c[0])
		copy(dst[n:], a[:len(x)-n])
	}
}

func product(dst, x, y []float32) {
	if !fast {
		productTwin(dst, x, y)
		return
	}
	n := len(x) &^ 7
	if n > 0 {
		product32asm(n, &dst[0], &x[0], &y[0])
	}
	for i := n; i < len(x); i++ { // one rounding, as in a lane
		dst[i] = x[i] * y[i]
	}
}

func scale(dst, x []float32, s float32) {
	if !fast {
		scaleTwin(dst, x, s)
		return
	}
	n := len(x) &^ 7
	if n > 0 {
		scale32asm(n, &dst[0], &x[0], s)
	}
	for i := n; i < len(x); i++ {
		dst[i] = s * x[i]
	}
}

func maximum(x []float32) float32 {
	n := len(x) &^ 7
	if !fast || n == 0 {
		return maxTwin(x)
	}
	m := max32asm(n, &x[0])
	for _, v := range x[n:] {
		m = max(m, v)
	}
	return m
}

func copyRows32(n int, dst, src []float32, stride int) {
	if !fast {
		copyRowsTwin(n, dst, src, stride, cols32)
		return
	}
	copyLines64asm(n, unsafe.Pointer(&dst[0]), unsafe.Pointer(&src[0]), 4*stride)
}

func copyRows64(n int, dst, src []float64, stride int) {
	if !fast {
		copyRowsTwin(n, dst, src, stride, cols64)
		return
	}
	copyLines64asm(n, unsafe.Pointer(&dst[0]), unsafe.Pointer(&src[0]), 8*stride)
}

func gather32(tiles, n int, dst, src []float32, stride int) {
	if !fast {
		gatherTwin(tiles, n, dst, src, stride)
		return
	}
	gather32asm(tiles, n, &dst[0], 4*n*Rows, &src[0], 4*stride)
}
