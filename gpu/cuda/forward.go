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
	eventFilter
)

// kernel launches the variant of a kernel for the stored activations' type.
func (p *pass) kernel(name string, grid [3]int, block [2]int, shared int, args ...any) {
	p.launch(name+p.element.suffix(), grid, block, shared, args...)
}

// linear is d[N, out] = x[N, in] · wᵀ + bias, in the operands' type.
func (p *pass) linear(d, x ptr, w, bias string, in, out int) {
	p.product(product{m: p.b.n, n: out, k: in, a: x, lda: in, b: p.operand(w), tb: true, ldb: in, d: d, ldd: out, bias: p.operand(bias), in: p.element, out: p.element})
}

// residual is next[N, D] = x + y[N, in] · wᵀ + bias in float32; y is
// channel-major [in, ld] where ld is not 0.
func (p *pass) residual(next, x, y ptr, w, bias string, in, ld int) {
	d := p.config.Dim
	g := product{m: p.b.n, n: d, k: in, a: y, lda: in, b: p.operand(w), tb: true, ldb: in, c: x, beta: 1, d: next, ldd: d, bias: p.at(bias), in: p.element, out: float32s}
	if ld > 0 {
		g.ta, g.lda = true, ld
	}
	p.product(g)
}

// norm is y₁, y₂ of layernorm.cu; name2 may be empty.
func (p *pass) norm(x ptr, name1, name2 string, y1, y2, mean, rstd ptr) {
	var g2, b2 ptr
	if name2 != "" {
		g2, b2 = p.at(name2+"weight"), p.at(name2+"bias")
	}
	p.kernel("layernorm_forward", [3]int{ceil(p.b.n, 8), 1, 1}, [2]int{256, 1}, 0, x, p.at(name1+"weight"), p.at(name1+"bias"), g2, b2,
		y1, y2, mean, rstd, p.b.n, p.config.Dim, float32(p.config.Eps))
}

// embed is x[n] = E[token[n]], the input of block 0.
func (p *pass) embed(x ptr) {
	p.launch("embedding_forward", [3]int{p.b.n, 1, 1}, [2]int{128, 1}, 0, p.at(checkpoint.EmbedIn), p.b.tokens, x, p.config.Dim)
}

// block is x + mixer(LN₁ x) + mlp(LN₂ x) of layer i.
func (p *pass) block(i int) {
	k, name := &p.b.blocks[i], checkpoint.Block(i)
	d, hidden := p.config.Dim, p.config.Hidden
	p.norm(k.x, name+"input_layernorm.", name+"post_attention_layernorm.", k.h1, k.h2, k.mean, k.rstd)
	if p.config.Architecture == checkpoint.HyenaNeoX {
		p.hyena(k, name+"hyena.", i)
		p.residual(k.next, k.x, k.y, name+"hyena.out_proj.weight", name+"hyena.out_proj.bias", d, p.b.ld)
	} else {
		p.attention(k, name+"attention.")
		p.residual(k.next, k.x, k.o, name+"attention.dense.weight", name+"attention.dense.bias", d, 0)
	}
	p.linear(k.a, k.h2, name+"mlp.dense_h_to_4h.weight", name+"mlp.dense_h_to_4h.bias", d, hidden)
	p.kernel("gelu_forward", [3]int{ceil(p.b.n*hidden, 2048), 1, 1}, [2]int{256, 1}, 0, k.a, k.g, int64(p.b.n)*int64(hidden))
	p.residual(k.next, k.next, k.g, name+"mlp.dense_4h_to_h.weight", name+"mlp.dense_4h_to_h.bias", hidden, 0)
}

// hyena is y = q ⊙ (h ∗ u + β ⊙ u) of the norm's output, channel-major.
func (p *pass) hyena(k *block, name string, layer int) {
	b, d := p.b, p.config.Dim
	// z = W h1ᵀ; its bias is added by the short convolution
	p.product(product{m: 3 * d, n: b.n, k: d, a: p.operand(name + "in_proj.weight"), lda: d, b: k.h1, tb: true, ldb: d, d: k.z, ldd: b.ld, in: p.element, out: p.element})
	p.await(eventFilter + layer)
	if b.tensor {
		t := toeplitzOf(b.length)
		p.launch("hyena_tensor_forward"+t.variant, [3]int{ceil(b.rows, toeplitzRows), d, 1}, [2]int{128, 1}, t.forward, k.z, p.at(name+"in_proj.bias"),
			p.at(name+"short_filter.weight"), p.at(name+"short_filter.bias"), k.taps, p.decays, p.step(), p.at(name+"filter.bias"), k.y, b.rows, b.length, b.ld, b.ldf)
		return
	}
	p.kernel("shortconv_forward", [3]int{ceil(b.ld, 2048), d, 1}, [2]int{256, 1}, 0, k.z, p.at(name+"in_proj.bias"),
		p.at(name+"short_filter.weight"), p.at(name+"short_filter.bias"), k.q, k.u, d, b.n, b.ld, b.length)
	c := convolution(b.points)
	p.kernel(fmt.Sprintf("longconv_forward_%d", b.points), [3]int{d, min(ceil(b.rows, c.groups), max(1, 2048/d)), 1}, [2]int{c.threads, 1}, c.shared,
		k.u, k.q, k.spectrum, p.at(name+"filter.bias"), k.y, b.rows, b.length, b.ld, p.roots, p.halves)
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
	p.product(product{m: d, n: l, k: w, a: p.wide(k.ffn, first, name+"mlp.3.weight"), lda: w, b: x, tb: true, ldb: w, d: k.f, ldd: b.ldf, in: float64s, out: float64s})
	if b.tensor {
		p.each("narrow", d*b.ldf, k.f, k.taps, int64(d)*int64(b.ldf))
		return
	}
	c := convolution(b.points)
	p.launch(fmt.Sprintf("filter_spectrum_%d", b.points), [3]int{d, 1, 1}, [2]int{b.points / 16, 1}, c.shared/c.groups,
		k.f, p.decays, k.spectrum, l, b.ldf, p.step(), p.roots, p.halves)
}

// wide is where a weight of a filter's FFN lies in a float64 buffer that begins
// with the weight first.
func (p *pass) wide(buffer ptr, first, name string) ptr {
	return buffer + ptr(8*(p.offset[p.index[name]]-p.offset[p.index[first]]))
}

// step is t_n of one position: 1 / (L_max − 1).
func (p *pass) step() float32 { return float32(1 / float64(max(p.config.Context-1, 1))) }

// attention is o of attention.cu.
func (p *pass) attention(k *block, name string) {
	b, d, heads := p.b, p.config.Dim, p.config.Attention.Heads
	p.linear(k.qkv, k.h1, name+"query_key_value.weight", name+"query_key_value.bias", d, 3*d)
	p.rotate(k.qkv, 1)
	t := attentionTiles(d/heads, p.element)
	p.kernel(fmt.Sprintf("attention_forward_%d", t.dims), [3]int{ceil(b.length, t.rows), heads, b.rows}, [2]int{t.threads, 1}, t.forward,
		k.qkv, k.o, k.lse, b.length, d/heads, scale(d/heads))
}

// rotate applies the rotary embedding in place, or takes a gradient back.
func (p *pass) rotate(qkv ptr, sign float32) {
	c := p.config
	half := c.RotaryDims() / 2
	if n := p.b.n * c.Attention.Heads * 2 * half; n > 0 {
		p.kernel("rotary", [3]int{ceil(n, 256), 1, 1}, [2]int{256, 1}, 0, qkv, p.rotary, p.b.n, p.b.length, c.Attention.Heads, c.Dim/c.Attention.Heads, half, sign)
	}
}

// forward computes layers 0 … top of the tokens in b.tokens; after, where there
// is one, sees the residual stream after each.
func (p *pass) forward(after func(layer int, x ptr)) {
	side := p.beside()
	side.after(p.queue, eventStart)
	p.embed(p.b.blocks[0].x)
	if p.config.Architecture == checkpoint.HyenaNeoX { // all filters, beside the blocks
		for i := range p.b.blocks {
			side.filter(&p.b.blocks[i], checkpoint.Block(i)+"hyena.filter.")
			side.mark(eventFilter + i)
		}
		p.note(side.err)
	}
	for i := range p.b.blocks {
		p.block(i)
		if after != nil {
			after(i, p.b.blocks[i].next)
		}
	}
}

// final is the final norm, the input of the output embedding.
func (p *pass) final() {
	x := p.b.blocks[len(p.b.blocks)-1].next
	p.norm(x, finalNorm, "", p.b.hf, 0, p.b.fmean, p.b.frstd)
}

const finalNorm = "gpt_neox.final_layer_norm."

// logits are those of rows positions from row on: dst[rows, ldv] = hf · Eᵀ.
func (p *pass) logits(dst ptr, row, rows int) {
	d := p.config.Dim
	p.product(product{m: rows, n: p.config.Vocab, k: d, a: p.b.hf + ptr(p.element.size()*int64(row)*int64(d)), lda: d, b: p.operand(checkpoint.EmbedOut), tb: true, ldb: d,
		d: dst, ldd: p.b.ldv, in: p.element, out: p.element})
}
