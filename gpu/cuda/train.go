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

// encodings of targets in records and, as a teacher on the device leaves them,
// still to be rounded; as target.cuh numbers them.
var (
	encodings = map[dtype.Type]int{dtype.Float32: 0, dtype.Float16: 1, dtype.BFloat16: 2, dtype.Int8: 3}
	roundings = map[dtype.Type]int{dtype.Float32: 0, dtype.Float16: 5, dtype.BFloat16: 6, dtype.Int8: 7}
)

// encoding is a target's. That of a teacher on the device has no values.
func (p *pass) encoding(t gpu.Target) int {
	if t.Size() == 0 {
		return roundings[t.Type]
	}
	return encodings[t.Type]
}

// plan says what a step needs of its model.
func (m *model) plan(s gpu.Step) job {
	j := job{rows: s.Rows, length: s.Length, targets: s.Targets, embed: true}
	switch s.Objective {
	case gpu.LayerMSE:
		j.top, j.from, j.embed = s.Layer, s.Layer, s.Layer == 0
	case gpu.JointMSE:
		j.top = s.Targets[len(s.Targets)-1].Layer
		j.keep = layers(s.Targets[:len(s.Targets)-1])
	default:
		j.top, j.head, j.soft, j.targets = m.config.Layers-1, true, s.Objective == gpu.SoftTargets, nil
	}
	return j
}

// layers of targets.
func layers(targets []gpu.Target) (list []int) {
	for _, t := range targets {
		list = append(list, t.Layer)
	}
	return list
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
	if s.Teacher != nil {
		if teacher, err = m.teacher(s, p); err != nil {
			return none, err
		}
	}
	p.reuse(s, move)
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
// kind to the next, but for the targets.
func (p *pass) load(s gpu.Step) {
	put(p.queue, p.b.tokens, s.Tokens)
	put(p.queue, p.b.slots, p.b.rowSlots)
	if p.b.embed {
		p.loadOrder(s.Tokens)
	}
	put(p.queue, p.update, []float32{float32(s.Rate)})
}

// loadTargets copies the targets of a step without a teacher beside. They go
// while what was issued before runs, and what follows waits for them.
func (p *pass) loadTargets() {
	for i, t := range p.b.targets {
		at := p.b.target[i]
		for _, piece := range t.Pieces() {
			p.stage(at, piece)
			at += ptr(len(piece))
		}
		put(p.queue, p.b.scales[i], t.Scales)
	}
	p.staged()
}

// outputs is the first part of a step on loaded data: it touches device memory
// alone, and always the same for steps of one kind and shape.
func (p *pass) outputs(teacher *pass) {
	if teacher != nil {
		teacher.forward()
		if p.b.soft {
			teacher.final()
		}
		for i, t := range p.b.targets {
			p.b.target[i] = teacher.kept(t.Layer)
		}
		p.note(teacher.err)
	}
	p.forward()
}

// learn is the second part: losses, gradients and, where it is to move them,
// the weights. The loss is the sum of as many terms in b.losses as it returns.
func (p *pass) learn(s gpu.Step, teacher *pass, move bool) (terms int) {
	terms = p.backward(s, teacher)
	first, end := p.trained(s)
	p.weights.norm(p.queue, first, end)
	if move {
		p.adamw(p.queue, first, end, p.options.Optimizer)
		for i := p.b.from; i <= p.b.top; i++ {
			p.weights.fold(p.queue, i)
		}
	}
	return terms
}

// teacher has a step's teacher ready to give logits or targets.
func (m *model) teacher(s gpu.Step, student *pass) (*pass, error) {
	t, ok := s.Teacher.(*model)
	if !ok || t.engine != m.engine || student.b.soft && t.element != m.element {
		return nil, errors.New("cuda: step: the teacher is a model of another engine or precision")
	}
	if t == m {
		return nil, errors.New("cuda: step: the teacher is the model that is trained")
	}
	if t.closed {
		return nil, errClosed
	}
	j := job{rows: s.Rows, length: s.Length, top: t.config.Layers - 1, head: student.b.soft}
	if !j.head {
		j.keep = layers(s.Targets)
		j.top = j.keep[len(j.keep)-1]
	}
	j.from = j.top + 1
	p, err := t.pass(j)
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
	at := len(b.targets) - 1
	target := func(layer int) int { // the target after a layer, once
		if at >= 0 && b.targets[at].Layer == layer {
			at--
			return at + 1
		}
		return -1
	}
	if !b.head {
		p.streamBackward(b.top, target(b.top), terms)
		terms++
	}
	for i := b.top; i >= b.from; i-- {
		below := i > b.from || b.embed
		p.blockBackward(i, below)
		if below {
			t := target(i - 1)
			p.streamBackward(i-1, t, terms)
			if t >= 0 {
				terms++
			}
		}
	}
	if b.embed {
		p.embedBackward()
	}
	if p.config.Architecture == checkpoint.HyenaNeoX {
		p.await(eventFilterGradient)
	}
	return terms
}

// head is the output embedding and the losses, then the final norm: it sets dx.
func (p *pass) head(s gpu.Step, teacher *pass) (terms int) {
	b, d := p.b, p.config.Dim
	p.final()
	hard, soft := 1.0, 0.0
	if b.soft {
		hard, soft = 1-s.SoftWeight, s.SoftWeight
	}
	hard /= float64(b.rows) * float64(b.length-1)
	soft /= float64(b.n)
	dhf := b.dh1
	if b.exponentials() {
		p.crossEntropy(dhf, hard)
	} else {
		p.onLogits(s, teacher, dhf, hard, soft)
	}
	p.launch("total", [3]int{1, 1, 1}, [2]int{1024, 1}, 0, b.nll, int64(b.n), hard, b.losses)
	terms = 1
	if b.soft {
		p.launch("total", [3]int{1, 1, 1}, [2]int{1024, 1}, 0, b.kl, int64(b.n), soft, b.losses+8)
		terms = 2
	}
	p.kernel("layernorm_parameters", [3]int{ceil(d, 32), sumParts, 1}, columns, 0, b.x, b.fmean, b.frstd, dhf, p.partial, b.n, d)
	p.sums(0, d, 2*d, finalNorm+"weight", "")
	p.sums(d, d, 2*d, finalNorm+"bias", "")
	p.kernel("layernorm_backward", [3]int{ceil(b.n, 8), 1, 1}, [2]int{256, 1}, 0, b.x, b.fmean, b.frstd, p.at(finalNorm+"weight"), dhf, b.dx, b.n, d)
	return terms
}

// onLogits leaves the losses and the gradients of the output embedding and of its
// input, dhf, chunk by chunk of logits.
func (p *pass) onLogits(s gpu.Step, teacher *pass, dhf ptr, hard, soft float64) {
	b, d, vocab := p.b, p.config.Dim, p.config.Vocab
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
