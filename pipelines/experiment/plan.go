package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/dtype"
	"github.com/scavenge/scavenge/trainers"
)

// plan is how many steps each training takes, so that the students train for
// the same time. It is measured once and kept: from there on the run is a
// function of its inputs and can stop and go on anywhere.
type plan struct {
	TeacherSeconds float64 `json:"teacher_seconds"` // what it was made for
	StudentSeconds float64 `json:"student_seconds"`
	Batch          int     `json:"batch"`
	Source         string  `json:"source"`

	Teacher  int64 `json:"teacher_steps"`
	Pretrain int64 `json:"pretrain_steps"`
	Distill  int64 `json:"distill_steps"`      // a layer, for the student that is distilled only
	Half     int64 `json:"half_distill_steps"` // a layer, for the student that is fine-tuned after it
	Finetune int64 `json:"finetune_steps"`

	Measured costs `json:"measured_seconds"`
}

// costs are seconds on the device at hand, of a batch each.
type costs struct {
	AttentionCE float64   `json:"attention_ce_step"`
	HyenaCE     float64   `json:"hyena_ce_step"`
	Layers      []float64 `json:"layer_mse_steps"` // of the student, by layer
	Activations []float64 `json:"teacher_forward"` // stream: to all layers' outputs; inline: to each layer's
}

// distillation is a step of every layer and the teacher's forward passes that
// it needs: one for all layers into a stream, one a layer beside the student.
// What a stream costs on the wire is not in it.
func (c costs) distillation() (sum float64) {
	for _, s := range append(c.Layers, c.Activations...) {
		sum += s
	}
	return sum
}

// loadPlan reads the plan of an earlier start, or measures and keeps one.
func loadPlan(ctx context.Context, o options, teacher checkpoint.Config) (plan, error) {
	path := filepath.Join(o.Run, "plan.json")
	var p plan
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return measure(ctx, o, teacher, path)
	case err != nil:
		return p, err
	}
	if err := json.Unmarshal(data, &p); err != nil {
		return p, fmt.Errorf("%s: %w (remove it to measure again)", path, err)
	}
	if p.TeacherSeconds != o.TeacherSeconds || p.StudentSeconds != o.StudentSeconds || p.Batch != o.Batch || p.Source != o.Source {
		return p, fmt.Errorf("%s was begun with --teacher-seconds %g --student-seconds %g --batch %d --source %s: take those, or another --run", o.Run, p.TeacherSeconds, p.StudentSeconds, p.Batch, p.Source)
	}
	return p, nil
}

// measure times a few steps of each kind on random models.
func measure(ctx context.Context, o options, teacher checkpoint.Config, path string) (plan, error) {
	p := plan{TeacherSeconds: o.TeacherSeconds, StudentSeconds: o.StudentSeconds, Batch: o.Batch, Source: o.Source}
	e, err := gpu.Open(o.Device)
	if err != nil {
		return p, fmt.Errorf("--device: %w", err)
	}
	defer e.Close()
	if p.Measured, err = measureCosts(ctx, e, o, teacher); err != nil {
		return p, fmt.Errorf("measuring steps: %w", err)
	}
	steps := func(seconds, each float64) int64 { return max(2, int64(math.Round(seconds/each))) }
	p.Teacher = steps(o.TeacherSeconds, p.Measured.AttentionCE)
	p.Pretrain = steps(o.StudentSeconds, p.Measured.HyenaCE)
	p.Distill = steps(o.StudentSeconds, p.Measured.distillation())
	p.Half = steps(o.StudentSeconds/2, p.Measured.distillation())
	p.Finetune = steps(o.StudentSeconds/2, p.Measured.HyenaCE)
	return p, writeJSON(path, p)
}

func measureCosts(ctx context.Context, e gpu.Engine, o options, teacher checkpoint.Config) (c costs, err error) {
	student := teacher.Student(o.hyena(), o.Context)
	b := gpu.Batch{Rows: o.Batch, Length: o.Context, Tokens: make([]int32, o.Batch*o.Context)}
	for i := range b.Tokens {
		b.Tokens[i] = int32(i * 7919 % teacher.Vocab)
	}
	open := func(c checkpoint.Config) (gpu.Model, error) {
		m, err := trainers.RandomModel(c, 1)
		if err != nil {
			return nil, err
		}
		return e.Open(m, gpu.Options{Train: true, Precision: gpu.Precision(o.Precision), Optimizer: gpu.PaperAdamW()})
	}
	t, err := open(teacher)
	if err != nil {
		return c, err
	}
	defer t.Close()
	s, err := open(student)
	if err != nil {
		return c, err
	}
	defer s.Close()
	var kinds []*timing
	kind := func(do func() error) *timing {
		kinds = append(kinds, &timing{do: do})
		return kinds[len(kinds)-1]
	}
	step := func(m gpu.Model, g gpu.Step) *timing {
		g.Batch = b
		return kind(func() error { _, err := m.Step(g); return err })
	}
	forward := func(layers ...int) *timing {
		return kind(func() error { _, err := t.Hidden(b, layers); return err })
	}
	attention, hyena := step(t, gpu.Step{Objective: gpu.CrossEntropy}), step(s, gpu.Step{Objective: gpu.CrossEntropy})
	var mse, outputs []*timing
	var all []int
	for layer := range teacher.Layers {
		target := gpu.Target{Layer: layer, Type: dtype.Float16, Values: make([]byte, 2*len(b.Tokens)*teacher.Dim)}
		mse = append(mse, step(s, gpu.Step{Objective: gpu.LayerMSE, Layer: layer, Targets: []gpu.Target{target}}))
		all = append(all, layer)
		if o.Source == trainers.FromInline {
			outputs = append(outputs, forward(layer))
		}
	}
	if o.Source == trainers.FromStream {
		outputs = append(outputs, forward(all...))
	}
	if err := timeAll(ctx, kinds, time.Duration(o.StudentSeconds/4*float64(time.Second))); err != nil {
		return c, err
	}
	c.AttentionCE, c.HyenaCE = attention.median(), hyena.median()
	for _, m := range mse {
		c.Layers = append(c.Layers, m.median())
	}
	for _, f := range outputs {
		c.Activations = append(c.Activations, f.median())
	}
	return c, nil
}

// timing is one kind of work and the seconds that it took.
type timing struct {
	do   func() error
	took []float64
}

func (t *timing) median() float64 {
	slices.Sort(t.took)
	return t.took[len(t.took)/2]
}

// timeAll times the kinds in turns, so that a machine that is busy for a while
// slows all of them alike. It ends after at least three rounds, and about the
// given time or ten seconds, whichever is less.
func timeAll(ctx context.Context, kinds []*timing, limit time.Duration) error {
	began := time.Now()
	for round := 0; round < 3 || time.Since(began) < min(limit, 10*time.Second); round++ {
		for _, k := range kinds {
			for again := range 2 { // the first one after another kind of work meets cold caches
				if err := ctx.Err(); err != nil {
					return err
				}
				start := time.Now()
				if err := k.do(); err != nil {
					return err
				}
				if again == 1 && round > 0 { // and the first round warms up
					k.took = append(k.took, time.Since(start).Seconds())
				}
			}
		}
	}
	return nil
}
