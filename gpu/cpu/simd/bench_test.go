package simd

import "testing"

// BenchmarkTile is the ceiling of the matrix product: one tile, all in the
// first-level cache.
func BenchmarkTile(b *testing.B) {
	const n = 256
	a, p, c := uniform(Rows*n, -1, 1), uniform(cols32*n, -1, 1), make([]float32, Rows*cols32)
	for b.Loop() {
		Tile(n, a, n, 1, p, 0, cols32, c, cols32, true)
	}
	b.ReportMetric(2*Rows*cols32*n*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
}

func BenchmarkGELU(b *testing.B) {
	h := uniform(4096, -4, 4)
	y, d := make([]float32, len(h)), make([]float32, len(h))
	for b.Loop() {
		GELU(y, d, h)
	}
	b.ReportMetric(b.Elapsed().Seconds()*1e9/float64(b.N*len(h)), "ns/element")
}

func BenchmarkExp(b *testing.B) {
	x := uniform(4096, -10, 0)
	y := make([]float32, len(x))
	for b.Loop() {
		Exp(y, x, 1, 0)
	}
	b.ReportMetric(b.Elapsed().Seconds()*1e9/float64(b.N*len(x)), "ns/element")
}
