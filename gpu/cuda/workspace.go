//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"slices"

	"gorgonia.org/cu"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
)

const (
	// sumParts is how many parts column sums over rows are cut into.
	sumParts = 64
	// streamBlocks is the grid of residual.cu's backward kernels, which leave sums
	// a block.
	streamBlocks = 264
	// logitBytes bounds a chunk of logits.
	logitBytes = 400 << 20
	// exponentialBytes bounds a chunk of what head_hopper.cu has instead.
	exponentialBytes = 900 << 20
)

// workspace is one allocation that holds what a call computes, laid out anew
// for each call and kept while it is large enough, so that steps allocate
// nothing.
type workspace struct {
	base ptr
	size int64
}

// layout hands out parts of a workspace; with no base it only counts.
type layout struct {
	base ptr
	used int64
}

func (l *layout) take(bytes int64) ptr {
	p := l.base + ptr(l.used)
	l.used += (bytes + 255) &^ 255
	return p
}

// job says what a call needs.
type job struct {
	rows, length int
	top          int   // last block that is computed; −1: none
	from         int   // first block that is differentiated; top + 1: none
	embed        bool  // the token embedding is differentiated
	head         bool  // final norm and logits
	soft         bool  // a teacher's logits beside
	tensor       bool  // the convolution by longconv_tensor.cu instead of transforms
	fused        int   // multiprocessors for products with epilogues of our own; 0: all are cuBLASLt's
	keep         []int // layers, ascending, after which the residual stream is wanted when all is computed
	targets      []gpu.Target
}

// trains tells whether anything is differentiated.
func (j job) trains() bool { return j.from <= j.top || j.embed }

// exponentials tells whether head_hopper.cu takes the place of logits.
func (j job) exponentials() bool { return j.fused > 0 && j.head && !j.soft && j.trains() }

// fusesGelu tells whether mlp_hopper.cu takes the place of gelu.cu.
func (j job) fusesGelu(c checkpoint.Config) bool { return j.fused > 0 && c.Dim <= matmulResident }

// keeps tells whether the residual stream after a layer is wanted later.
func (j job) keeps(layer int) bool { return slices.Contains(j.keep, layer) }

// block holds what one block computes. Frozen blocks share one and keep
// nothing; a block that is differentiated has its own.
type block struct {
	x    ptr // residual stream before it, float32 [N, D]
	h    ptr // x̂ of both norms [N, D]
	rstd ptr // float32 [N]
	a, g ptr // MLP before and after GELU [N, Hidden]
	// student, channel-major
	z, y     ptr    // [3D, ld], [D, ld]
	q, u     ptr    // float32 [D, ld]
	c        ptr    // the long convolution [D, ld], where longconv_stages.cu keeps it for its backward pass
	ffn      ptr    // the filter's FFN weights in float64
	pre, act [3]ptr // its hidden layers, float64 [L, W]
	spectrum ptr    // complex [D, points]
	taps     ptr    // the filter without its window, float32 [D, ldf]
	// teacher
	qkv, o, lse ptr // [N, 3D], [N, D], float32 [B, heads, L]
}

// buffers is a workspace laid out for a job.
type buffers struct {
	job
	n, ld, ldf int // tokens; columns of channel-major rows; of the filter's
	points     int // of a transform
	parts      int // slices of the batch in the convolution's backward pass
	betas      int // of dβ's sums
	tokens     ptr
	lowest     int     // first block that is computed; those below are in the prefix's cache
	rowSlots   []int32 // where each sequence is kept there
	slots      ptr     // the same on the device
	blocks     []block // of layers 0 … top
	frozen     block
	x          ptr // residual stream where it is not kept: what is before a block is overwritten by what is after it
	mixed, fed ptr // what a block adds to it, by its mixer and its MLP [N, D]
	// f is the output of a filter's FFN and then its gradient, one layer's at a
	// time: float64 [D, ldf]. scratch is longconv_stages.cu's U, V and S, done
	// its counts.
	f, done ptr
	scratch [3]ptr

	// head
	hf, fmean, frstd     ptr
	chunk, ldv           int // rows of logits at a time; columns
	logits, teacher      ptr
	reference, factor    ptr // head_hopper.cu's c and f, float32 [N]
	expSums, expTotal    ptr // and of a chunk, whose E takes the logits' place: parts of S, S,
	shift, scaled        ptr // shift, X̃
	nll, kl              ptr
	losses               ptr   // float64, one a term
	target, scales       []ptr // one a target
	partial              ptr   // slices of column sums, float32
	sidePartial          ptr   // the filters' own, float64
	columns              ptr   // of dx, float32 [streamBlocks, D]
	dx                   ptr   // gradient of the residual stream [N, D]
	dg, dh1, dh2         ptr
	turned, geluSums     ptr // geluDown's: a weight transposed, sums of the bias's gradient
	dy, dq, du, dz       ptr
	dh, dbeta, shorts    ptr // slices of the batch, float32
	dact, dffn           ptr // float64
	dqkv, do, delta      ptr
	order, start         ptr
	ids, firsts, counted ptr
	segments             ptr
}

// lay lays a job out over l; ffn is the elements that a filter's FFN takes in
// the flat buffers.
func lay(l *layout, c checkpoint.Config, e element, ffn int64, j job) *buffers {
	n := j.rows * j.length
	b := &buffers{job: j, n: n, ld: round(n, 8), ldf: round(j.length, 8), points: points(j.length)}
	N, D, ld, es := int64(n), int64(c.Dim), int64(b.ld), e.size()
	b.tokens, b.slots = l.take(4*N), l.take(4*int64(j.rows))
	b.losses = l.take(8 * int64(c.Layers+2))
	newBlock := func() (k block) {
		k.h, k.rstd = l.take(es*N*D), l.take(4*N)
		k.a = l.take(es * N * int64(c.Hidden))
		k.g = l.take(es * N * int64(c.Hidden))
		if c.Architecture == checkpoint.HyenaNeoX {
			k.z, k.y = l.take(es*3*D*ld), l.take(es*D*ld)
			if !j.tensor {
				k.q, k.u = l.take(4*D*ld), l.take(4*D*ld)
			}
			k.ffn = l.take(8 * ffn)
			for i := range k.pre {
				k.pre[i], k.act[i] = l.take(8*int64(j.length*c.Hyena.Width)), l.take(8*int64(j.length*c.Hyena.Width))
			}
		} else {
			k.qkv, k.o, k.lse = l.take(es*3*N*D), l.take(es*N*D), l.take(4*N*int64(c.Attention.Heads))
		}
		return k
	}
	b.x, b.mixed, b.fed = l.take(4*N*D), l.take(es*N*D), l.take(es*N*D)
	if c.Architecture == checkpoint.HyenaNeoX && j.top >= 0 {
		b.f = l.take(8 * D * int64(b.ldf))
	}
	stages := c.Architecture == checkpoint.HyenaNeoX && !j.tensor && b.points > blockPoints
	if stages {
		s, back := stageOf(b.points, j.rows, c.Dim, false), stageOf(b.points, j.rows, c.Dim, true)
		b.scratch[0] = l.take(max(s.scratch(3*stageLag, b.points), back.scratch(2*stageLag, b.points)))
		if j.trains() {
			b.scratch[1], b.scratch[2] = l.take(back.scratch(3*stageLag, b.points)), l.take(back.scratch(stageLag+1, b.points))
		}
		b.done = l.take(4 * 3 * int64(max(s.slices, back.slices)))
	}
	if j.from > 0 && j.top >= 0 {
		b.frozen = newBlock()
	}
	for i := 0; i <= j.top; i++ {
		k := b.frozen
		if i >= j.from {
			k = newBlock()
			if stages {
				k.c = l.take(es * D * ld)
			}
		}
		k.x = b.x
		if j.keeps(i - 1) {
			k.x = l.take(4 * N * D)
		}
		if c.Architecture == checkpoint.HyenaNeoX { // all filters are made before the first is used
			if j.tensor {
				k.taps = l.take(4 * D * int64(b.ldf))
			} else {
				k.spectrum = l.take(8 * D * int64(b.points))
			}
		}
		b.blocks = append(b.blocks, k)
	}
	if j.head {
		b.ldv = round(c.Vocab, 8)
		b.chunk = max(8, min(n, int(logitBytes/(es*int64(b.ldv)))/256*256))
		b.chunk = min(b.chunk, n)
		if j.exponentials() {
			b.chunk = matmulChunk(n, c.Vocab, int(exponentialBytes/(es*int64(b.ldv))), j.fused)
			chunk := int64(b.chunk)
			b.reference, b.factor = l.take(4*N), l.take(4*N)
			b.expSums, b.expTotal, b.shift = l.take(4*2*maxParts*chunk), l.take(4*chunk), l.take(4*chunk)
			b.scaled = l.take(es * chunk * D)
		}
		b.hf, b.fmean, b.frstd = l.take(es*N*D), l.take(4*N), l.take(4*N)
		b.logits = l.take(es * int64(b.chunk) * int64(b.ldv))
		if j.soft {
			b.teacher = l.take(es * int64(b.chunk) * int64(b.ldv))
		}
		b.nll, b.kl = l.take(4*N), l.take(4*N)
	}
	if !j.trains() {
		if j.head { // logits on their way out, as float32
			b.dx = l.take(4 * int64(b.chunk) * int64(c.Vocab))
		}
		return b
	}
	for _, t := range j.targets {
		size := int64(t.Type.Size()) * N * D
		if t.Size() == 0 { // a teacher's, which are in its workspace
			size = 0
		}
		b.target, b.scales = append(b.target, l.take(size)), append(b.scales, l.take(4*N))
	}
	b.partial = l.take(4 * max(2*sumParts*D, sumParts*int64(c.Hidden), 3*sumParts*D, streamBlocks))
	b.sidePartial = l.take(8 * filterSlices * 2 * int64(c.Hyena.Width))
	b.columns = l.take(4 * streamBlocks * D)
	b.dx = l.take(es * N * D)
	b.dg = l.take(es * N * int64(c.Hidden))
	if j.fusesGelu(c) {
		b.turned, b.geluSums = l.take(es*int64(c.Hidden+31)*D), l.take(4*int64(geluSums(n, c.Hidden)))
	}
	b.dh1, b.dh2 = l.take(es*N*D), l.take(es*N*D)
	if c.Architecture == checkpoint.HyenaNeoX {
		b.dy, b.dz = l.take(es*D*ld), l.take(es*3*D*ld)
		if j.tensor {
			b.parts = ceil(j.rows, toeplitzRows)
			b.shorts = l.take(4 * int64(b.parts) * 15 * D)
		} else {
			b.parts = min(ceil(j.rows, 4), max(1, 1024/c.Dim))
			if stages {
				b.parts = 1
			}
			b.dq, b.du = l.take(4*D*ld), l.take(4*D*ld)
		}
		b.betas = b.parts
		if stages {
			b.betas = j.rows * columnBlocks(b.points)
		}
		b.dh, b.dbeta = l.take(4*int64(b.parts)*D*int64(b.ldf)), l.take(4*int64(b.betas)*D)
		b.dact, b.dffn = l.take(8*int64(j.length*c.Hyena.Width)), l.take(8*ffn)
	} else {
		b.dqkv, b.do, b.delta = l.take(es*3*N*D), l.take(es*N*D), l.take(4*N*int64(c.Attention.Heads))
	}
	if j.embed {
		b.order, b.start, b.ids, b.firsts, b.counted = l.take(4*N), l.take(4*N+4), l.take(4*N), l.take(4*N+4), l.take(8)
		b.segments = l.take(4 * N * D)
	}
	return b
}

// points is the least transform that covers a sequence.
func points(length int) int {
	p := 256
	for p < length {
		p *= 2
	}
	return p
}

// prepare lays a job out over the model's workspace, which grows where it is
// too small.
func (m *model) prepare(j job) (*buffers, error) {
	count := func(rows int) int64 {
		var l layout
		k := j
		k.rows = rows
		lay(&l, m.config, m.element, m.ffn, k)
		return l.used
	}
	d := m.engine.device
	if want := count(j.rows); want > m.work.size {
		if err := d.stream.Synchronize(); err != nil {
			return nil, fmt.Errorf("cuda:%d: %w", d.ordinal, err)
		}
		if err := errors.Join(m.forget(), d.free(&m.work.base)); err != nil {
			return nil, fmt.Errorf("cuda:%d: %w", d.ordinal, err)
		}
		m.work.size = 0
		what := fmt.Sprintf("the activations of %d sequences of %d tokens", j.rows, j.length)
		p, err := d.alloc(want, what)
		if err != nil && m.engine.dropPrefixes() { // what is kept can be computed again
			p, err = d.alloc(want, what)
		}
		if err != nil {
			fits := 0
			if free, _, e := cu.MemInfo(); e == nil {
				for low, high := 0, j.rows; low < high; { // the most rows that fit
					mid := (low + high + 1) / 2
					if count(mid) <= free {
						low, fits = mid, mid
					} else {
						high = mid - 1
					}
				}
			}
			return nil, errors.Join(err, fmt.Errorf("cuda:%d: a batch of %d sequences would fit", d.ordinal, fits))
		}
		m.work = workspace{p, want}
	}
	return lay(&layout{base: m.work.base}, m.config, m.element, m.ffn, j), nil
}
