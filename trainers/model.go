package trainers

import (
	"fmt"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	_ "github.com/scavenge/scavenge/schemas/store/cloud" // token sets in s3:// and gs://
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// LoadModel loads a checkpoint for the flag that names it; dir may also be a
// run's folder, whose latest checkpoint is meant then.
func LoadModel(flag, dir string) (*checkpoint.Model, error) {
	if dir == "" {
		return nil, fmt.Errorf("%s is missing: the folder of a checkpoint", flag)
	}
	m, err := checkpoint.Load(dir)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return m, nil
}

func openSet(dir string) (*tokenset.Set, error) {
	if dir == "" {
		return nil, fmt.Errorf("--dataset is missing: the folder of a token set")
	}
	s, err := tokenset.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("--dataset: %w", err)
	}
	return s, nil
}

// suits says why a model cannot read a token set's sequences.
func suits(flag string, c checkpoint.Config, m *tokenset.Manifest) error {
	if m.Tokenizer.Vocab > c.Vocab {
		return fmt.Errorf("%s and --dataset do not fit: the token set's vocabulary is %d, the model's %d", flag, m.Tokenizer.Vocab, c.Vocab)
	}
	if m.SeqLen > c.Context {
		return fmt.Errorf("%s and --dataset do not fit: the token set's sequences have %d tokens, the model's context is %d", flag, m.SeqLen, c.Context)
	}
	return nil
}

// device opens the device of a run; "" is cpu.
func device(name string) (gpu.Engine, error) {
	if name == "" {
		name = "cpu"
	}
	e, err := gpu.Open(name)
	if err != nil {
		return nil, fmt.Errorf("--device: %w", err)
	}
	return e, nil
}

// StudentOptions say what a student begins as.
type StudentOptions struct {
	Student string // checkpoint to go on from; "": a new student by Init
	Init    Init   // "": teacher
	Context int    // longest sequence of a new student, tokens; 0: the token set's
	Width   int    // of a new student's filter FFN; 0: 64
	Bands   int    // positional features of its filters; 0: 33
}

// Validate says which option no student can have.
func (o StudentOptions) Validate() error {
	if o.Context < 0 || o.Width < 0 || o.Bands < 0 {
		return fmt.Errorf("--context %d, --filter-width %d, --filter-features %d: want positive numbers", o.Context, o.Width, o.Bands)
	}
	if o.Init == "" {
		return nil
	}
	return o.Init.Validate()
}

func (o StudentOptions) hyena() checkpoint.Hyena {
	h := checkpoint.DefaultHyena()
	if o.Width != 0 {
		h.Width = o.Width
	}
	if o.Bands != 0 {
		h.Features = o.Bands
	}
	return h
}

// start is the student that training begins with, and what to call it in the
// run's settings.
func (o StudentOptions) start(teacher *checkpoint.Model, seqLen int, seed int64) (m *checkpoint.Model, name string, err error) {
	if o.Student != "" {
		m, err = LoadModel("--student", o.Student)
		if err != nil {
			return nil, "", err
		}
		return m, "checkpoint " + m.Fingerprint(), nil
	}
	if teacher == nil {
		return nil, "", fmt.Errorf("--student is missing: the folder of a checkpoint (or --teacher, for a new student by --init)")
	}
	kind, context := o.Init, o.Context
	if kind == "" {
		kind = InitTeacher
	}
	if context == 0 {
		context = seqLen
	}
	m, err = NewStudent(teacher.Config.Student(o.hyena(), context), teacher, kind, seed)
	if err != nil {
		return nil, "", err
	}
	return m, fmt.Sprintf("%s, context %d, filter %d × %d", kind, context, m.Config.Hyena.Width, m.Config.Hyena.Features), nil
}
