package trainers

import (
	"context"
	"errors"
	"fmt"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/dtype"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// The ways through the layers.
const (
	Progressive = "progressive" // layer after layer, those below frozen
	Joint       = "joint"       // all layers at once
)

// DistillOptions are those of Distill.
type DistillOptions struct {
	Run
	StudentOptions
	Teacher  string // checkpoint
	Schedule string // Progressive or Joint; "": Progressive

	Feed        // Source: FromStream, FromReplay or FromInline; "": FromStream
	Type string // inline: what targets are rounded to, as dtype.Parse has it; "": float16
}

// Validate says which option no distillation can have.
func (o DistillOptions) Validate() error {
	o.setSource()
	if err := o.Run.Validate(); err != nil {
		return err
	}
	if err := o.StudentOptions.Validate(); err != nil {
		return err
	}
	if o.Teacher == "" {
		return errors.New("--teacher is missing: the folder of a checkpoint")
	}
	if o.Schedule != "" && o.Schedule != Progressive && o.Schedule != Joint {
		return fmt.Errorf("--schedule %q: want %s or %s", o.Schedule, Progressive, Joint)
	}
	switch o.Source {
	case FromInline:
		_, err := dtype.Parse(o.dtype())
		return err
	case FromStream, FromReplay:
	default:
		return fmt.Errorf("--source %q: want %s, %s or %s", o.Source, FromStream, FromReplay, FromInline)
	}
	return o.Feed.Validate()
}

func (o *DistillOptions) setSource() {
	if o.Source == "" {
		o.Source = FromStream
	}
}

func (o DistillOptions) dtype() string {
	if o.Type == "" {
		return "float16"
	}
	return o.Type
}

// Distill fits a student's layer outputs to a teacher's and leaves the student
// in the run's folder.
func Distill(ctx context.Context, o DistillOptions) (s Summary, err error) {
	o.setSource()
	if err := o.Validate(); err != nil {
		return s, err
	}
	set, err := openSet(o.Dataset)
	if err != nil {
		return s, err
	}
	teacher, err := LoadModel("--teacher", o.Teacher)
	if err != nil {
		return s, err
	}
	student, begin, err := o.start(teacher, set.Manifest.SeqLen, o.Seed)
	if err != nil {
		return s, err
	}
	for flag, c := range map[string]checkpoint.Config{"--teacher": teacher.Config, "--student": student.Config} {
		if err := suits(flag, c, set.Manifest); err != nil {
			return s, err
		}
	}
	if err := fits(student.Config, teacher.Config); err != nil {
		return s, err
	}
	d := &distillation{DistillOptions: o, set: set, config: teacher.Config, fingerprint: teacher.Fingerprint()}
	chosen := o.shared()
	chosen["init"], chosen["schedule"] = begin, d.schedule()
	if o.Source == FromInline {
		chosen["dtype"] = o.dtype()
	}
	f, err := openFolder(o.Dir, checkpoint.Trainer{Kind: "distill", Seed: o.Seed, Teacher: d.fingerprint, TokenSet: set.Fingerprint()}, chosen)
	if err != nil {
		return s, err
	}
	defer f.close()
	e, err := device(o.Device)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	if o.Source == FromInline {
		if d.typ, err = dtype.Parse(o.dtype()); err != nil {
			return s, err
		}
		if d.beside, err = e.Open(teacher, gpu.Options{Precision: o.Precision}); err != nil {
			return s, fmt.Errorf("--teacher: %w", err)
		}
		defer func() { err = errors.Join(err, d.beside.Close()) }()
	}
	stages, err := d.stages()
	if err != nil {
		return s, err
	}
	l := &loop{Run: o.Run, kind: "distill", stages: stages}
	return l.train(ctx, e, f, student, gpu.Options{Optimizer: gpu.PaperAdamW(), PrefixCache: d.prefixBytes()})
}

// distillation is a Distill with its inputs at hand.
type distillation struct {
	DistillOptions
	set         *tokenset.Set
	config      checkpoint.Config // the teacher's
	fingerprint string            // the teacher's
	beside      gpu.Model         // the teacher on the device, where the source is inline
	typ         dtype.Type        // what its outputs are rounded to
}

// prefixBytes is what the residual stream in front of one layer takes for all
// training sequences: more than that no device need keep.
func (d *distillation) prefixBytes() int64 {
	element := int64(dtype.Float32.Size())
	if d.Precision == gpu.BFloat16 {
		element = int64(dtype.BFloat16.Size())
	}
	return d.set.Rows(tokenset.Train) * int64(d.set.Manifest.SeqLen) * int64(d.config.Dim) * element
}

func (d *distillation) schedule() string {
	if d.Schedule == "" {
		return Progressive
	}
	return d.Schedule
}

// stages are one a layer, or one for all.
func (d *distillation) stages() ([]stage, error) {
	steps, sequences, err := d.length(d.set.Rows(tokenset.Train))
	if err != nil {
		return nil, err
	}
	var all []int
	for layer := range d.config.Layers {
		all = append(all, layer)
	}
	base := stage{layer: -1, steps: steps, rate: d.Rate.overSteps(steps)}
	if d.schedule() == Joint {
		base.open, base.step = d.opener(all, sequences), d.step(gpu.Step{Objective: gpu.JointMSE}, all)
		return []stage{base}, nil
	}
	var list []stage
	for _, layer := range all {
		g := base
		g.layer, g.open = layer, d.opener([]int{layer}, sequences)
		g.step = d.step(gpu.Step{Objective: gpu.LayerMSE, Layer: layer}, []int{layer})
		list = append(list, g)
	}
	return list, nil
}

// step makes steps on the targets of some layers: those of the batch or, from a
// source of tokens, the teacher's beside the student, which stay on the device.
func (d *distillation) step(s gpu.Step, layers []int) func(*Batch) gpu.Step {
	var inline []gpu.Target
	if d.beside != nil {
		s.Teacher = d.beside
		for _, layer := range layers {
			inline = append(inline, gpu.Target{Layer: layer, Type: d.typ})
		}
	}
	return func(b *Batch) gpu.Step {
		s.Batch, s.IDs, s.Targets = b.Batch, b.IDs, b.Targets
		if inline != nil {
			s.Targets = inline
		}
		return s
	}
}

// opener opens the source of some layers' targets, or of tokens alone.
func (d *distillation) opener(layers []int, sequences int64) func(context.Context, Position) (Source, error) {
	return func(ctx context.Context, at Position) (Source, error) {
		p := Plan{Tokens: d.set, Length: d.set.Manifest.SeqLen, Seed: d.Seed, Shuffle: d.Shuffle, Batch: d.Batch, Total: sequences, Start: at}
		if d.Source == FromInline {
			return NewTokenSource(p)
		}
		return d.Feed.open(ctx, d.Dir, Stream{Layers: layers, Dim: d.config.Dim, Teacher: d.fingerprint, TokenSet: d.set.Fingerprint(),
			Notice: func(s string) { d.say("%s", s) }}, p)
	}
}
