//go:build cuda

package cuda

import (
	"fmt"

	"github.com/scavenge/scavenge/schemas/checkpoint"
)

// pass is one call of a model: the queue its work goes to and the buffers it
// uses. N is the tokens of the batch, D the width of the residual stream.
type pass struct {
	*queue
	*model
	b       *buffers
	partial ptr // slices of sums
}

// beside is the pass on the side stream.
func (p *pass) beside() *pass {
	s := *p
	s.queue, s.partial = &queue{device: p.queue.device, beside: true, err: p.err}, p.b.sidePartial
	return &s
}

// The events of a call: those of filters are theirs by layer.
const (
	eventStart = iota
	eventFilterGradient
	eventStaged
	eventFilter
)

// kernel launches the variant of a kernel for the stored activations' type.
func (p *pass) kernel(name string, grid [3]int, block [2]int, shared int, args ...any) {
	p.launch(name+p.element.suffix(), grid, block, shared, args...)
}

// project is d[N, out] = x̂[N, in] · W'ᵀ + b' of a projection behind a norm.
func (p *pass) project(d, h ptr, f *fold) {
	p.product(product{m: p.b.n, n: f.out, k: f.in, a: h, lda: f.in, b: f.weight, tb: true, ldb: f.in, d: d, ldd: f.out, bias: f.bias, in: p.element, out: p.element})
}

// branch is d[N, D] = y[N, in] · wᵀ + bias, which goes into the residual
// stream; y is channel-major [in, ld] where ld is not 0.
func (p *pass) branch(d, y ptr, layer string, in, ld int) {
	g := product{m: p.b.n, n: p.config.Dim, k: in, a: y, lda: in, b: p.operand(layer + "weight"), tb: true, ldb: in, d: d, ldd: p.config.Dim,
		bias: p.operand(layer + "bias"), in: p.element, out: p.element}
	if ld > 0 {
		g.ta, g.lda = true, ld
	}
	p.product(g)
}

// residual is the residual stream next = x + m + f and its norm, affine where
// gamma is not 0; next or norm may be 0. See residual.cu.
func (p *pass) residual(x, m, f, next, norm, gamma, beta, mean, rstd ptr) {
	d := p.config.Dim
	p.kernel(fmt.Sprintf("residual_forward_%d", chunks(d)), [3]int{ceil(p.b.n, 8), 1, 1}, [2]int{256, 1}, 0,
		x, m, f, next, norm, gamma, beta, mean, rstd, p.b.n, d, float32(p.config.Eps))
}

// last is the terms of the residual stream after block top.
func (p *pass) last() (x, m, f ptr) {
	if p.b.top < 0 {
		return p.b.x, 0, 0
	}
	return p.b.blocks[p.b.top].x, p.b.mixed, p.b.fed
}

// kept is the residual stream after block i, one of those that the job keeps;
// the last is added up for it.
func (p *pass) kept(i int) ptr {
	if i < p.b.top {
		return p.b.blocks[i+1].x
	}
	x, m, f := p.last()
	p.residual(x, m, f, p.b.x, 0, 0, 0, 0, 0)
	return p.b.x
}

// embed is x[n] = E[token[n]], the input of block 0.
func (p *pass) embed() {
	p.launch("embedding_forward", [3]int{p.b.n, 1, 1}, [2]int{128, 1}, 0, p.at(checkpoint.EmbedIn), p.b.tokens, p.b.x, p.config.Dim)
}

// block is m = mixer(LN₁ x) and f = mlp(LN₂ x) of layer i.
func (p *pass) block(i int) {
	b, k, name := p.b, &p.b.blocks[i], checkpoint.Block(i)
	d, hidden := p.config.Dim, p.config.Hidden
	mixer, mlp := p.projections(i)
	if p.config.Architecture == checkpoint.HyenaNeoX {
		p.hyena(k, name+"hyena.", mixer, i)
		p.branch(b.mixed, k.y, name+"hyena.out_proj.", d, b.ld)
	} else {
		p.attention(k, mixer)
		p.branch(b.mixed, k.o, name+"attention.dense.", d, 0)
	}
	if b.fusesGelu(p.config) {
		p.geluUp(k, mlp, i >= b.from)
	} else {
		p.project(k.a, k.h, mlp)
		p.kernel("gelu_forward", [3]int{ceil(b.n*hidden, 2048), 1, 1}, [2]int{256, 1}, 0, k.a, k.g, int64(b.n)*int64(hidden))
	}
	p.branch(b.fed, k.g, name+"mlp.dense_4h_to_h.", hidden, 0)
}

// hyena is y = q ⊙ (h ∗ u + β ⊙ u) of the norm's output, channel-major.
func (p *pass) hyena(k *block, name string, in *fold, layer int) {
	b, d := p.b, p.config.Dim
	// z = W' x̂ᵀ; its bias is added by the short convolution
	p.product(product{m: 3 * d, n: b.n, k: d, a: in.weight, lda: d, b: k.h, tb: true, ldb: d, d: k.z, ldd: b.ld, in: p.element, out: p.element})
	p.await(eventFilter + layer)
	if b.tensor {
		t := toeplitzOf(b.length)
		p.launch("hyena_tensor_forward"+t.variant, [3]int{ceil(b.rows, toeplitzRows), d, 1}, [2]int{128, 1}, t.forward, k.z, in.wide,
			p.at(name+"short_filter.weight"), p.at(name+"short_filter.bias"), k.taps, p.decays, p.step(), p.at(name+"filter.bias"), k.y, b.rows, b.length, b.ld, b.ldf)
		return
	}
	p.kernel("shortconv_forward", [3]int{ceil(b.ld, 2048), d, 1}, [2]int{256, 1}, 0, k.z, in.wide,
		p.at(name+"short_filter.weight"), p.at(name+"short_filter.bias"), k.q, k.u, d, b.n, b.ld, b.length)
	p.convolve(k, p.at(name+"filter.bias"))
}

// filter is the implicit filter over the sequence's length: its transform, or
// its taps without the window.
func (p *pass) filter(k *block, name string) {
	b, l, w := p.b, p.b.length, p.config.Hyena.Width
	first := name + "mlp.0.weight"
	p.each("widen", int(p.ffn), p.at(first), k.ffn, p.ffn)
	x, in := p.features, p.config.Hyena.Features
	for i := range k.pre {
		layer := fmt.Sprintf("%smlp.%d.", name, i)
		p.product(product{m: l, n: w, k: in, a: x, lda: in, b: p.wide(k.ffn, first, layer+"weight"), tb: true, ldb: in, d: k.pre[i], ldd: w, in: float64s, out: float64s})
		p.each("sine_forward", l*w, k.pre[i], p.wide(k.ffn, first, layer+"bias"), p.at(name+"freq"), k.act[i], l, w)
		x, in = k.act[i], w
	}
	d := p.config.Dim
	p.product(product{m: d, n: l, k: w, a: p.wide(k.ffn, first, name+"mlp.3.weight"), lda: w, b: x, tb: true, ldb: w, d: b.f, ldd: b.ldf, in: float64s, out: float64s})
	if b.tensor {
		p.each("narrow", d*b.ldf, b.f, k.taps, int64(d)*int64(b.ldf))
		return
	}
	p.spectrum(k)
}

// wide is where a weight of a filter's FFN lies in a float64 buffer that begins
// with the weight first.
func (p *pass) wide(buffer ptr, first, name string) ptr {
	return buffer + ptr(8*(p.offset[p.index[name]]-p.offset[p.index[first]]))
}

// step is t_n of one position: 1 / (L_max − 1).
func (p *pass) step() float32 { return float32(1 / float64(max(p.config.Context-1, 1))) }

// attention is o of attention.cu.
func (p *pass) attention(k *block, in *fold) {
	b, d, heads := p.b, p.config.Dim, p.config.Attention.Heads
	p.project(k.qkv, k.h, in)
	p.rotate(k.qkv, 3*d, 1)
	head, ldqkv, ldo := d/heads, 3*d, d
	t := attentionTiles(head, p.element, p.hopper)
	grid, block := [3]int{ceil(b.length, t.rows), heads, b.rows}, [2]int{t.threads, 1}
	if t.hopper {
		p.launch(fmt.Sprintf("attention_hopper_forward_%d", t.dims), grid, block, t.forward,
			p.headMap(k.qkv, b.rows, b.length, 3*heads, head, ldqkv, boxRead), p.headMap(k.o, b.rows, b.length, heads, head, ldo, boxWrite),
			k.lse, b.length, scale(head))
		return
	}
	p.kernel(fmt.Sprintf("attention_forward_%d", t.dims), grid, block, t.forward, k.qkv, k.o, k.lse, b.length, head, ldqkv, ldo, scale(head))
}

// rotate applies the rotary embedding in place, or takes a gradient back. Rows of
// qkv are ld elements apart.
func (p *pass) rotate(qkv ptr, ld int, sign float32) {
	c := p.config
	half := c.RotaryDims() / 2
	name, pairs := "rotary_single", 1
	if half%8 == 0 && ld%8 == 0 && c.Dim/c.Attention.Heads%8 == 0 {
		name, pairs = "rotary_eight", 8
	}
	if n := p.b.n * c.Attention.Heads * 2 * half / pairs; n > 0 {
		p.kernel(name, [3]int{ceil(n, 256), 1, 1}, [2]int{256, 1}, 0, qkv, p.rotary, p.b.n, p.b.length, c.Attention.Heads, c.Dim/c.Attention.Heads, half, ld, sign)
	}
}

// forward computes layers 0 … top of the tokens in b.tokens, or from b.lowest on
// of what the prefix's cache has of them.
func (p *pass) forward() {
	side := p.beside()
	side.after(p.queue, eventStart)
	b := p.b
	if b.lowest == 0 {
		p.embed()
	}
	if p.config.Architecture == checkpoint.HyenaNeoX { // all filters, beside the blocks
		for i := b.lowest; i <= b.top; i++ {
			side.filter(&b.blocks[i], checkpoint.Block(i)+"hyena.filter.")
			side.mark(eventFilter + i)
		}
		p.note(side.err)
	}
	for i := b.lowest; i <= b.top; i++ {
		k := &b.blocks[i]
		switch {
		case i > 0 && (i == b.lowest || i == b.from):
			p.behindFrozen(k, i == b.lowest, b.blocks[i-1].x)
		case i == 0:
			p.norm(k, b.x, 0, 0, 0)
		default:
			p.norm(k, b.blocks[i-1].x, b.mixed, b.fed, k.x)
		}
		p.block(i)
	}
}

// norm is a block's x̂ of x + m + f, which goes to next where that is not 0.
func (p *pass) norm(k *block, x, m, f, next ptr) {
	p.residual(x, m, f, next, k.h, 0, 0, 0, k.rstd)
}

// final is the final norm, the input of the output embedding. The residual
// stream in front of it stays in b.x.
func (p *pass) final() {
	b := p.b
	x, m, f := p.last()
	p.residual(x, m, f, b.x, b.hf, p.at(finalNorm+"weight"), p.at(finalNorm+"bias"), b.fmean, b.frstd)
}

const finalNorm = "gpt_neox.final_layer_norm."

// logits are those of rows positions from row on: dst[rows, ldv] = hf · Eᵀ.
func (p *pass) logits(dst ptr, row, rows int) {
	d := p.config.Dim
	p.product(product{m: rows, n: p.config.Vocab, k: d, a: p.b.hf + ptr(p.element.size()*int64(row)*int64(d)), lda: d, b: p.operand(checkpoint.EmbedOut), tb: true, ldb: d,
		d: dst, ldd: p.b.ldv, in: p.element, out: p.element})
}
