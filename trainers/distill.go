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

// Distill fits a student's layer outputs to a teacher's and leaves the student
// in the run's folder.
func Distill(ctx context.Context, o DistillOptions) (s Summary, err error) {
	o.setSource()
	if err := o.Validate(); err != nil {
		return s, err
	}
	set, course, err := o.open()
	if err != nil {
		return s, err
	}
	if err := o.Evaluation.check(set); err != nil {
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
	d := &distillation{DistillOptions: o, set: set, course: course, teacher: teacher, config: teacher.Config, fingerprint: teacher.Fingerprint()}
	chosen := o.shared()
	chosen["init"], chosen["schedule"], chosen["follow"] = begin, d.schedule(), o.Follow
	o.Advance.settings(chosen, o.Evaluation)
	if o.Source == FromInline {
		chosen["dtype"] = o.dtype()
	}
	fresh := checkpoint.Trainer{Kind: "distill", Seed: o.Seed, Teacher: d.fingerprint, TokenSet: set.Fingerprint()}
	switch {
	case o.Follow && o.From == FromLatest:
		fresh.Epoch = Latest
	case o.Follow:
		fresh.Epoch = Earliest
	}
	f, err := openFolder(o.Dir, fresh, chosen)
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
	d.engine = e
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
	set         *tokenset.Set   // of a growing one, the first part
	course      tokenset.Course // where a stream is followed
	engine      gpu.Engine
	teacher     *checkpoint.Model
	config      checkpoint.Config // the teacher's
	fingerprint string            // the teacher's
	beside      gpu.Model         // the teacher on the device, where the source is inline
	typ         dtype.Type        // what its outputs are rounded to
}

// open opens the token set: where a stream is followed, it may be a growing one.
func (o DistillOptions) open() (*tokenset.Set, tokenset.Course, error) {
	if !o.Follow {
		set, err := openSet(o.Dataset)
		return set, nil, err
	}
	if set, err := tokenset.Open(o.Dataset); err == nil {
		return set, set, nil
	} else if !errors.Is(err, tokenset.ErrGrowing) {
		return nil, nil, fmt.Errorf("--dataset: %w", err)
	}
	series, err := tokenset.OpenSeries(o.Dataset)
	if err != nil {
		return nil, nil, fmt.Errorf("--dataset: %w", err)
	}
	return series.First(), series, nil
}

// prefixBytes is what the residual stream in front of one layer takes for all
// training sequences: more than that no device need keep. A stream that is
// followed hardly gives a sequence twice.
func (d *distillation) prefixBytes() int64 {
	if d.Follow {
		return 0
	}
	element := int64(dtype.Float32.Size())
	if d.Precision == gpu.BFloat16 {
		element = int64(dtype.BFloat16.Size())
	}
	return d.set.Rows(tokenset.Train) * int64(d.set.Manifest.SeqLen) * int64(d.config.Dim) * element
}

// length is a stage's steps and sequences, and its learning rates.
func (d *distillation) length() (steps, sequences int64, rate Schedule, err error) {
	if !d.Follow || d.Steps > 0 {
		rows := d.set.Rows(tokenset.Train)
		if d.Follow {
			rows = max(1, rows) // more may come
		}
		steps, sequences, err = d.Run.length(rows)
		return steps, sequences, d.Rate.overSteps(steps), err
	}
	if d.Advance.Rule == AdvanceTokens {
		step := int64(d.Batch) * int64(d.set.Manifest.SeqLen)
		return unbounded, 0, d.Rate.overSteps((d.Advance.Tokens + step - 1) / step), nil
	}
	return unbounded, 0, d.Rate.open(), nil
}

// stages are one a layer, or one for all.
func (d *distillation) stages() ([]stage, error) {
	steps, sequences, rate, err := d.length()
	if err != nil {
		return nil, err
	}
	var all []int
	for layer := range d.config.Layers {
		all = append(all, layer)
	}
	base := stage{layer: -1, steps: steps, rate: rate, follow: d.Follow, advance: d.Advance}
	heldOut := func(layers []int) func() (evaluator, error) {
		return func() (evaluator, error) {
			return d.Evaluation.distance(d.engine, d.teacher, d.Precision, d.set, d.Batch, layers)
		}
	}
	if d.schedule() == Joint {
		base.heldOut = heldOut(all)
		base.open, base.step = d.opener(all, sequences), d.step(gpu.Step{Objective: gpu.JointMSE}, all)
		return []stage{base}, nil
	}
	var list []stage
	for _, layer := range all {
		g := base
		g.layer, g.open, g.heldOut = layer, d.opener([]int{layer}, sequences), heldOut([]int{layer})
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
		p := Plan{Tokens: d.set, Length: d.set.Manifest.SeqLen, Seed: d.Seed, Shuffle: d.Shuffle, Batch: d.Batch, Total: sequences, Start: at, Follow: d.Follow}
		if series, ok := d.course.(*tokenset.Series); ok {
			p.Tokens = series
		}
		if d.Source == FromInline {
			return NewTokenSource(p)
		}
		var former []int
		for layer := range layers[0] {
			former = append(former, layer)
		}
		return d.Feed.open(ctx, d.Dir, Stream{Layers: layers, Former: former, Dim: d.config.Dim, Teacher: d.fingerprint, TokenSet: d.set.Fingerprint(), Course: d.course,
			Notice: func(s string) { d.say("%s", s) }}, p)
	}
}
