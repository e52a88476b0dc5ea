package cpu

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"unsafe"

	"github.com/nlpodyssey/spago/ag"
	"github.com/nlpodyssey/spago/mat"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/gpu/cpu/simd"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/checkpoint"
)

// model is a model in this engine's hands: weights as leaves of spago's graph,
// AdamW's state, and the buffers of a step.
type model[T simd.Float] struct {
	context[T]
	engine  *engine
	config  checkpoint.Config
	options gpu.Options
	specs   []checkpoint.Spec
	weights map[string]*tensor[T]  // [Shape[0], the rest]
	moments map[string]*moments[T] // of the weights trained so far
	rotary  *rotary[T]             // of a GPTNeoX
	grid    *grid                  // of a HyenaNeoX
	filters map[int]*tensor[T]     // by block, what longFilter keeps
	shape   [2]int                 // rows and length of the last batch
	closed  bool
}

func newModel[T simd.Float](e *engine, src *checkpoint.Model, o gpu.Options) *model[T] {
	m := &model[T]{engine: e, config: src.Config, options: o, specs: src.Config.Specs(),
		context: context[T]{newArena[T](), newArena[float64](), e.workers},
		weights: map[string]*tensor[T]{}, moments: map[string]*moments[T]{}, filters: map[int]*tensor[T]{}}
	for _, s := range m.specs {
		m.weights[s.Name] = newTensor(convert[T](src.Weights[s.Name]), s.Shape[0], s.Size()/s.Shape[0])
	}
	if c := src.Config; c.Architecture == checkpoint.GPTNeoX {
		m.rotary = newRotary[T](c.Context, c.RotaryDims(), c.Attention.RotaryBase)
	} else {
		m.grid = newGrid(c)
	}
	return m
}

// convert copies a slice to another precision, or the same.
func convert[To, From simd.Float](x []From) []To {
	y := make([]To, len(x))
	if same, ok := any(x).([]To); ok {
		copy(y, same)
		return y
	}
	for i, v := range x {
		y[i] = To(v)
	}
	return y
}

// bytes counts weights, optimiser state and buffers.
func (m *model[T]) bytes() int64 {
	n := 0
	for _, w := range m.weights {
		n += len(w.v)
	}
	for _, s := range m.moments {
		n += 2 * len(s.mean)
	}
	return m.arena.bytes + m.wide.bytes + int64(n)*int64(unsafe.Sizeof(T(0)))
}

var errClosed = errors.New("cpu: the model is closed")

// Config is the model's configuration.
func (m *model[T]) Config() checkpoint.Config { return m.config }

// begin prepares for a batch: no weight asks for a gradient, every buffer is free.
func (m *model[T]) begin(b gpu.Batch) error {
	if m.closed {
		return errClosed
	}
	if err := b.Check(m.config); err != nil {
		return fmt.Errorf("cpu: %w", err)
	}
	for _, w := range m.weights {
		w.SetRequiresGrad(false)
		w.ZeroGrad()
	}
	m.arena.release(0)
	m.wide.release(0)
	if s := [2]int{b.Rows, b.Length}; s != m.shape {
		m.arena.trim()
		m.wide.trim()
		m.shape = s
	}
	return nil
}

// Hidden is the residual stream after each of the named blocks.
func (m *model[T]) Hidden(b gpu.Batch, layers []int) ([][]float32, error) {
	if err := m.begin(b); err != nil {
		return nil, err
	}
	if len(layers) == 0 {
		return nil, errors.New("cpu: hidden: no layer is named")
	}
	for i, l := range layers {
		if l < 0 || l >= m.config.Layers || i > 0 && l <= layers[i-1] {
			return nil, fmt.Errorf("cpu: hidden: layers %v: want them ascending and below %d", layers, m.config.Layers)
		}
	}
	var out [][]float32
	m.frozen(b.Tokens, b.Length, layers[len(layers)-1], func(layer int, x []T) {
		if layer == layers[len(out)] {
			out = append(out, convert[float32](x))
		}
	})
	return out, nil
}

// Logits are Rows·Length·Vocab values.
func (m *model[T]) Logits(b gpu.Batch) ([]float32, error) {
	if err := m.begin(b); err != nil {
		return nil, err
	}
	c := m.config
	x := values[T](m.norm(m.frozen(b.Tokens, b.Length, c.Layers-1, nil)))
	s := make([]T, len(b.Tokens)*c.Vocab)
	product(m.workers, len(b.Tokens), c.Vocab, c.Dim, rows(x, c.Dim), across(m.weights[checkpoint.EmbedOut].v, c.Dim), s, c.Vocab, false)
	return convert[float32](s), nil
}

// Score is −log p of each token after a row's first.
func (m *model[T]) Score(b gpu.Batch) ([]float32, error) {
	if err := m.begin(b); err != nil {
		return nil, err
	}
	x := m.norm(m.frozen(b.Tokens, b.Length, m.config.Layers-1, nil))
	h := &head[T]{c: m.context, x: x, w: m.weights[checkpoint.EmbedOut], tokens: b.Tokens, length: b.Length}
	run(h)
	scores := make([]float32, 0, b.Rows*(b.Length-1))
	for i, v := range h.nll {
		if i%b.Length < b.Length-1 {
			scores = append(scores, float32(v))
		}
	}
	return scores, nil
}

// Step computes loss and gradients and updates the weights the objective trains.
func (m *model[T]) Step(s gpu.Step) (gpu.Result, error) {
	r, err := m.gradients(s)
	if err != nil || !finite(r.Loss) || !finite(r.Norm) {
		return r, err
	}
	scale := 1.0
	if o := m.options.Optimizer; o.Clip > 0 && r.Norm > o.Clip {
		scale = o.Clip / r.Norm
	}
	for _, spec := range m.specs {
		w := m.weights[spec.Name]
		if !w.HasGrad() {
			continue
		}
		state := m.moments[spec.Name]
		if state == nil {
			state = &moments[T]{mean: make([]T, len(w.v)), variance: make([]T, len(w.v))}
			m.moments[spec.Name] = state
		}
		state.update(m.workers, w.v, w.grad.v, m.options.Optimizer, s.Rate, scale, spec.Decays())
		delete(m.filters, spec.Layer)
	}
	return r, nil
}

// Gradients is Step without the update.
func (m *model[T]) Gradients(s gpu.Step) (gpu.Result, map[string][]float32, error) {
	r, err := m.gradients(s)
	if err != nil {
		return r, nil, err
	}
	g := map[string][]float32{}
	for name, w := range m.weights {
		if w.HasGrad() {
			g[name] = convert[float32](w.grad.v)
		}
	}
	return r, g, nil
}

// gradients leaves the gradient of every weight that the step trains with the weight.
func (m *model[T]) gradients(s gpu.Step) (gpu.Result, error) {
	if !m.options.Train && !m.closed {
		return gpu.Result{}, errors.New("cpu: step: the model was opened without Train")
	}
	if err := m.begin(s.Batch); err != nil {
		return gpu.Result{}, err
	}
	if err := s.Check(m.config); err != nil {
		return gpu.Result{}, fmt.Errorf("cpu: %w", err)
	}
	if math.IsNaN(s.Rate) || math.IsInf(s.Rate, 0) {
		return gpu.Result{}, fmt.Errorf("cpu: step: rate is %g", s.Rate)
	}
	s, err := m.targets(s)
	if err != nil {
		return gpu.Result{}, err
	}
	loss, value, err := m.loss(s)
	if err != nil {
		return gpu.Result{}, err
	}
	if err := ag.Backward(loss); err != nil {
		return gpu.Result{}, fmt.Errorf("cpu: step: backward: %w", err)
	}
	squares := make([]float64, len(m.specs))
	m.workers.each(len(m.specs), func(i int) {
		if w := m.weights[m.specs[i].Name]; w.HasGrad() {
			squares[i] = dot(w.grad.v, w.grad.v)
		}
	})
	total := 0.0
	for _, q := range squares {
		total += q
	}
	return gpu.Result{Loss: *value, Norm: math.Sqrt(total)}, nil
}

// loss builds the graph of a step. value is the loss in float64.
func (m *model[T]) loss(s gpu.Step) (root mat.Tensor, value *float64, err error) {
	train := func() {
		for _, spec := range m.specs {
			m.weights[spec.Name].SetRequiresGrad(s.Trains(spec))
		}
	}
	switch s.Objective {
	case gpu.LayerMSE, gpu.JointMSE:
		f := &mse[T]{c: m.context}
		for _, t := range s.Targets {
			v, err := m.decode(t, len(s.Tokens)*m.config.Dim)
			if err != nil {
				return nil, nil, fmt.Errorf("cpu: step: %w", err)
			}
			f.targets = append(f.targets, v)
		}
		var x mat.Tensor
		first, last := 0, s.Targets[len(s.Targets)-1].Layer
		if s.Objective == gpu.LayerMSE && s.Layer > 0 {
			first = s.Layer
			x = m.frozen(s.Tokens, s.Length, first-1, nil)
			train()
		} else {
			train()
			x = m.embed(s.Tokens)
		}
		for i, next := first, 0; i <= last; i++ {
			x = m.block(i, x, s.Length)
			if i == s.Targets[next].Layer {
				f.x = append(f.x, x)
				next++
			}
		}
		return run(f), &f.value, nil
	default:
		f := &head[T]{c: m.context, w: m.weights[checkpoint.EmbedOut], tokens: s.Tokens, length: s.Length}
		if s.Objective == gpu.SoftTargets {
			if f.teacherX, f.teacherW, err = m.teacher(s); err != nil {
				return nil, nil, err
			}
			f.weight, f.temperature = s.SoftWeight, s.Temperature
		}
		train()
		x := m.embed(s.Tokens)
		for i := range m.config.Layers {
			x = m.block(i, x, s.Length)
		}
		f.x = m.norm(x)
		return run(f), &f.value, nil
	}
}

// decode is a target's n values.
func (m *model[T]) decode(t gpu.Target, n int) ([]T, error) {
	v := m.arena.take(n)
	if same, ok := any(v).([]float32); ok {
		return v, t.Decode(same)
	}
	single := make([]float32, n)
	err := t.Decode(single)
	return convert[T](single), err
}

// targets has the teacher of a step without targets' values compute them.
func (m *model[T]) targets(s gpu.Step) (gpu.Step, error) {
	if s.Teacher == nil || s.Objective == gpu.SoftTargets {
		return s, nil
	}
	t, err := m.beside(s)
	if err != nil {
		return s, err
	}
	var layers []int
	for _, target := range s.Targets {
		layers = append(layers, target.Layer)
	}
	hidden, err := t.Hidden(s.Batch, layers)
	if err != nil {
		return s, fmt.Errorf("%w (teacher)", err)
	}
	s.Targets = slices.Clone(s.Targets)
	for i := range s.Targets {
		target := &s.Targets[i]
		if target.Values, target.Scales, err = activation.Encode(target.Type, hidden[i], m.config.Dim); err != nil {
			return s, fmt.Errorf("cpu: step: teacher: layer %d: %w", target.Layer, err)
		}
	}
	return s, nil
}

// beside is a step's teacher.
func (m *model[T]) beside(s gpu.Step) (*model[T], error) {
	t, ok := s.Teacher.(*model[T])
	if !ok || t.engine != m.engine {
		return nil, errors.New("cpu: step: the teacher is a model of another engine or precision")
	}
	if t == m {
		return nil, errors.New("cpu: step: the teacher is the model that is trained")
	}
	return t, nil
}

// teacher is the input of the teacher's output embedding for a step's batch,
// and that embedding.
func (m *model[T]) teacher(s gpu.Step) (x, w []T, err error) {
	t, err := m.beside(s)
	if err != nil {
		return nil, nil, err
	}
	if err := t.begin(s.Batch); err != nil {
		return nil, nil, fmt.Errorf("%w (teacher)", err)
	}
	return values[T](t.norm(t.frozen(s.Tokens, s.Length, t.config.Layers-1, nil))), t.weights[checkpoint.EmbedOut].v, nil
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

// Model copies the weights back.
func (m *model[T]) Model() (*checkpoint.Model, error) {
	if m.closed {
		return nil, errClosed
	}
	c := &checkpoint.Model{Config: m.config, Weights: map[string][]float32{}}
	for name, w := range m.weights {
		c.Weights[name] = convert[float32](w.v)
	}
	return c, nil
}

// Optimizer copies AdamW's state back.
func (m *model[T]) Optimizer() (*checkpoint.Optimizer, error) {
	if m.closed {
		return nil, errClosed
	}
	o := &checkpoint.Optimizer{Mean: map[string][]float32{}, Variance: map[string][]float32{}, Steps: map[string]int64{}}
	for name, s := range m.moments {
		o.Mean[name], o.Variance[name] = convert[float32](s.mean), convert[float32](s.variance)
		o.Steps[name] = s.steps
	}
	return o, nil
}

// Restore sets AdamW's state; weights that it does not name start anew.
func (m *model[T]) Restore(o *checkpoint.Optimizer) error {
	if m.closed {
		return errClosed
	}
	if len(o.Mean) != len(o.Steps) || len(o.Variance) != len(o.Steps) {
		return fmt.Errorf("cpu: restore: %d means, %d variances and %d step counts", len(o.Mean), len(o.Variance), len(o.Steps))
	}
	state := map[string]*moments[T]{}
	for name, steps := range o.Steps {
		w := m.weights[name]
		if w == nil {
			return fmt.Errorf("cpu: restore: weight %s is unknown to this model", name)
		}
		if len(o.Mean[name]) != len(w.v) || len(o.Variance[name]) != len(w.v) || steps < 1 {
			return fmt.Errorf("cpu: restore: weight %s: %d means and %d variances after %d steps, want %d each", name, len(o.Mean[name]), len(o.Variance[name]), steps, len(w.v))
		}
		state[name] = &moments[T]{steps, convert[T](o.Mean[name]), convert[T](o.Variance[name])}
	}
	m.moments = state
	return nil
}

// Close frees the model.
func (m *model[T]) Close() error {
	delete(m.engine.models, m)
	m.closed = true
	m.weights, m.moments, m.filters = nil, nil, nil
	m.arena.release(0)
	m.wide.release(0)
	m.arena.trim()
	m.wide.trim()
	return nil
}
