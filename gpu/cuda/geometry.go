//go:build cuda

package cuda

import "math"

// What the kernels' templates fix: these mirror longconv.cu, fft.cuh and
// attention.cu.

// maxLength is the longest sequence that the convolution's transforms cover.
const maxLength = 8192

// grouping is how longconv.cu divides work for transforms of one size.
type grouping struct {
	groups, threads int // sequences a block works on at a time; threads of it
	shared          int // bytes
}

func convolution(points int) grouping {
	t := points / 16
	g := 1
	if t < 128 {
		g = 128 / t
	}
	return grouping{g, t * g, g * (points + points/16) * 8}
}

// tiling is how attention.cu cuts sequences for one head dimension.
type tiling struct{ dims, n int }

func tile(d int) tiling {
	t := tiling{16, 64}
	for t.dims < d {
		t.dims *= 2
	}
	if t.dims > 64 {
		t.n = 32
	}
	return t
}

// bytes of shared memory for tiles of positions × dimensions and of
// positions × positions.
func (t tiling) bytes(tiles, squares int) int {
	return 4 * (tiles*t.n*(t.dims+1) + squares*t.n*(t.n+1))
}

// scale is 1/√d of a head's dimension.
func scale(d int) float32 { return float32(1 / math.Sqrt(float64(d))) }

// columns is the block of kernels that sum columns: 32 columns by 8 rows.
var columns = [2]int{32, 8}
