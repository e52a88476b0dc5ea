package trainers

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// FinetuneOptions are those of Finetune.
type FinetuneOptions struct {
	Run
	StudentOptions
	Feed // of tokens; Source: FromDataset, FromStream or FromReplay; "": FromDataset

	// Teacher, a checkpoint, adds its soft targets to the cross entropy where
	// SoftWeight is above 0; it is also what a new student is made from.
	Teacher     string
	Temperature float64 // T of the soft targets; 0: 2
	SoftWeight  float64 // w: the loss is (1−w)·CE + w·T²·KL
}

// Validate says which option no fine-tuning can have.
func (o FinetuneOptions) Validate() error {
	if err := o.Run.Validate(); err != nil {
		return err
	}
	if err := o.checkLength(); err != nil {
		return err
	}
	if err := o.StudentOptions.Validate(); err != nil {
		return err
	}
	if o.Source != "" && o.Source != FromDataset && !o.kafka() {
		return fmt.Errorf("--source %q: want %s, %s or %s", o.Source, FromDataset, FromStream, FromReplay)
	}
	if err := o.Feed.Validate(); err != nil {
		return err
	}
	switch {
	case o.Student == "" && o.Teacher == "":
		return errors.New("--student is missing: the folder of a checkpoint (or --teacher, for a new student by --init)")
	case !(o.SoftWeight >= 0 && o.SoftWeight <= 1):
		return fmt.Errorf("--soft-weight %g: want a number from 0 to 1", o.SoftWeight)
	case !(o.Temperature >= 0) || math.IsInf(o.Temperature, 0):
		return fmt.Errorf("--temperature %g: want a positive number", o.Temperature)
	case o.SoftWeight > 0 && o.Teacher == "":
		return errors.New("--soft-weight needs --teacher: the folder of a checkpoint")
	}
	return nil
}

// Finetune trains a whole student on next-token cross entropy, optionally with
// a teacher's soft targets.
func Finetune(ctx context.Context, o FinetuneOptions) (s Summary, err error) {
	if err := o.Validate(); err != nil {
		return s, err
	}
	set, err := openSet(o.Dataset)
	if err != nil {
		return s, err
	}
	if err := o.Evaluation.check(set); err != nil {
		return s, err
	}
	var teacher *checkpoint.Model
	fresh := checkpoint.Trainer{Kind: "finetune", Seed: o.Seed, TokenSet: set.Fingerprint()}
	if o.Teacher != "" {
		if teacher, err = LoadModel("--teacher", o.Teacher); err != nil {
			return s, err
		}
		fresh.Teacher = teacher.Fingerprint()
	}
	student, begin, err := o.start(teacher, set.Manifest.SeqLen, o.Seed)
	if err != nil {
		return s, err
	}
	if err := suits("--student", student.Config, set.Manifest); err != nil {
		return s, err
	}
	chosen := o.shared()
	chosen["student"], chosen["soft-weight"] = begin, o.SoftWeight
	soft := o.SoftWeight > 0
	temperature := o.Temperature
	if temperature == 0 {
		temperature = 2
	}
	if soft {
		if err := suits("--teacher", teacher.Config, set.Manifest); err != nil {
			return s, err
		}
		if teacher.Config.Vocab != student.Config.Vocab {
			return s, fmt.Errorf("--student and --teacher do not fit: the vocabularies are %d and %d", student.Config.Vocab, teacher.Config.Vocab)
		}
		chosen["temperature"] = temperature
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
	step := crossEntropy
	if soft {
		beside, err := e.Open(teacher, gpu.Options{Precision: o.Precision})
		if err != nil {
			return s, fmt.Errorf("--teacher: %w", err)
		}
		defer func() { err = errors.Join(err, beside.Close()) }()
		step = func(b *Batch) gpu.Step {
			return gpu.Step{Batch: b.Batch, Objective: gpu.SoftTargets, Teacher: beside, Temperature: temperature, SoftWeight: o.SoftWeight}
		}
	}
	stages, err := onTokens(o.Run, o.Feed, set, step, o.Rate.overSteps)
	if err != nil {
		return s, err
	}
	l := &loop{Run: o.Run, kind: "finetune", stages: stages}
	return l.train(ctx, e, f, student, gpu.Options{Optimizer: gpu.PaperAdamW()})
}

func crossEntropy(b *Batch) gpu.Step { return gpu.Step{Batch: b.Batch, Objective: gpu.CrossEntropy} }

// onTokens is the one stage of a run that needs tokens alone, from the token
// set's files or as token records from Kafka.
func onTokens(r Run, f Feed, set *tokenset.Set, step func(*Batch) gpu.Step, rate func(steps int64) Schedule) ([]stage, error) {
	steps, sequences, err := r.length(set.Rows(tokenset.Train))
	if err != nil {
		return nil, err
	}
	open := func(ctx context.Context, at Position) (Source, error) {
		p := Plan{Tokens: set, Length: set.Manifest.SeqLen, Seed: r.Seed, Shuffle: r.Shuffle, Batch: r.Batch, Total: sequences, Start: at}
		if !f.kafka() {
			return NewTokenSource(p)
		}
		return f.open(ctx, r.Dir, Stream{Layers: []int{activation.Tokens}, TokenSet: set.Fingerprint(), Notice: func(s string) { r.say("%s", s) }}, p)
	}
	return []stage{{layer: -1, steps: steps, rate: rate(steps), open: open, step: step,
		heldOut: func() (evaluator, error) { return r.Evaluation.entropy(set, r.Batch) }}}, nil
}
