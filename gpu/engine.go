// Package gpu is what trainers and transforms see of a device: an Engine opens
// models, computes their outputs and takes training steps. The engines are in
// gpu/cpu (the reference, on spago) and gpu/cuda; tests that every engine must
// pass are in gpu/enginetest.
package gpu

import (
	"errors"
	"fmt"

	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/dtype"
)

// ErrDevice is wrapped by Open for a device that this build or machine lacks.
var ErrDevice = errors.New("no such device")

// Engine is one device. Its methods, and those of its models, are called from
// one goroutine at a time.
type Engine interface {
	// Device names the device ("cpu, 2 threads"; "NVIDIA H100 80GB HBM3").
	Device() string
	// Memory is in bytes; total is 0 where the device has no limit of its own.
	Memory() (used, total int64)
	// Open copies a model to the device. It fails if the weights do not fit
	// the configuration or the device's memory.
	Open(m *checkpoint.Model, o Options) (Model, error)
	Close() error
}

// Precision is the arithmetic of matrix products and stored activations;
// norms, softmax, losses, master weights and optimiser state are float32 with
// either Float32 or BFloat16.
type Precision string

// The precisions. The cpu engine has Float32 and, as the reference for
// everything else, Float64; a GPU has Float32 and BFloat16.
const (
	Float32  Precision = "float32"
	BFloat16 Precision = "bf16"
	Float64  Precision = "float64"
)

// Options of a model on a device. The zero value is a float32 model that can
// be evaluated; Train makes room for gradients and optimiser state.
type Options struct {
	Precision Precision // "" is Float32
	Train     bool
	Optimizer AdamW // the zero value is PaperAdamW
	// PrefixCache is the device memory, in bytes, that may hold what frozen
	// blocks computed for a sequence, for layer-mse steps that meet it again
	// (Step.IDs); at most, and below 0, most of what is free. Results do not depend
	// on it, and an engine may do without.
	PrefixCache int64
}

// AdamW holds the constants of decoupled weight decay (Loshchilov and Hutter
// 2019), applied to the weights whose Spec.Decays.
type AdamW struct {
	Beta1, Beta2, Eps, Decay float64
	Clip                     float64 // bound on the gradients' global norm; 0: none
}

// PaperAdamW is betas (0.9, 0.98), eps 1e-8, decay 0.1, no clipping.
func PaperAdamW() AdamW { return AdamW{Beta1: 0.9, Beta2: 0.98, Eps: 1e-8, Decay: 0.1} }

// Validate says which constant is out of its range.
func (a AdamW) Validate() error {
	if !(a.Beta1 >= 0 && a.Beta1 < 1) || !(a.Beta2 >= 0 && a.Beta2 < 1) || !(a.Eps > 0) || !(a.Decay >= 0) || !(a.Clip >= 0) {
		return fmt.Errorf("optimizer: betas %g and %g, eps %g, decay %g, clip %g: want betas in [0, 1), eps above 0, the others not below", a.Beta1, a.Beta2, a.Eps, a.Decay, a.Clip)
	}
	return nil
}

// Batch is Rows sequences of Length tokens each, row-major.
type Batch struct {
	Rows, Length int
	Tokens       []int32
}

// Check says what is wrong with a batch for a model.
func (b Batch) Check(c checkpoint.Config) error {
	if b.Rows <= 0 || b.Length <= 0 || len(b.Tokens) != b.Rows*b.Length {
		return fmt.Errorf("batch: %d tokens do not make %d rows of %d", len(b.Tokens), b.Rows, b.Length)
	}
	if b.Length > c.Context {
		return fmt.Errorf("batch: sequences of %d tokens are longer than the model's context %d", b.Length, c.Context)
	}
	for i, t := range b.Tokens {
		if t < 0 || int(t) >= c.Vocab {
			return fmt.Errorf("batch: row %d: token %d is id %d, outside the vocabulary of %d", i/b.Length, i%b.Length, t, c.Vocab)
		}
	}
	return nil
}

// Objective is what a training step minimises, and so which weights it moves.
type Objective string

const (
	// LayerMSE is the mean squared error between the teacher's and the
	// student's residual stream after block Step.Layer. It trains that block
	// alone, and the token embedding with block 0.
	LayerMSE Objective = "layer-mse"
	// JointMSE is the sum of that error over the layers in Step.Targets; it trains the token
	// embedding and all blocks up to the last of them.
	JointMSE Objective = "joint-mse"
	// CrossEntropy is the mean next-token cross entropy in nats over
	// Rows·(Length−1) predictions. It trains everything.
	CrossEntropy Objective = "cross-entropy"
	// SoftTargets is (1−w)·CrossEntropy + w·T²·KL(teacher_T ‖ student_T), the
	// latter a mean over all Rows·Length positions (Hinton et al. 2015). It
	// trains everything.
	SoftTargets Objective = "soft-targets"
)

// Target is a teacher's residual stream after one block, for every position
// of a batch: Rows·Length·Dim little-endian elements. In a step with a Teacher
// it has no values: the teacher computes them, and they are rounded to the type
// as a record of them would be, so that both ways give the same losses.
type Target struct {
	Layer  int
	Type   dtype.Type // Float32, Float16, BFloat16, or Int8 with Scales
	Values []byte
	Scales []float32 // Int8 only: one a token, value = int8 · scale
	// Rows are the values in pieces, one for each row of the batch, in place of
	// Values: as they came, and nobody had to copy them into one.
	Rows [][]byte
}

// Pieces are the values, in order.
func (t Target) Pieces() [][]byte {
	if len(t.Values) > 0 {
		return [][]byte{t.Values}
	}
	return t.Rows
}

// Size is how many bytes of values there are; 0 where a teacher computes them.
func (t Target) Size() int {
	n := 0
	for _, piece := range t.Pieces() {
		n += len(piece)
	}
	return n
}

// Decode fills dst, Rows·Length·Dim values, from a target.
func (t Target) Decode(dst []float32) error {
	size := t.Size()
	if t.Type != dtype.Int8 {
		if t.Type.Size() == 0 || size != len(dst)*t.Type.Size() {
			return fmt.Errorf("target of layer %d: dtype %s: %d bytes do not hold %d elements", t.Layer, t.Type, size, len(dst))
		}
		for _, piece := range t.Pieces() {
			n := len(piece) / t.Type.Size()
			if err := dtype.Decode(dst[:n], t.Type, piece); err != nil {
				return fmt.Errorf("target of layer %d: %w", t.Layer, err)
			}
			dst = dst[n:]
		}
		return nil
	}
	if size != len(dst) || len(t.Scales) == 0 || len(dst)%len(t.Scales) != 0 {
		return fmt.Errorf("target of layer %d: %d int8 elements with %d scales do not make %d values", t.Layer, size, len(t.Scales), len(dst))
	}
	dim := len(dst) / len(t.Scales)
	scales := t.Scales
	for _, piece := range t.Pieces() {
		if len(piece)%dim != 0 {
			return fmt.Errorf("target of layer %d: a piece of %d int8 elements does not hold tokens of %d", t.Layer, len(piece), dim)
		}
		for ; len(piece) > 0; piece, dst, scales = piece[dim:], dst[dim:], scales[1:] {
			dtype.DecodeInt8(dst[:dim], piece[:dim], scales[0])
		}
	}
	return nil
}

// Step is one training step.
type Step struct {
	Batch
	Objective   Objective
	Layer       int      // LayerMSE: the block to train
	Targets     []Target // LayerMSE: one, of Layer; JointMSE: ascending layers
	Teacher     Model    // a model of the same engine: SoftTargets, and where Targets have no values
	Temperature float64  // SoftTargets: T
	SoftWeight  float64  // SoftTargets: w
	Rate        float64  // learning rate
	IDs         []int64  // LayerMSE: names of the rows, the same for the same tokens; nil: none
}

// Check says what is wrong with a step for a model.
func (s Step) Check(c checkpoint.Config) error {
	if err := s.Batch.Check(c); err != nil {
		return err
	}
	switch s.Objective {
	case LayerMSE:
		if len(s.Targets) != 1 || s.Targets[0].Layer != s.Layer {
			return fmt.Errorf("step: %s of layer %d wants that layer's target alone", s.Objective, s.Layer)
		}
	case JointMSE:
		if len(s.Targets) == 0 {
			return fmt.Errorf("step: %s without targets", s.Objective)
		}
	case SoftTargets:
		if s.Teacher == nil || !(s.Temperature > 0) || s.SoftWeight < 0 || s.SoftWeight > 1 {
			return fmt.Errorf("step: %s wants a teacher, a positive temperature and a weight in [0, 1]", s.Objective)
		}
		fallthrough
	case CrossEntropy:
		if s.Length < 2 {
			return fmt.Errorf("step: %s needs sequences of at least 2 tokens", s.Objective)
		}
	default:
		return fmt.Errorf("step: objective %q is unknown", s.Objective)
	}
	if s.Teacher != nil {
		if err := s.checkTeacher(c); err != nil {
			return err
		}
	}
	if len(s.IDs) > 0 && len(s.IDs) != s.Rows {
		return fmt.Errorf("step: %d names for %d rows", len(s.IDs), s.Rows)
	}
	for i, t := range s.Targets {
		if t.Layer < 0 || t.Layer >= c.Layers || i > 0 && t.Layer <= s.Targets[i-1].Layer {
			return fmt.Errorf("step: target %d is of layer %d: want ascending layers below %d", i, t.Layer, c.Layers)
		}
		size := t.Size()
		if s.Teacher != nil && size+len(t.Scales) > 0 {
			return fmt.Errorf("step: target of layer %d has values, and there is a teacher to compute them", t.Layer)
		}
		if want := s.Rows * s.Length * c.Dim * t.Type.Size(); s.Teacher == nil && size != want || want == 0 {
			return fmt.Errorf("step: target of layer %d has %d bytes, want %d", t.Layer, size, want)
		}
		if len(t.Rows) > 0 && (len(t.Values) > 0 || len(t.Rows) != s.Rows) {
			return fmt.Errorf("step: target of layer %d has %d bytes in one and %d rows, want one of both, and %d rows", t.Layer, len(t.Values), len(t.Rows), s.Rows)
		}
		for row, piece := range t.Rows {
			if len(piece)*s.Rows != size {
				return fmt.Errorf("step: target of layer %d: row %d has %d bytes, want %d", t.Layer, row, len(piece), size/s.Rows)
			}
		}
		switch t.Type {
		case dtype.Float32, dtype.Float16, dtype.BFloat16:
		case dtype.Int8:
			if s.Teacher == nil && len(t.Scales) != s.Rows*s.Length {
				return fmt.Errorf("step: target of layer %d has %d scales, want one for each of %d tokens", t.Layer, len(t.Scales), s.Rows*s.Length)
			}
		default:
			return fmt.Errorf("step: target of layer %d is of type %s: want F32, F16, BF16 or I8", t.Layer, t.Type)
		}
	}
	return nil
}

// checkTeacher says what is wrong with a step's teacher for a model.
func (s Step) checkTeacher(c checkpoint.Config) error {
	t := s.Teacher.Config()
	if t.Vocab != c.Vocab {
		return fmt.Errorf("step: the teacher's vocabulary is %d, the student's %d", t.Vocab, c.Vocab)
	}
	if err := s.Batch.Check(t); err != nil {
		return fmt.Errorf("%w (teacher)", err)
	}
	if s.Objective != LayerMSE && s.Objective != JointMSE {
		return nil
	}
	if t.Dim != c.Dim {
		return fmt.Errorf("step: the teacher is %d wide, the student %d", t.Dim, c.Dim)
	}
	if last := s.Targets[len(s.Targets)-1].Layer; last >= t.Layers {
		return fmt.Errorf("step: target of layer %d: the teacher has %d layers", last, t.Layers)
	}
	return nil
}

// Trains tells whether a step moves a weight.
func (s Step) Trains(w checkpoint.Spec) bool {
	switch s.Objective {
	case LayerMSE:
		return w.Layer == s.Layer || s.Layer == 0 && w.Name == checkpoint.EmbedIn
	case JointMSE:
		last := s.Targets[len(s.Targets)-1].Layer
		return w.Layer >= 0 && w.Layer <= last || w.Name == checkpoint.EmbedIn
	}
	return true
}

// Result of a training step: the loss before the update, and the gradients'
// global norm before clipping.
type Result struct {
	Loss float64
	Norm float64
}

// Model is a model on its engine's device.
type Model interface {
	Config() checkpoint.Config
	// Hidden is the residual stream after each of the named blocks (ascending), before any
	// final norm: for each of layers Rows·Length·Dim values.
	Hidden(b Batch, layers []int) ([][]float32, error)
	// Logits is Rows·Length·Vocab values.
	Logits(b Batch) ([]float32, error)
	// Score is −log p of each token after a row's first, given those before
	// it: Rows·(Length−1) values in nats.
	Score(b Batch) ([]float32, error)
	// Step computes loss and gradients and updates the weights that the
	// objective trains. It updates nothing where the loss or the norm is not
	// finite; the caller sees that in the result.
	Step(s Step) (Result, error)
	// Gradients is Step without the update; it returns the gradient of each trained weight by name.
	Gradients(s Step) (Result, map[string][]float32, error)
	// Model copies the weights back to host memory.
	Model() (*checkpoint.Model, error)
	// Optimizer copies the optimiser's state back to host memory.
	Optimizer() (*checkpoint.Optimizer, error)
	// Restore sets the optimiser's state.
	Restore(o *checkpoint.Optimizer) error
	Close() error
}
