package cpu

import (
	"github.com/nlpodyssey/spago/mat"

	"github.com/scavenge/scavenge/gpu/cpu/simd"
	"github.com/scavenge/scavenge/schemas/checkpoint"
)

// context is what an operator runs with.
type context[T simd.Float] struct {
	*arena[T]
	wide    *arena[float64] // for what is float64 in either precision
	workers workers
}

// The graph of a model, from tokens to a loss. A block is
//
//	x̂ = standardise(x);  x ← x + mixer(γ₁ ⊙ x̂ + β₁) + mlp(γ₂ ⊙ x̂ + β₂)
//
// and its tensors are used, for the sake of a fixed order of summation
// (tensor.go), thus: x̂ by the two norms, a pair; x by residual, whose gradient
// always comes before the one that returns through x̂, since that waits for it;
// and, where a loss looks at x too, by the loss before either.

// embed is the residual stream before the first block, [N, D].
func (m *model[T]) embed(tokens []int32) mat.Tensor {
	return run(&embedding[T]{c: m.context, tokens: tokens, e: m.weights[checkpoint.EmbedIn], dim: m.config.Dim})
}

// block is the residual stream after block i.
func (m *model[T]) block(i int, x mat.Tensor, length int) mat.Tensor {
	weight := func(name string) mat.Tensor { return m.weights[checkpoint.Block(i)+name] }
	n := run(&standardise[T]{c: m.context, x: x, dim: m.config.Dim, eps: m.config.Eps})
	n1 := run(&scaleShift[T]{c: m.context, x: n, gamma: weight("input_layernorm.weight"), beta: weight("input_layernorm.bias")})
	n2 := run(&scaleShift[T]{c: m.context, x: n, gamma: weight("post_attention_layernorm.weight"), beta: weight("post_attention_layernorm.bias")})
	f := run(&mlp[T]{c: m.context, x: n2, w1: weight("mlp.dense_h_to_4h.weight"), b1: weight("mlp.dense_h_to_4h.bias"),
		w2: weight("mlp.dense_4h_to_h.weight"), b2: weight("mlp.dense_4h_to_h.bias")})
	var y mat.Tensor
	if m.config.Architecture == checkpoint.GPTNeoX {
		qkv := run(&linear[T]{c: m.context, x: n1, w: weight("attention.query_key_value.weight"), b: weight("attention.query_key_value.bias")})
		a := run(&attention[T]{c: m.context, qkv: qkv, length: length, heads: m.config.Attention.Heads, rotary: m.rotary})
		y = run(&linear[T]{c: m.context, x: a, w: weight("attention.dense.weight"), b: weight("attention.dense.bias")})
	} else {
		z := run(&linear[T]{c: m.context, x: n1, w: weight("hyena.in_proj.weight"), b: weight("hyena.in_proj.bias")})
		a := run(&hyena[T]{c: m.context, z: z, w: weight("hyena.short_filter.weight"), b: weight("hyena.short_filter.bias"),
			h: m.longFilter(i, length), beta: weight("hyena.filter.bias"), length: length})
		y = run(&linear[T]{c: m.context, x: a, w: weight("hyena.out_proj.weight"), b: weight("hyena.out_proj.bias")})
	}
	return run(&residual[T]{c: m.context, x: x, m: y, f: f})
}

// longFilter is block i's filter, [D, length]. One whose weights are not being
// trained is computed once and kept until they change.
func (m *model[T]) longFilter(i, length int) mat.Tensor {
	weight := func(name string) mat.Tensor { return m.weights[checkpoint.Block(i)+"hyena.filter."+name] }
	f := &filter[T]{c: m.context, grid: m.grid, phi: weight("freq"), length: length,
		w: [4]mat.Tensor{weight("mlp.0.weight"), weight("mlp.1.weight"), weight("mlp.2.weight"), weight("mlp.3.weight")},
		b: [3]mat.Tensor{weight("mlp.0.bias"), weight("mlp.1.bias"), weight("mlp.2.bias")}}
	if anyGrad(f.Operands()) {
		return run(f)
	}
	kept := m.filters[i]
	if kept == nil || kept.Shape()[1] != length {
		h := values[T](run(f))
		kept = newTensor(append([]T(nil), h...), m.config.Dim, length)
		m.filters[i] = kept
	}
	return kept
}

// norm is the final layer norm.
func (m *model[T]) norm(x mat.Tensor) mat.Tensor {
	n := run(&standardise[T]{c: m.context, x: x, dim: m.config.Dim, eps: m.config.Eps})
	return run(&scaleShift[T]{c: m.context, x: n, gamma: m.weights[checkpoint.FinalScale], beta: m.weights[checkpoint.FinalBias]})
}

// frozen computes the residual stream after each block up to the last, without a
// graph: what a block needed is free before the next. visit sees each block's
// output, which is overwritten later unless it is the last. It returns a leaf, so
// that a graph built on it ends there.
func (m *model[T]) frozen(tokens []int32, length, last int, visit func(layer int, x []T)) *tensor[T] {
	start := m.arena.mark()
	x := values[T](m.embed(tokens))
	for i := range last + 1 {
		leaf := newTensor(x, len(tokens), m.config.Dim)
		y := values[T](m.block(i, leaf, length))
		m.arena.release(start, y)
		x = y
		if visit != nil {
			visit(i, x)
		}
	}
	return newTensor(x, len(tokens), m.config.Dim)
}
