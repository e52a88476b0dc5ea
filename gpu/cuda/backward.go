//go:build cuda

package cuda

import (
	"fmt"

	"github.com/scavenge/scavenge/schemas/checkpoint"
)

// The backward passes run from b.dx, the gradient of the residual stream after a
// block, and leave each weight's gradient where the optimiser reads it. A
// gradient is written once a step, not added to, but for those of sums over
// chunks of logits.

// weightGradient is dw[out, in] = dyᵀ · x over the batch: dy [N, out], x [N, in]
// or, where an ld is not 0, channel-major.
func (p *pass) weightGradient(name string, dy ptr, out, dyld int, x ptr, in, xld int) {
	g := product{m: out, n: in, k: p.b.n, a: dy, ta: true, lda: out, b: x, ldb: in, d: p.gradient(name), ldd: in, in: p.element, out: float32s}
	if dyld > 0 {
		g.ta, g.lda = false, dyld
	}
	if xld > 0 {
		g.tb, g.ldb = true, xld
	}
	p.product(g)
}

// inputGradient is dx[N, in] = dy[N, out] · w, dy channel-major where ld is not 0.
func (p *pass) inputGradient(dx, dy ptr, out, ld int, w ptr, in int) {
	g := product{m: p.b.n, n: in, k: out, a: dy, lda: out, b: w, ldb: in, d: dx, ldd: in, in: p.element, out: p.element}
	if ld > 0 {
		g.ta, g.lda = true, ld
	}
	p.product(g)
}

// sums adds up the slices of column sums in p.partial, cols of them from column
// at of rows of stride, into one or two gradients.
func (p *pass) sums(at, cols, stride int, name, name2 string) {
	var second ptr
	if name2 != "" {
		second = p.gradient(name2)
	}
	p.reduce(p.partial+ptr(4*at), p.gradient(name), second, sumParts, stride, cols)
}

// biasGradient is the column sums of dy [N, cols] into one or two biases'
// gradients.
func (p *pass) biasGradient(dy ptr, cols int, name, name2 string) {
	p.kernel("column_sum", [3]int{ceil(cols, 256), sumParts, 1}, columns, 0, dy, p.partial, p.b.n, cols)
	p.sums(0, cols, cols, name, name2)
}

// blockBackward takes dx from after block i to before it, unless nothing below
// is trained.
func (p *pass) blockBackward(i int, below bool) {
	b, k, name := p.b, &p.b.blocks[i], checkpoint.Block(i)
	d, hidden := p.config.Dim, p.config.Hidden
	in, up := p.projections(i)
	mixer := name + "hyena.out_proj."
	if p.config.Architecture == checkpoint.GPTNeoX {
		mixer = name + "attention.dense."
	}
	// both projections into the residual stream have the same bias gradient,
	// which streamBackward left but below a head
	if b.head && i == b.top {
		p.biasGradient(b.dx, d, mixer+"bias", name+"mlp.dense_4h_to_h.bias")
	} else {
		p.reduce(b.columns, p.gradient(mixer+"bias"), p.gradient(name+"mlp.dense_4h_to_h.bias"), streamBlocks, d, d)
	}

	p.weightGradient(name+"mlp.dense_4h_to_h.weight", b.dx, d, 0, k.g, hidden, 0)
	if down := p.operand(name + "mlp.dense_4h_to_h.weight"); b.fusesGelu(p.config) {
		p.geluDown(k, down)
	} else {
		p.inputGradient(b.dg, b.dx, d, 0, down, hidden)
		p.kernel("gelu_backward", [3]int{ceil(hidden, 256), sumParts, 1}, columns, 0, k.a, b.dg, p.partial, b.n, hidden)
	}
	p.sums(0, hidden, hidden, up.layer+"bias", "")
	p.weightGradient(up.layer+"weight", b.dg, hidden, 0, k.h, d, 0)

	if p.config.Architecture == checkpoint.HyenaNeoX {
		p.hyenaBackward(k, name+"hyena.", in)
	} else {
		p.attentionBackward(k, name+"attention.", in)
	}
	if below {
		p.inputGradient(b.dh2, b.dg, hidden, 0, up.weight, d)
		if p.config.Architecture == checkpoint.HyenaNeoX {
			p.inputGradient(b.dh1, b.dz, 3*d, b.ld, in.weight, d)
		} else {
			p.inputGradient(b.dh1, b.dqkv, 3*d, 0, in.weight, d)
		}
	}
	p.unfold(in)
	p.unfold(up)
}

// streamBackward sets dx after the last block from target i, or adds target i,
// where there is one (−1: none), and what goes through the norms of the block
// above to dx after a layer. The loss is one term.
func (p *pass) streamBackward(layer, i, term int) {
	b, d := p.b, p.config.Dim
	var norm, rstd, d1, d2, x, m, f, t, scales ptr
	encoding := 0
	if layer < b.top {
		k := &b.blocks[layer+1]
		norm, rstd, d1, d2, x = k.h, k.rstd, b.dh1, b.dh2, k.x
	} else {
		x, m, f = p.last()
	}
	if i >= 0 {
		t, scales, encoding = b.target[i], b.scales[i], p.encoding(b.targets[i])
	}
	p.kernel(fmt.Sprintf("residual_backward_%d", chunks(d)), [3]int{streamBlocks, 1, 1}, [2]int{256, 1}, 4*d,
		norm, rstd, d1, d2, x, m, f, t, scales, b.dx, p.partial, b.columns, b.n, d, encoding)
	if i >= 0 {
		p.launch("total", [3]int{1, 1, 1}, [2]int{1024, 1}, 0, p.partial, int64(streamBlocks), 1/(float64(b.n)*float64(d)), b.losses+ptr(8*term))
	}
}

// hyenaBackward leaves b.dz, the gradient of the input projection.
func (p *pass) hyenaBackward(k *block, name string, proj *fold) {
	b, d := p.b, p.config.Dim
	p.weightGradient(name+"out_proj.weight", b.dx, d, 0, k.y, d, b.ld)
	p.product(product{m: d, n: b.n, k: d, a: p.operand(name + "out_proj.weight"), ta: true, lda: d, b: b.dx, tb: true, ldb: d, d: b.dy, ldd: b.ld, in: p.element, out: p.element})
	p.await(eventFilterGradient) // the filter above has read b.dh
	short, shortBias, in := name+"short_filter.weight", name+"short_filter.bias", name+"in_proj.bias"
	if b.tensor {
		t := toeplitzOf(b.length)
		p.launch("hyena_tensor_backward"+t.variant, [3]int{b.parts, d, 1}, [2]int{128, 1}, t.backward, k.z, proj.wide, p.at(short), p.at(shortBias),
			k.taps, p.decays, p.step(), p.at(name+"filter.bias"), b.dy, b.dz, b.dh, b.dbeta, b.shorts, b.rows, b.length, b.ld, b.ldf)
		p.launch("hyena_tensor_short_gradient", [3]int{ceil(3*d, 128), 1, 1}, [2]int{128, 1}, 0, b.shorts, p.gradient(short), p.gradient(shortBias), p.gradient(in), b.parts, 3*d)
	} else {
		p.convolveBackward(k, p.at(name+"filter.bias"))
		p.kernel("shortconv_backward", [3]int{d, 1, 1}, [2]int{256, 1}, 0, k.z, proj.wide, p.at(short), p.at(shortBias),
			b.dq, b.du, b.dz, p.gradient(short), p.gradient(shortBias), p.gradient(in), d, b.n, b.ld, b.length)
	}
	side := p.beside()
	side.after(p.queue, eventStart)
	side.reduce(b.dbeta, p.gradient(name+"filter.bias"), 0, b.betas, d, d)
	side.filterBackward(k, name+"filter.")
	side.mark(eventFilterGradient)
	p.note(side.err)
	p.weightGradient(name+"in_proj.weight", b.dz, 3*d, b.ld, k.h, d, 0)
}

// filterBackward goes from dh through the window and the FFN to its weights;
// df takes f's place.
func (p *pass) filterBackward(k *block, name string) {
	b, d, l, w := p.b, p.config.Dim, p.b.length, p.config.Hyena.Width
	first := name + "mlp.0.weight"
	last := name + "mlp.3.weight"
	p.launch("filter_gradient", [3]int{ceil(l, 128), d, 1}, [2]int{128, 1}, 0, b.dh, p.decays, b.f, b.parts, d, l, b.ldf, p.step())
	p.product(product{m: d, n: w, k: l, a: b.f, lda: b.ldf, b: k.act[2], ldb: w, d: p.wide(b.dffn, first, last), ldd: w, in: float64s, out: float64s})
	p.product(product{m: l, n: w, k: d, a: b.f, ta: true, lda: b.ldf, b: p.wide(k.ffn, first, last), ldb: w, d: b.dact, ldd: w, in: float64s, out: float64s})
	for i := len(k.pre) - 1; i >= 0; i-- {
		layer := fmt.Sprintf("%smlp.%d.", name, i)
		topmost := 0
		if i == len(k.pre)-1 {
			topmost = 1
		}
		p.launch("sine_backward", [3]int{ceil(w, 32), filterSlices, 1}, columns, 0, b.dact, k.pre[i], p.at(name+"freq"), p.partial, l, w)
		p.each("sine_parameters", w, p.partial, p.gradient(name+"freq"), p.wide(b.dffn, first, layer+"bias"), filterSlices, w, topmost)
		x, in := p.features, p.config.Hyena.Features
		if i > 0 {
			x, in = k.act[i-1], w
		}
		p.product(product{m: w, n: in, k: l, a: b.dact, ta: true, lda: w, b: x, ldb: in, d: p.wide(b.dffn, first, layer+"weight"), ldd: in, in: float64s, out: float64s})
		if i > 0 {
			// act[i] has served: it holds the gradient that goes on down
			p.product(product{m: l, n: w, k: w, a: b.dact, lda: w, b: p.wide(k.ffn, first, layer+"weight"), ldb: w, d: k.act[i], ldd: w, in: float64s, out: float64s})
			b.dact, k.act[i] = k.act[i], b.dact
		}
	}
	p.each("narrow", int(p.ffn), b.dffn, p.gradient(first), p.ffn)
}

// filterSlices is how many parts the positions of a filter are cut into.
const filterSlices = 16

// attentionBackward leaves b.dqkv, the gradient of the input projection.
func (p *pass) attentionBackward(k *block, name string, in *fold) {
	b, d, heads := p.b, p.config.Dim, p.config.Attention.Heads
	p.weightGradient(name+"dense.weight", b.dx, d, 0, k.o, d, 0)
	p.inputGradient(b.do, b.dx, d, 0, p.operand(name+"dense.weight"), d)
	head, ldqkv, ldo, lddo, ldd := d/heads, 3*d, d, d, 3*d
	t := attentionTiles(head, p.element, p.hopper)
	queries, keys := [3]int{ceil(b.length, t.rows), heads, b.rows}, [3]int{ceil(b.length, t.keys[0]), heads, b.rows}
	block, keyBlock := [2]int{t.threads, 1}, [2]int{t.keys[1], 1}
	turn := 0 // pairs of rotary dimensions that the kernels take back themselves
	if half := p.config.RotaryDims() / 2; t.unrotates(half) {
		turn = half
	}
	if t.hopper { // dq's pass leaves delta for the other
		qkv, dqkv := p.headMap(k.qkv, b.rows, b.length, 3*heads, head, ldqkv, boxRead), p.headMap(b.dqkv, b.rows, b.length, 3*heads, head, ldd, boxWrite)
		do := p.headMap(b.do, b.rows, b.length, heads, head, lddo, boxRead)
		p.launch(fmt.Sprintf("attention_hopper_backward_q_%d", t.dims), queries, block, t.q,
			qkv, do, k.o, k.lse, b.delta, dqkv, p.rotary, turn, b.length, head, ldo, scale(head))
		p.launch(fmt.Sprintf("attention_hopper_backward_kv_%d", t.dims), keys, keyBlock, t.kv,
			qkv, do, k.lse, b.delta, dqkv, p.rotary, turn, b.length, scale(head))
	} else {
		p.kernel("attention_delta", [3]int{ceil(b.n*heads, 8), 1, 1}, [2]int{256, 1}, 0, k.o, b.do, b.delta, b.n, b.length, heads, head, ldo, lddo)
		p.kernel(fmt.Sprintf("attention_backward_kv_%d", t.dims), keys, keyBlock, t.kv, k.qkv, b.do, k.lse, b.delta, b.dqkv, b.length, head, ldqkv, lddo, ldd, scale(head))
		p.kernel(fmt.Sprintf("attention_backward_q_%d", t.dims), queries, block, t.q, k.qkv, b.do, k.lse, b.delta, b.dqkv, b.length, head, ldqkv, lddo, ldd, scale(head))
	}
	if turn == 0 {
		p.rotate(b.dqkv, ldd, -1)
	}
	p.biasGradient(b.dqkv, 3*d, in.layer+"bias", "")
	p.weightGradient(in.layer+"weight", b.dqkv, 3*d, 0, k.h, d, 0)
}

// embedBackward is the token embedding's gradient from dx before block 0.
func (p *pass) embedBackward() {
	b, d := p.b, p.config.Dim
	p.zero(p.gradient(checkpoint.EmbedIn), 4*int64(p.config.Vocab)*int64(d))
	p.kernel("embedding_segments", [3]int{b.n, 1, 1}, [2]int{128, 1}, 0, b.dx, b.order, b.start, b.counted, b.segments, d)
	p.launch("embedding_rows", [3]int{b.n, 1, 1}, [2]int{128, 1}, 0, b.segments, b.ids, b.firsts, b.counted, p.gradient(checkpoint.EmbedIn), d)
}

// loadOrder gives embedBackward the order of its sums.
func (p *pass) loadOrder(tokens []int32) {
	s, b := sortTokens(tokens, p.config.Vocab), p.b
	put(p.queue, b.order, s.order)
	put(p.queue, b.start, s.start)
	put(p.queue, b.ids, s.ids)
	put(p.queue, b.firsts, s.first)
	put(p.queue, b.counted, []int32{int32(len(s.start) - 1), int32(len(s.ids))})
}

// sorted lists a batch's positions by token: segment i is order[start[i] :
// start[i+1]], all of one token; ids[j]'s segments are first[j] … first[j+1]−1.
type sorted struct{ order, start, ids, first []int32 }

// segment bounds the positions that one block sums.
const segment = 32

// sortTokens is a counting sort: stable, so that sums have one order.
func sortTokens(tokens []int32, vocab int) sorted {
	at := make([]int32, vocab+1)
	for _, t := range tokens {
		at[t+1]++
	}
	var s sorted
	for t := range vocab {
		n := at[t+1]
		if n > 0 {
			s.ids, s.first = append(s.ids, int32(t)), append(s.first, int32(len(s.start)))
			for from := int32(0); from < n; from += segment {
				s.start = append(s.start, at[t]+from)
			}
		}
		at[t+1] += at[t]
	}
	s.first, s.start = append(s.first, int32(len(s.start))), append(s.start, int32(len(tokens)))
	s.order = make([]int32, len(tokens))
	for i, t := range tokens {
		s.order[at[t]] = int32(i)
		at[t]++
	}
	return s
}
