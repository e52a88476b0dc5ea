package trainers

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/infra/cluster"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/report"
)

// ends is what two runs that should have ended alike are compared by.
type ends struct {
	weights string // fingerprint
	moments string // of the optimiser
	losses  string // of all steps
}

func endOf(t testing.TB, dir string) ends {
	t.Helper()
	m, o, s, err := checkpoint.LoadTraining(filepath.Join(dir, "latest"))
	if err != nil {
		t.Fatal(err)
	}
	e := ends{weights: m.Fingerprint(), moments: (&checkpoint.Model{Config: m.Config, Weights: o.Variance}).Fingerprint() + fmt.Sprint(o.Steps)}
	lines, err := report.ReadMetrics(filepath.Join(dir, "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range lines {
		if l.Step != int64(i+1) {
			t.Fatalf("%s: metrics line %d is of step %d", dir, i+1, l.Step)
		}
		e.losses += fmt.Sprintf("%d %d %x %x %x", l.Step, l.Layer, math.Float64bits(l.Loss), math.Float64bits(l.Rate), math.Float64bits(l.Norm))
		if l.HeldOut != nil {
			e.losses += fmt.Sprintf(" %x", math.Float64bits(*l.HeldOut))
		}
		e.losses += "\n"
	}
	if s.Step != int64(len(lines)) || s.Steps != 0 && s.Step != s.Steps {
		t.Fatalf("%s: ended at step %d of %d with %d metrics", dir, s.Step, s.Steps, len(lines))
	}
	return e
}

func (e ends) compare(t *testing.T, want ends, what string) {
	t.Helper()
	if e.losses != want.losses {
		t.Errorf("%s: losses differ:\n%s\nwant\n%s", what, e.losses, want.losses)
	}
	if e.weights != want.weights {
		t.Errorf("%s: weights differ", what)
	}
	if e.moments != want.moments {
		t.Errorf("%s: the optimiser's state differs", what)
	}
}

var errKilled = errors.New("killed by the test")

func TestResumeAfterKillIsBitIdentical(t *testing.T) {
	set := testSet(t, 5, 3) // 8 sequences: batches of 3 reach over epochs and shards
	for _, tr := range trainers(t, set) {
		t.Run(tr.name, func(t *testing.T) {
			t.Parallel()
			whole := t.TempDir()
			if _, err := tr.train(context.Background(), "cpu", whole, nil); err != nil {
				t.Fatal(err)
			}
			want := endOf(t, whole)
			for _, at := range []int64{1, 5, tr.steps} {
				// Ctrl-C in step at: a checkpoint of that step is written
				dir := t.TempDir()
				ctx, cancel := context.WithCancel(context.Background())
				w := &wrapped{before: func(n int64) error {
					if n == at {
						cancel()
					}
					return nil
				}}
				_, err := tr.train(ctx, w.register(t), dir, nil)
				if at < tr.steps && (!errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), fmt.Sprintf("stopped after step %d of %d", at, tr.steps))) {
					t.Fatalf("cancelled in step %d: %v", at, err)
				}
				if _, _, s, err := checkpoint.LoadTraining(filepath.Join(dir, "latest")); err != nil || s.Step != at {
					t.Fatalf("cancelled in step %d: checkpoint %+v: %v", at, s, err)
				}
				if _, err := tr.train(context.Background(), "cpu", dir, nil); err != nil {
					t.Fatal(err)
				}
				endOf(t, dir).compare(t, want, fmt.Sprintf("cancelled in step %d", at))

				// killed in step at, with no chance to write anything
				dir = t.TempDir()
				w = &wrapped{before: func(n int64) error {
					if n == at {
						return errKilled
					}
					return nil
				}}
				if _, err := tr.train(context.Background(), w.register(t), dir, nil); !errors.Is(err, errKilled) {
					t.Fatalf("killed in step %d: %v", at, err)
				}
				_, ok, err := checkpoint.Latest(dir)
				if err != nil || ok != (at > 4) { // SaveEvery is 4
					t.Fatalf("killed in step %d: checkpoint %v, %v", at, ok, err)
				}
				if _, err := tr.train(context.Background(), "cpu", dir, nil); err != nil {
					t.Fatal(err)
				}
				endOf(t, dir).compare(t, want, fmt.Sprintf("killed in step %d", at))
			}
		})
	}
}

func TestTrainingLowersTheLoss(t *testing.T) {
	set := testSet(t, 8)
	for _, tr := range trainers(t, set) {
		dir := t.TempDir()
		s, err := tr.train(context.Background(), "cpu", dir, func(r *Run) { r.Steps, r.Rate.Peak, r.Rate.Warmup, r.Rate.Decay = 16, 4e-3, 1, 16 })
		if err != nil {
			t.Fatalf("%s: %v", tr.name, err)
		}
		lines, err := report.ReadMetrics(filepath.Join(dir, "metrics.jsonl"))
		if err != nil {
			t.Fatal(err)
		}
		if first, last := lines[0].Loss, lines[15].Loss; !(last < 0.97*first) {
			t.Errorf("%s: loss %g at the first step, %g at the stage's last", tr.name, first, last)
		}
		if want := int64(len(lines)) * 3 * testLength; s.Tokens != want || s.Steps != int64(len(lines)) || !(s.Seconds > 0) {
			t.Errorf("%s: summary %+v, want %d tokens in %d steps", tr.name, s, want, len(lines))
		}
	}
}

func TestFinishedRunIsNotTrainedAgain(t *testing.T) {
	tr := trainers(t, testSet(t, 8))[0]
	dir := t.TempDir()
	first, err := tr.train(context.Background(), "cpu", dir, nil)
	if err != nil || first.Already {
		t.Fatal(first, err)
	}
	w := &wrapped{before: func(int64) error { return errKilled }}
	if want := filepath.Join(dir, "step-0000012"); first.Checkpoint != want {
		t.Errorf("checkpoint %s, want %s", first.Checkpoint, want)
	}
	again, err := tr.train(context.Background(), w.register(t), dir, nil)
	if err != nil || !again.Already || !strings.Contains(again.String(), "already trained") {
		t.Fatalf("%+v: %v", again, err)
	}
	if again.Already = false; again != first {
		t.Errorf("summary %+v, want %+v", again, first)
	}
}

func TestChangedSettingIsRefusedByName(t *testing.T) {
	set := testSet(t, 8)
	all := trainers(t, set)
	dir := t.TempDir()
	if _, err := all[0].train(context.Background(), "cpu", dir, nil); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Run){
		"--batch is 4, was 3":        func(r *Run) { r.Batch = 4 },
		"--rate is 0.002, was 0.001": func(r *Run) { r.Rate.Peak = 2e-3 },
		"--seed is 5, was 4":         func(r *Run) { r.Seed = 5 },
		"--steps is 7, was 6":        func(r *Run) { r.Steps = 7 },
		"--warmup is 3, was 0":       func(r *Run) { r.Rate.Warmup = 3 },
		"--dataset":                  func(r *Run) { r.Dataset = testSet(t, 9) },
	} {
		if _, err := all[0].train(context.Background(), "cpu", dir, change); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error with %q", err, want)
		}
	}
	if _, err := all[1].train(context.Background(), "cpu", dir, nil); err == nil || !strings.Contains(err.Error(), "--schedule is joint, was progressive") {
		t.Errorf("another schedule: %v", err)
	}
	if _, err := all[2].train(context.Background(), "cpu", dir, nil); err == nil || !strings.Contains(err.Error(), "it is a run of distill, not of finetune") {
		t.Errorf("another command: %v", err)
	}
	if _, err := all[0].train(context.Background(), "cpu", dir, func(r *Run) { r.SaveEvery = 2 }); err != nil {
		t.Errorf("a setting that changes no result: %v", err)
	}
}

func TestNaNStopsWithStepLayerAndLastGoodCheckpoint(t *testing.T) {
	tr := trainers(t, testSet(t, 8))[0]
	dir := t.TempDir()
	w := &wrapped{after: func(n int64, r *gpu.Result) {
		if n == 10 {
			r.Loss = math.NaN()
		}
	}}
	_, err := tr.train(context.Background(), w.register(t), dir, nil)
	want := "step 10 (layer 1): the loss is NaN: training diverged (a lower --rate may help); the last good checkpoint is " + filepath.Join(dir, "step-0000008")
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if latest, _, _ := checkpoint.Latest(dir); filepath.Base(latest) != "step-0000008" {
		t.Errorf("latest is %s", latest)
	}
	w = &wrapped{after: func(n int64, r *gpu.Result) { r.Norm = math.Inf(1) }}
	if _, err := tr.train(context.Background(), w.register(t), t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "step 1 (layer 0): the gradient's norm is +Inf") ||
		!strings.Contains(err.Error(), "no checkpoint was written yet") {
		t.Error(err)
	}
}

func TestTwoTrainersDoNotShareAFolder(t *testing.T) {
	tr := trainers(t, testSet(t, 8))[2]
	dir := t.TempDir()
	w := &wrapped{before: func(n int64) error {
		if n == 2 {
			if _, err := tr.train(context.Background(), "cpu", dir, nil); err == nil || !strings.Contains(err.Error(), "another trainer is at work") {
				t.Errorf("a second trainer: %v", err)
			}
		}
		return nil
	}}
	if _, err := tr.train(context.Background(), w.register(t), dir, nil); err != nil {
		t.Fatal(err)
	}
}

func TestEpochsTrainOnEverySequenceOnce(t *testing.T) {
	set := testSet(t, 5, 2)
	dir := t.TempDir()
	tr := trainers(t, set)[2]
	s, err := tr.train(context.Background(), "cpu", dir, func(r *Run) { r.Steps, r.Epochs = 0, 2 })
	if err != nil {
		t.Fatal(err)
	}
	if s.Steps != 5 || s.Tokens != 2*7*testLength { // 14 sequences: 3 3 3 3 2
		t.Errorf("%+v, want 5 steps over %d tokens", s, 2*7*testLength)
	}
}

func TestOptionsThatCannotBeAreRefusedInOneLine(t *testing.T) {
	set := testSet(t, 8)
	teacher, student := saved(t, random(t, teacherConfig(), 5)), saved(t, random(t, studentConfig(), 6))
	run := Run{Dataset: set, Dir: t.TempDir(), Batch: 2, Steps: 2, Quiet: true}
	with := func(change func(*Run)) Run { r := run; change(&r); return r }
	short, narrow := teacherConfig(), teacherConfig()
	short.Context, narrow.Vocab = 8, 50
	shortDir, narrowDir := saved(t, random(t, short, 1)), saved(t, random(t, narrow, 1))
	truncated := saved(t, random(t, teacherConfig(), 5))
	if err := os.Truncate(filepath.Join(truncated, "model.safetensors"), 5000); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	distill := func(o DistillOptions) func() error {
		return func() error { _, err := Distill(ctx, o); return err }
	}
	tune := func(o FinetuneOptions) func() error {
		return func() error { _, err := Finetune(ctx, o); return err }
	}
	pre := func(o PretrainOptions) func() error {
		return func() error { _, err := Pretrain(ctx, o); return err }
	}
	for _, c := range []struct {
		want string
		call func() error
	}{
		{"--dataset is missing", distill(DistillOptions{Run: with(func(r *Run) { r.Dataset = "" })})},
		{"--run is missing", distill(DistillOptions{Run: with(func(r *Run) { r.Dir = "" })})},
		{"--batch 0", distill(DistillOptions{Run: with(func(r *Run) { r.Batch = 0 })})},
		{"exclude each other", distill(DistillOptions{Run: with(func(r *Run) { r.Epochs = 1 })})},
		{"how long to train is missing", distill(DistillOptions{Run: with(func(r *Run) { r.Steps = 0 })})},
		{`--precision "fp8"`, distill(DistillOptions{Run: with(func(r *Run) { r.Precision = "fp8" })})},
		{"--teacher is missing", distill(DistillOptions{Run: run})},
		{"--brokers is missing", distill(DistillOptions{Run: run, Teacher: teacher})},
		{"--topic is missing", distill(DistillOptions{Run: run, Teacher: teacher, Feed: Feed{Access: cluster.Access{Brokers: []string{"127.0.0.1:1"}}}})},
		{`--source "tape"`, distill(DistillOptions{Run: run, Teacher: teacher, Feed: Feed{Source: "tape"}})},
		{"--brokers is missing", distill(DistillOptions{Run: run, Teacher: teacher, Feed: Feed{Source: FromReplay}})},
		{"--shuffle-buffer -1", distill(DistillOptions{Run: with(func(r *Run) { r.Shuffle.Window = -1 }), Teacher: teacher, Feed: Feed{Source: FromInline}})},
		{`--schedule "all"`, distill(DistillOptions{Run: run, Teacher: teacher, Feed: Feed{Source: FromInline}, Schedule: "all"})},
		{`"float8"`, distill(DistillOptions{Run: run, Teacher: teacher, Feed: Feed{Source: FromInline}, Type: "float8"})},
		{"no such folder", distill(DistillOptions{Run: with(func(r *Run) { r.Dataset = filepath.Join(set, "none") }), Teacher: teacher, Feed: Feed{Source: FromInline}})},
		{"not a whole token set", distill(DistillOptions{Run: with(func(r *Run) { r.Dataset = teacher }), Teacher: teacher, Feed: Feed{Source: FromInline}})},
		{"--teacher: ", distill(DistillOptions{Run: run, Teacher: set, Feed: Feed{Source: FromInline}})},
		{"model.safetensors", distill(DistillOptions{Run: run, Teacher: truncated, Feed: Feed{Source: FromInline}})},
		{"sequences have 12 tokens, the model's context is 8", distill(DistillOptions{Run: run, Teacher: shortDir, Feed: Feed{Source: FromInline}})},
		{"the token set's vocabulary is 90, the model's 50", distill(DistillOptions{Run: run, Teacher: narrowDir, Feed: Feed{Source: FromInline}})},
		{"want gpt_neox", distill(DistillOptions{Run: run, Teacher: student, Feed: Feed{Source: FromInline}})},
		{"--device: device \"abacus\"", distill(DistillOptions{Run: with(func(r *Run) { r.Device = "abacus" }), Teacher: teacher, Feed: Feed{Source: FromInline}})},
		{`--source "inline"`, tune(FinetuneOptions{Run: run, StudentOptions: StudentOptions{Student: student}, Feed: Feed{Source: FromInline}})},
		{"--brokers is missing", tune(FinetuneOptions{Run: run, StudentOptions: StudentOptions{Student: student}, Feed: Feed{Source: FromStream}})},
		{"--student is missing", tune(FinetuneOptions{Run: run})},
		{"--soft-weight 2", tune(FinetuneOptions{Run: run, StudentOptions: StudentOptions{Student: student}, SoftWeight: 2})},
		{"--soft-weight NaN", tune(FinetuneOptions{Run: run, StudentOptions: StudentOptions{Student: student}, SoftWeight: math.NaN()})},
		{"--temperature -1", tune(FinetuneOptions{Run: run, StudentOptions: StudentOptions{Student: student}, Temperature: -1})},
		{"--soft-weight needs --teacher", tune(FinetuneOptions{Run: run, StudentOptions: StudentOptions{Student: student}, SoftWeight: 0.5})},
		{`--mixer "mamba"`, pre(PretrainOptions{Run: run, Mixer: "mamba"})},
		{"--dim -1", pre(PretrainOptions{Run: run, Dim: -1})},
		{"--clip NaN", pre(PretrainOptions{Run: run, Clip: math.NaN()})},
		{"does not divide into 5 heads", pre(PretrainOptions{Run: run, Mixer: MixerAttention, Dim: 16, Heads: 5})},
		{"the model's context is 8", pre(PretrainOptions{Run: run, Context: 8, Dim: 16, Layers: 1})},
	} {
		err := c.call()
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want one line with %q", err, c.want)
		}
	}
	if left, err := os.ReadDir(run.Dir); err != nil || len(left) > 1 { // the lock
		t.Errorf("refused runs left %v behind (%v)", left, err)
	}
}
