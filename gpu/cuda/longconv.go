//go:build cuda

package cuda

import "fmt"

// The long convolution by transforms: of longconv.cu where one block's shared
// memory holds a transform, of longconv_stages.cu above.

const (
	// blockPoints is the longest transform that one block does.
	blockPoints = 8192
	// rowPoints is a row of a longer one: fft::Row.
	rowPoints = 4096
	// slicePoints are those of a slice, or of one transform where that is more;
	// stageLag the steps between its stages. Scratch is 3·lag slices forward and 6·lag +
	// 1 backward, 8 bytes a point, whatever the batch: 19 and 40 MB, which the
	// L2 cache holds in part.
	slicePoints, stageLag = 256 << 10, 3
)

// stage is how longconv_stages.cu cuts a pass: its Cut.
type stage struct {
	channels, sequences int // of a slice
	slices, blocks      int // of a pass
}

// scratch of so many slices in bytes.
func (s stage) scratch(slices, points int) int64 {
	return 8 * int64(slices) * int64(points) * int64(s.channels*s.sequences)
}

func stageOf(points, rows, dim int, backward bool) stage {
	s := stage{channels: 1, sequences: 1}
	groups := 1
	if backward {
		groups = stageLag + 1
	} else {
		s.sequences = min(rows, max(1, slicePoints/points))
	}
	s.channels = min(dim, max(1, slicePoints/(points*s.sequences)))
	s.slices = ceil(dim, s.channels*groups) * groups * ceil(rows, s.sequences)
	s.blocks = (s.slices + 2*stageLag) * s.channels * s.sequences * (points/rowPoints + 2*columnBlocks(points))
	return s
}

// columnBlocks is how many blocks transform the columns of so many points: a
// thread of 256 has 16 points, or a whole column.
func columnBlocks(points int) int { return min(points/rowPoints, 16) }

// rowShared is the shared memory of a row's transform in bytes.
const rowShared = (rowPoints + rowPoints/16) * 8

// spectrum is the filter's transform from its taps in b.f.
func (p *pass) spectrum(k *block) {
	b, d := p.b, p.config.Dim
	if b.points <= blockPoints {
		c := convolution(b.points)
		p.launch(fmt.Sprintf("filter_spectrum_%d", b.points), [3]int{d, 1, 1}, [2]int{b.points / 16, 1}, c.shared/c.groups,
			b.f, p.decays, k.spectrum, b.length, b.ldf, p.step(), p.roots, p.halves)
		return
	}
	p.launch(fmt.Sprintf("longconv_enter_filter_%d", b.points), [3]int{columnBlocks(b.points), d, 1}, [2]int{256, 1}, 0, b.f, p.decays, k.spectrum, b.length, b.ldf, p.step())
	p.launch("longconv_rows_filter", [3]int{b.points / rowPoints, d, 1}, [2]int{256, 1}, rowShared, k.spectrum, p.roots)
}

// convolve is y = q ⊙ (h ∗ u + β ⊙ u).
func (p *pass) convolve(k *block, beta ptr) {
	b, d := p.b, p.config.Dim
	if b.points <= blockPoints {
		c := convolution(b.points)
		p.kernel(fmt.Sprintf("longconv_forward_%d", b.points), [3]int{d, min(ceil(b.rows, c.groups), max(1, 2048/d)), 1}, [2]int{c.threads, 1}, c.shared,
			k.u, k.q, k.spectrum, beta, k.y, b.rows, b.length, b.ld, p.roots, p.halves)
		return
	}
	s := stageOf(b.points, b.rows, d, false)
	p.zero(b.done, 4*3*int64(s.slices))
	p.kernel(fmt.Sprintf("longconv_forward_%d", b.points), [3]int{s.blocks, 1, 1}, [2]int{256, 1}, rowShared,
		k.u, k.q, k.spectrum, beta, k.y, k.c, b.scratch[0], b.done, stageLag, s.channels, s.sequences, d, b.rows, b.length, b.ld, p.roots)
}

// convolveBackward leaves b.dq, b.du, and slices of sums in b.dh and b.dbeta.
// Above blockPoints it uses the spectrum up.
func (p *pass) convolveBackward(k *block, beta ptr) {
	b, d := p.b, p.config.Dim
	if b.points <= blockPoints {
		c := convolution(b.points)
		p.kernel(fmt.Sprintf("longconv_backward_%d", b.points), [3]int{d, b.parts, 1}, [2]int{c.threads, 1}, c.shared,
			k.u, k.q, k.spectrum, beta, b.dy, b.dq, b.du, b.dh, b.dbeta, b.rows, b.length, b.ld, b.ldf, p.roots, p.halves)
		return
	}
	s := stageOf(b.points, b.rows, d, true)
	p.zero(b.done, 4*3*int64(s.slices))
	p.kernel(fmt.Sprintf("longconv_backward_%d", b.points), [3]int{s.blocks, 1, 1}, [2]int{256, 1}, rowShared, k.u, k.q, k.c, k.spectrum, beta, b.dy, b.dq, b.du, b.dbeta,
		b.scratch[0], b.scratch[1], b.scratch[2], b.done, stageLag, s.channels, d, b.rows, b.length, b.ld, p.roots)
	p.launch(fmt.Sprintf("longconv_leave_filter_%d", b.points), [3]int{columnBlocks(b.points), d, 1}, [2]int{256, 1}, 0, k.spectrum, b.dh, b.length, b.ldf)
}
