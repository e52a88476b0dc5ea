//go:build cuda

package cuda

import (
	"errors"
	"fmt"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
)

// model is a model on the device: weights, constants of its configuration, and
// the workspace that its calls share.
type model struct {
	engine           *engine
	config           checkpoint.Config
	options          gpu.Options
	*weights             // with the element of stored activations and matrix products
	features, decays ptr // student
	rotary           ptr // teacher
	work             workspace
	prefix           prefix
	graphs           map[kind]*captured
	closed           bool
}

// Config is the model's configuration.
func (m *model) Config() checkpoint.Config { return m.config }

// call runs f on the engine's thread, unless the model is closed.
func (m *model) call(f func() error) error {
	if m.closed {
		return errClosed
	}
	return m.engine.do(f)
}

// pass prepares a call.
func (m *model) pass(j job) (*pass, error) {
	if m.config.Architecture == checkpoint.GPTNeoX && j.rows > maxRows {
		return nil, fmt.Errorf("cuda: a batch of %d sequences: this engine's attention takes up to %d", j.rows, maxRows)
	}
	j.tensor = m.element == bf16s && !m.engine.transforms && toeplitzOf(j.length).backward <= m.engine.device.shared
	if d := m.engine.device; m.element == bf16s && d.hopper && !m.engine.cublas && m.config.Dim <= matmulWidest {
		j.fused = d.multiprocessors
	}
	b, err := m.prepare(j)
	if err != nil {
		return nil, err
	}
	return &pass{queue: &queue{device: m.engine.device}, model: m, b: b, partial: b.partial}, nil
}

// evaluate computes layers 0 … top of a batch; head makes room for logits, keep
// for what is wanted of the layers in between.
func (m *model) evaluate(b gpu.Batch, top int, head bool, keep []int) (*pass, error) {
	if err := b.Check(m.config); err != nil {
		return nil, fmt.Errorf("cuda: %w", err)
	}
	p, err := m.pass(job{rows: b.Rows, length: b.Length, top: top, from: top + 1, head: head, keep: keep})
	if err != nil {
		return nil, err
	}
	put(p.queue, p.b.tokens, b.Tokens)
	p.forward()
	if head {
		p.final()
	}
	return p, nil
}

// Hidden is the residual stream after each of the named blocks.
func (m *model) Hidden(b gpu.Batch, layers []int) (out [][]float32, err error) {
	if len(layers) == 0 {
		return nil, errors.New("cuda: hidden: no layer is named")
	}
	for i, l := range layers {
		if l < 0 || l >= m.config.Layers || i > 0 && l <= layers[i-1] {
			return nil, fmt.Errorf("cuda: hidden: layers %v: want them ascending and below %d", layers, m.config.Layers)
		}
	}
	err = m.call(func() error {
		p, err := m.evaluate(b, layers[len(layers)-1], false, layers)
		if err != nil {
			return err
		}
		for _, l := range layers {
			v := make([]float32, len(b.Tokens)*m.config.Dim)
			get(p.queue, v, p.kept(l))
			out = append(out, v)
		}
		return p.done()
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Logits are Rows·Length·Vocab values.
func (m *model) Logits(b gpu.Batch) (out []float32, err error) {
	err = m.call(func() error {
		p, err := m.evaluate(b, m.config.Layers-1, true, nil)
		if err != nil {
			return err
		}
		v := m.config.Vocab
		out = make([]float32, len(b.Tokens)*v)
		for row := 0; row < p.b.n; row += p.b.chunk {
			rows := min(p.b.chunk, p.b.n-row)
			p.logits(p.b.logits, row, rows)
			p.kernel("to_float32", [3]int{1024, 1, 1}, [2]int{256, 1}, 0, p.b.logits, p.b.dx, rows, v, p.b.ldv)
			get(p.queue, out[row*v:(row+rows)*v], p.b.dx)
		}
		return p.done()
	})
	return out, err
}

// Score is −log p of each token after a row's first.
func (m *model) Score(b gpu.Batch) (scores []float32, err error) {
	err = m.call(func() error {
		p, err := m.evaluate(b, m.config.Layers-1, true, nil)
		if err != nil {
			return err
		}
		for row := 0; row < p.b.n; row += p.b.chunk {
			rows := min(p.b.chunk, p.b.n-row)
			p.logits(p.b.logits, row, rows)
			p.kernel("cross_entropy", [3]int{rows, 1, 1}, [2]int{512, 1}, 0, p.b.logits, p.b.tokens, p.b.nll, row, b.Length, m.config.Vocab, p.b.ldv, float32(-1))
		}
		nll := make([]float32, len(b.Tokens))
		get(p.queue, nll, p.b.nll)
		scores = make([]float32, 0, b.Rows*(b.Length-1))
		for i, v := range nll {
			if i%b.Length < b.Length-1 {
				scores = append(scores, v)
			}
		}
		return p.done()
	})
	return scores, err
}

// Step computes loss and gradients and updates the weights the objective trains.
func (m *model) Step(s gpu.Step) (r gpu.Result, err error) {
	err = m.call(func() error {
		r, err = m.gradients(s, true)
		return err
	})
	return r, err
}

// Gradients is Step without the update.
func (m *model) Gradients(s gpu.Step) (r gpu.Result, g map[string][]float32, err error) {
	err = m.call(func() error {
		if r, err = m.gradients(s, false); err != nil {
			return err
		}
		g = map[string][]float32{}
		q := &queue{device: m.engine.device}
		for i, spec := range m.specs {
			if s.Trains(spec) {
				g[spec.Name] = m.read(q, m.grad, i)
			}
		}
		return q.done()
	})
	return r, g, err
}

// Model copies the weights back.
func (m *model) Model() (c *checkpoint.Model, err error) {
	err = m.call(func() error {
		c = &checkpoint.Model{Config: m.config, Weights: map[string][]float32{}}
		q := &queue{device: m.engine.device}
		for i, s := range m.specs {
			c.Weights[s.Name] = m.read(q, m.master, i)
		}
		return q.done()
	})
	return c, err
}

// Optimizer copies AdamW's state back.
func (m *model) Optimizer() (o *checkpoint.Optimizer, err error) {
	err = m.call(func() error {
		o, err = m.state()
		return err
	})
	return o, err
}

// Restore sets AdamW's state.
func (m *model) Restore(o *checkpoint.Optimizer) error {
	return m.call(func() error {
		if err := m.restore(o); err != nil {
			return fmt.Errorf("cuda: %w", err)
		}
		return nil
	})
}

// Close frees the model's memory.
func (m *model) Close() error {
	if m.closed {
		return nil
	}
	return m.engine.do(m.release)
}

// release is Close on the engine's thread.
func (m *model) release() error {
	m.closed = true
	delete(m.engine.models, m)
	d := m.engine.device
	errs := []error{m.forget(), m.weights.close()}
	for _, p := range []*ptr{&m.features, &m.decays, &m.rotary, &m.work.base, &m.prefix.cache} {
		errs = append(errs, d.free(p))
	}
	return errors.Join(errs...)
}
