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
	step := func(m gpu.Model, g gpu.Step) func() error {
		g.Batch = b
		return func() error { _, err := m.Step(g); return err }
	}
	if c.AttentionCE, err = seconds(ctx, step(t, gpu.Step{Objective: gpu.CrossEntropy})); err != nil {
		return c, err
	}
	if c.HyenaCE, err = seconds(ctx, step(s, gpu.Step{Objective: gpu.CrossEntropy})); err != nil {
		return c, err
	}
	outputs := [][]int{nil} // of the teacher, a forward pass each
	for layer := range teacher.Layers {
		target := gpu.Target{Layer: layer, Type: dtype.Float16, Values: make([]byte, 2*len(b.Tokens)*teacher.Dim)}
		each, err := seconds(ctx, step(s, gpu.Step{Objective: gpu.LayerMSE, Layer: layer, Targets: []gpu.Target{target}}))
		if err != nil {
			return c, err
		}
		c.Layers = append(c.Layers, each)
		if o.Source == trainers.FromInline {
			outputs = append(outputs, []int{layer})
		} else {
			outputs[0] = append(outputs[0], layer)
		}
	}
	for _, layers := range outputs {
		if layers == nil {
			continue
		}
		each, err := seconds(ctx, func() error { _, err := t.Hidden(b, layers); return err })
		if err != nil {
			return c, err
		}
		c.Activations = append(c.Activations, each)
	}
	return c, nil
}

// seconds is the middle of a few timings, after one that warms up.
func seconds(ctx context.Context, do func() error) (float64, error) {
	var took []float64
	for i := range 6 {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		began := time.Now()
		if err := do(); err != nil {
			return 0, err
		}
		if i > 0 {
			took = append(took, time.Since(began).Seconds())
		}
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}
