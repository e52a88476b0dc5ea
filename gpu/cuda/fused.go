//go:build cuda

package cuda

import "github.com/scavenge/scavenge/schemas/checkpoint"

// What runs on products of our own where the card is a Hopper and operands are
// bf16: matmul_hopper.cuh and its users.

// crossEntropy leaves the losses of all positions, the gradient of the output
// embedding, and in dhf that of its input, as head_hopper.cu has them; a is one
// over how many positions have a label.
func (p *pass) crossEntropy(dhf ptr, a float64) {
	b, d, vocab := p.b, p.config.Dim, p.config.Vocab
	w := p.operand(checkpoint.EmbedOut)
	warps := [2]int{256, 1} // a row each
	p.launch("head_reference", [3]int{ceil(b.n, 8), 1, 1}, warps, 0, b.hf, w, b.tokens, b.reference, b.n, b.length, d)
	for row := 0; row < b.n; row += b.chunk {
		n := min(b.chunk, b.n-row)
		at := ptr(2 * int64(row) * int64(d))
		parts, _ := matmulParts(n, vocab, p.multiprocessors)
		p.matmul("head_exponentials", matrix{b.hf, b.n, d}, matrix{w, vocab, d}, row, n, parts, b.reference, b.logits, b.expSums, b.ldv)
		p.launch("head_far", [3]int{n, 1, 1}, [2]int{256, 1}, 0, b.hf, w, b.reference, b.expSums, b.logits, b.expTotal, b.shift, row, vocab, d, b.ldv, 2*parts)
		p.launch("head_finish", [3]int{ceil(n, 8), 1, 1}, warps, 0, b.hf, b.expTotal, b.shift, b.tokens, b.logits, b.scaled, b.nll, b.factor, row, n, b.length, d, b.ldv, float32(a))
		beta := float32(1)
		if row == 0 {
			beta = 0
		}
		p.product(product{m: vocab, n: d, k: n, a: b.logits, ta: true, lda: b.ldv, b: b.scaled, ldb: d, beta: beta, d: p.gradient(checkpoint.EmbedOut), ldd: d, in: bf16s, out: float32s})
		p.product(product{m: n, n: d, k: vocab, a: b.logits, lda: b.ldv, b: w, ldb: d, d: dhf + at, ldd: d, in: bf16s, out: bf16s})
	}
	p.launch("scale_rows", [3]int{ceil(b.n, 8), 1, 1}, warps, 0, dhf, b.factor, b.n, d)
}

// geluUp is a[N, Hidden] = x̂[N, D] · W'ᵀ + b' and g = GELU(a) of a block; a is
// left out where nothing will ask for it.
func (p *pass) geluUp(k *block, f *fold, keep bool) {
	a := k.a
	if !keep {
		a = 0
	}
	p.matmul("mlp_up", matrix{k.h, p.b.n, f.in}, matrix{f.weight, f.out, f.in}, 0, p.b.n, 0, f.wide, a, k.g, f.out, f.out)
}

// geluDown is dg[N, Hidden] = (dx[N, D] · W) ⊙ GELU'(a), W [D, Hidden], and leaves
// its column sums in p.partial.
func (p *pass) geluDown(k *block, w ptr) {
	b, d, hidden := p.b, p.config.Dim, p.config.Hidden
	p.launch("transpose", [3]int{ceil(hidden, 32), ceil(d, 32), 1}, columns, 0, w, b.turned, d, hidden)
	p.matmul("mlp_down_gradient", matrix{b.dx, b.n, d}, matrix{b.turned, hidden, d}, 0, b.n, 0, k.a, b.dg, b.geluSums, hidden, hidden)
	p.launch("column_sum_float32", [3]int{ceil(hidden, 32), sumParts, 1}, columns, 0, b.geluSums, p.partial, geluSums(b.n, hidden)/hidden, hidden)
}

// geluSums is how many float32 geluDown's first sums take: four rows a strip.
func geluSums(n, hidden int) int { return 4 * ceil(n, matmulTile) * hidden }
