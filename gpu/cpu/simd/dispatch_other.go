//go:build !amd64 || purego

package simd

func tile32(n int, a []float32, ra, ca int, b []float32, bo, rb int, c []float32, rc int, add bool) {
	tileTwin(n, a, ra, ca, b, bo, rb, c, rc, cols32, add)
}

func tile64(n int, a []float64, ra, ca int, b []float64, bo, rb int, c []float64, rc int, add bool) {
	tileTwin(n, a, ra, ca, b, bo, rb, c, rc, cols64, add)
}

func expChunk(dst, x []float32, scale, shift float32) float64 {
	return expChunkTwin(dst, x, scale, shift)
}

func gelu(y, d, h []float32)                { geluTwin(y, d, h) }
func addScaled(dst, x []float32, s float32) { addScaledTwin(dst, x, s) }
func addProduct(dst, x, y []float32)        { addProductTwin(dst, x, y) }
func product(dst, x, y []float32)           { productTwin(dst, x, y) }
func scale(dst, x []float32, s float32)     { scaleTwin(dst, x, s) }

func maximum(x []float32) float32 { return maxTwin(x) }

func copyRows32(n int, dst, src []float32, stride int) { copyRowsTwin(n, dst, src, stride, cols32) }
func copyRows64(n int, dst, src []float64, stride int) { copyRowsTwin(n, dst, src, stride, cols64) }
func gather32(tiles, n int, dst, src []float32, stride int) {
	gatherTwin(tiles, n, dst, src, stride)
}
