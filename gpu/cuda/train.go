//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"math"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/dtype"
)

// encodings of targets, as mse.cu numbers them.
var encodings = map[dtype.Type]int{dtype.Float32: 0, dtype.Float16: 1, dtype.BFloat16: 2, dtype.Int8: 3}

// plan says what a step needs of its model.
func (m *model) plan(s gpu.Step) job {
	j := job{rows: s.Rows, length: s.Length, targets: s.Targets, embed: true}
	switch s.Objective {
	case gpu.LayerMSE:
		j.top, j.from, j.embed = s.Layer, s.Layer, s.Layer == 0
	case gpu.JointMSE:
		j.top = s.Targets[len(s.Targets)-1].Layer
	default:
		j.top, j.head, j.soft, j.targets = m.config.Layers-1, true, s.Objective == gpu.SoftTargets, nil
	}
	return j
}

// gradients computes a step's loss and leaves the trained weights' gradients
// and their norm on the device; move updates the weights as well.
func (m *model) gradients(s gpu.Step, move bool) (gpu.Result, error) {
	none := gpu.Result{}
	if !m.options.Train {
		return none, errors.New("cuda: step: the model was opened without Train")
	}
	if err := s.Check(m.config); err != nil {
		return none, fmt.Errorf("cuda: %w", err)
	}
	if math.IsNaN(s.Rate) || math.IsInf(s.Rate, 0) {
		return none, fmt.Errorf("cuda: step: rate is %g", s.Rate)
	}
	p, err := m.pass(m.plan(s))
	if err != nil {
		return none, err
	}
	var teacher *pass
	if p.b.soft {
		if teacher, err = m.teacher(s); err != nil {
			return none, err
		}
	}
	p.load(s)
	terms := p.replay(s, teacher, move)
	losses, u := make([]float64, terms), make([]update, 1)
	get(p.queue, losses, p.b.losses)
	get(p.queue, u, m.update)
	r := gpu.Result{Norm: u[0].norm}
	for _, l := range losses {
		r.Loss += l
	}
	return r, p.done()
}

// load copies a step's data to the device: all that differs from one step of a
// kind to the next.
func (p *pass) load(s gpu.Step) {
	put(p.queue, p.b.tokens, s.Tokens)
	for i, t := range p.b.targets {
		put(p.queue, p.b.target[i], t.Values)
		put(p.queue, p.b.scales[i], t.Scales)
	}
	if p.b.embed {
		p.loadOrder(s.Tokens)
	}
	put(p.queue, p.update, []float32{float32(s.Rate)})
}

// compute is a step on loaded data: it touches device memory alone, and always
// the same for steps of one kind and shape. The loss is the sum of as many terms
// in b.losses as it returns.
func (p *pass) compute(s gpu.Step, teacher *pass, move bool) (terms int) {
	if teacher != nil {
		teacher.forward(nil)
		teacher.final()
		if p.err == nil {
			p.err = teacher.err
		}
	}
	p.forward(nil)
	terms = p.backward(s, teacher)
	first, end := p.trained(s)
	p.model.norm(p.queue, first, end)
	if move {
		p.adamw(p.queue, first, end, p.options.Optimizer)
	}
	return terms
}

// teacher has a soft-target step's teacher ready to give logits.
func (m *model) teacher(s gpu.Step) (*pass, error) {
	t, ok := s.Teacher.(*model)
	if !ok || t.engine != m.engine || t.element != m.element {
		return nil, errors.New("cuda: step: the teacher is a model of another engine or precision")
	}
	if t == m {
		return nil, errors.New("cuda: step: the teacher is the model that is trained")
	}
	if t.closed {
		return nil, errClosed
	}
	if err := s.Batch.Check(t.config); err != nil {
		return nil, fmt.Errorf("cuda: %w (teacher)", err)
	}
	p, err := t.pass(job{rows: s.Rows, length: s.Length, top: t.config.Layers - 1, from: t.config.Layers, head: true})
	if err != nil {
		return nil, err
	}
	put(p.queue, p.b.tokens, s.Tokens)
	return p, p.done()
}

// backward goes from the losses to every trained weight's gradient.
func (p *pass) backward(s gpu.Step, teacher *pass) (terms int) {
	b := p.b
	if b.head {
		terms = p.head(s, teacher)
	}
	if p.config.Architecture == checkpoint.HyenaNeoX {
		p.mark(eventFilterGradient) // there is none above the topmost block
	}
	next := len(b.targets) - 1
	for i := b.top; i >= b.from; i-- {
		if next >= 0 && b.targets[next].Layer == i {
			p.mse(next, terms)
			next, terms = next-1, terms+1
		}
		p.blockBackward(i, i > b.from || b.embed)
	}
	if b.embed {
		p.embedBackward()
	}
	if p.config.Architecture == checkpoint.HyenaNeoX {
		p.await(eventFilterGradient)
	}
	return terms
}

// mse adds the error against target i to the losses and its gradient to dx,
// which the topmost layer's sets.
func (p *pass) mse(i, term int) {
	b, t := p.b, p.b.targets[i]
	layer, n := t.Layer, int64(p.b.n)*int64(p.config.Dim)
	add := 0
	if layer < b.top {
		add = 1
	}
	p.kernel("mse", [3]int{sumBlocks, 1, 1}, [2]int{256, 1}, 0, b.blocks[layer].next, b.target[i], b.scales[i], b.dx, p.narrow(), p.partial, n, p.config.Dim, encodings[t.Type], add)
	p.launch("total", [3]int{1, 1, 1}, [2]int{1024, 1}, 0, p.partial, int64(sumBlocks), 1/float64(n), b.losses+ptr(8*term))
}

// head is the output embedding and the losses on logits, chunk by chunk, then
// the final norm: it sets dx.
func (p *pass) head(s gpu.Step, teacher *pass) (terms int) {
	b, d, vocab := p.b, p.config.Dim, p.config.Vocab
	p.final()
	hard, soft := 1.0, 0.0
	if b.soft {
		hard, soft = 1-s.SoftWeight, s.SoftWeight
	}
	hard /= float64(b.rows) * float64(b.length-1)
	soft /= float64(b.n)
	last := len(b.blocks) - 1
	dhf := b.dh1
	for row := 0; row < b.n; row += b.chunk {
		rows := min(b.chunk, b.n-row)
		at := ptr(p.element.size() * int64(row) * int64(d))
		p.terms(s, teacher, row, rows, hard, soft)
		beta := float32(1)
		if row == 0 {
			beta = 0
		}
		p.product(product{m: vocab, n: d, k: rows, a: b.logits, ta: true, lda: b.ldv, b: b.hf + at, ldb: d, beta: beta, d: p.gradient(checkpoint.EmbedOut), ldd: d, in: p.element, out: float32s})
		p.product(product{m: rows, n: d, k: vocab, a: b.logits, lda: b.ldv, b: p.operand(checkpoint.EmbedOut), ldb: d, d: dhf + at, ldd: d, in: p.element, out: p.element})
	}
	p.launch("total", [3]int{1, 1, 1}, [2]int{1024, 1}, 0, b.nll, int64(b.n), hard, b.losses)
	terms = 1
	if b.soft {
		p.launch("total", [3]int{1, 1, 1}, [2]int{1024, 1}, 0, b.kl, int64(b.n), soft, b.losses+8)
		terms = 2
	}
	x := b.blocks[last].next
	p.normParameters(x, b.fmean, b.frstd, dhf, 0, finalNorm, "")
	p.kernel("layernorm_backward", [3]int{ceil(b.n, 8), 1, 1}, [2]int{256, 1}, 0, x, b.fmean, b.frstd, p.at(finalNorm+"weight"), ptr(0), dhf, ptr(0), ptr(0), b.dx, p.narrow(), b.n, d)
	return terms
}

// terms leaves the losses of a chunk of positions, and their logits' gradients
// in place of the logits.
func (p *pass) terms(s gpu.Step, teacher *pass, row, rows int, hard, soft float64) {
	b := p.b
	p.logits(b.logits, row, rows)
	if !b.soft {
		p.kernel("cross_entropy", [3]int{rows, 1, 1}, [2]int{512, 1}, 0, b.logits, b.tokens, b.nll, row, b.length, p.config.Vocab, b.ldv, float32(hard))
		return
	}
	// the teacher's queue is another one on the same stream
	teacher.logits(b.teacher, row, rows)
	p.note(teacher.err)
	p.kernel("soft_targets", [3]int{rows, 1, 1}, [2]int{512, 1}, 0, b.logits, b.teacher, b.tokens, b.nll, b.kl, row, b.length, p.config.Vocab, b.ldv,
		float32(s.Temperature), float32(hard), float32(soft))
}
