//go:build cuda

package cuda

import "math"

// What the kernels' templates fix: these mirror longconv.cu, fft.cuh,
// residual.cu and attention.cu; longconv.go has longconv_stages.cu's.

// maxLength is the longest sequence that the convolution's transforms cover.
const maxLength = 131072

// maxRows is the sequences of attention's batches, a dimension of its grids.
const maxRows = 65535

// tablePoints is fft::MaxPoints, the resolution of its tables of roots.
const tablePoints = 8192

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

// toeplitz is how longconv_tensor.cu works on sequences of one length: shared
// memory of its two passes in bytes, and which variant of its kernels.
type toeplitz struct {
	forward, backward int
	variant           string
}

func toeplitzOf(length int) toeplitz {
	tiles := ceil(length, 128)
	stride, line := 128*tiles+8, 128*tiles+32
	t := toeplitz{48*stride + 4*line, 64*stride + 8*line + 128*tiles, "_any"}
	if length%8 == 0 {
		t.variant = "_aligned"
	}
	return t
}

// toeplitzRows is how many sequences one of its blocks works on.
const toeplitzRows = 8

// tiling is how attention.cu (float32), attention_tensor.cu and
// attention_hopper.cu (bf16) cut sequences for one head dimension.
type tiling struct {
	hopper         bool
	dims           int    // the head dimension filled up
	rows, threads  int    // of the tile that a block sums
	keys           [2]int // the same of the pass for dk and dv
	forward, kv, q int    // bytes of shared memory
}

// attentionTiles is the tiling for heads of d dimensions; hopper tells that the
// card is one.
func attentionTiles(d int, e element, hopper bool) tiling {
	t := tiling{dims: 16}
	for t.dims < d {
		t.dims *= 2
	}
	if e == bf16s && hopper && t.dims >= 64 {
		t.hopper, t.rows, t.threads = true, 128, 256
		// tiles of 64 rows that stay, and stages of two in a ring; barriers
		tile := 128 * t.dims
		t.keys, t.forward, t.q, t.kv = [2]int{64, 128}, (2+2*4)*tile, (4+2*4)*tile, (2+2*3)*tile+1024
		if t.dims > 64 {
			t.keys, t.forward, t.q, t.kv = [2]int{128, 256}, (2+2*3)*tile, (4+2*3)*tile, (4+2*3)*tile+2048
		}
		t.forward, t.q, t.kv = t.forward+128, t.q+128, t.kv+128
		return t
	}
	if e == bf16s {
		cols := 64
		if t.dims > 64 {
			cols = 32
		}
		t.rows, t.threads = 64, 128
		line := 2 * (t.dims + 8)
		t.forward, t.q = (64+4*cols)*line, (128+4*cols)*line
		t.kv = t.q + 16*cols
		t.keys = [2]int{t.rows, t.threads}
		return t
	}
	t.rows, t.threads = 64, 256
	if t.dims > 64 {
		t.rows = 32
	}
	tile, square := 4*t.rows*(t.dims+1), 4*t.rows*(t.rows+1)
	t.forward, t.kv, t.q = 3*tile+square, 4*tile+2*square, 4*tile+square
	t.keys = [2]int{t.rows, t.threads}
	return t
}

// chunks is the least instance of residual.cu whose warps cover rows of dim
// elements, up to maxDim.
func chunks(dim int) int {
	c := 1
	for 256*c < dim {
		c *= 2
	}
	return c
}

const maxDim = 32 * 256

// unrotates tells whether the backward pass takes a rotary embedding of so many
// pairs back from the gradients itself.
func (t tiling) unrotates(half int) bool {
	return t.hopper && half >= 8 && half&(half-1) == 0 && 2*half <= t.dims
}

// scale is 1/√d of a head's dimension.
func scale(d int) float32 { return float32(1 / math.Sqrt(float64(d))) }

// columns is the block of kernels that sum columns: 32 columns by 8 rows.
var columns = [2]int{32, 8}
