// Package simd holds the few inner loops in which the cpu engine spends its
// time: a matrix product tile by tile, and element-wise functions over slices.
// On amd64 with AVX2 and FMA they are assembly; elsewhere, or with the build
// tag purego, they are the Go twins in twin.go, which compute the same sums in
// the same order up to the rounding of a fused multiply-add.
//
// No function here depends on the number of threads, and none treats the end
// of a slice differently from its middle, so a row's results do not depend on
// the rows around it.
package simd

// Rows of a tile of the matrix product, and its columns: 64 bytes of them.
const (
	Rows   = 6
	Cols32 = 16
	Cols64 = 8
)

// chunk bounds the elements summed in float32 before a sum goes on in float64.
const chunk = 512

// Tile32 computes a tile of a matrix product, C[i][j] = Σ_k A[i][k]·B[k][j]
// for 6 rows i and 16 columns j, or adds it to C. A's element (i, k) is
// a[i·ra + k·ca], B's row k starts at b[k·rb] and holds 16 elements, C's row i
// starts at c[i·rc]. rb may be negative or less than 16: overlapping rows make
// a Toeplitz matrix of a vector, and so a convolution of the product; bo is
// the index in b of row 0.
func Tile32(n int, a []float32, ra, ca int, b []float32, bo, rb int, c []float32, rc int, add bool) {
	if n <= 0 {
		if !add {
			clearTile(c, rc, Cols32)
		}
		return
	}
	// the tile's corners, so that a wrong call panics here and not in assembly
	_ = a[(Rows-1)*ra+(n-1)*ca]
	_, _ = b[bo:bo+Cols32], b[bo+(n-1)*rb:bo+(n-1)*rb+Cols32]
	_ = c[(Rows-1)*rc+Cols32-1]
	tile32(n, a, ra, ca, b, bo, rb, c, rc, add)
}

// Tile64 is Tile32 in float64, with 8 columns.
func Tile64(n int, a []float64, ra, ca int, b []float64, bo, rb int, c []float64, rc int, add bool) {
	if n <= 0 {
		if !add {
			clearTile(c, rc, Cols64)
		}
		return
	}
	_ = a[(Rows-1)*ra+(n-1)*ca]
	_, _ = b[bo:bo+Cols64], b[bo+(n-1)*rb:bo+(n-1)*rb+Cols64]
	_ = c[(Rows-1)*rc+Cols64-1]
	tile64(n, a, ra, ca, b, bo, rb, c, rc, add)
}

func clearTile[T float32 | float64](c []T, rc, cols int) {
	for i := range Rows {
		clear(c[i*rc : i*rc+cols])
	}
}

// Exp sets dst[i] = exp(scale·(x[i] − shift)) and returns the sum. The largest
// relative error of an element is 4e-7 for arguments of −10 to 0 and grows with the argument's own rounding
// (6e-8 · |argument|) beyond; arguments below −87 give about 1e-38, NaN stays
// NaN. dst may be x.
func Exp(dst, x []float32, scale, shift float32) float64 {
	sum := 0.0
	for len(x) > 0 {
		n := min(len(x), chunk)
		sum += expChunk(dst[:n], x[:n], scale, shift)
		dst, x = dst[n:], x[n:]
	}
	return sum
}

// GELU sets y = h·Φ(h) and d = Φ(h) + h·φ(h), its derivative, where Φ and φ
// are the normal distribution's and its density (erf GELU, Hendrycks and
// Gimpel 2016). Largest error 1e-6 relative to max(|y|, 1e-6). y or d may be h.
func GELU(y, d, h []float32) {
	if len(h) > 0 {
		gelu(y[:len(h)], d[:len(h)], h)
	}
}

// Max is the largest element of a slice that is not empty; NaNs may be passed over.
func Max(x []float32) float32 {
	m := x[0]
	for _, v := range x[1:] {
		m = max(m, v)
	}
	return m
}

// Add sets dst += x.
func Add(dst, x []float32) { AddScaled(dst, x, 1) }

// AddScaled sets dst += s·x.
func AddScaled(dst, x []float32, s float32) {
	if len(x) > 0 {
		addScaled(dst[:len(x)], x, s)
	}
}

// AddProduct sets dst += x ⊙ y.
func AddProduct(dst, x, y []float32) {
	if len(x) > 0 {
		addProduct(dst[:len(x)], x, y[:len(x)])
	}
}

// Product sets dst = x ⊙ y; dst may be either.
func Product(dst, x, y []float32) {
	if len(x) > 0 {
		product(dst[:len(x)], x, y[:len(x)])
	}
}

// Scale sets dst = s·x; dst may be x.
func Scale(dst, x []float32, s float32) {
	if len(x) > 0 {
		scale(dst[:len(x)], x, s)
	}
}
