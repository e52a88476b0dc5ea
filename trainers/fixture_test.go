package trainers

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/scavenge/scavenge/gpu"
	_ "github.com/scavenge/scavenge/gpu/cpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

const testLength, testVocab = 12, 90

// testSet writes a token set with train shards of the given rows and four
// validation rows.
func testSet(t testing.TB, rows ...int64) string {
	t.Helper()
	dir := t.TempDir()
	writeSet(t, dir, 0, rows...)
	return dir
}

// writeSet is testSet in a folder; another salt gives other tokens.
func writeSet(t testing.TB, dir string, salt int64, rows ...int64) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	m := &tokenset.Manifest{Tokenizer: tokenset.Tokenizer{SHA256: strings.Repeat("ab", 32), Vocab: testVocab}, SeqLen: testLength, Seed: 1, Sample: 1,
		Splits: map[tokenset.Split]*tokenset.Counts{}}
	for split, rows := range map[tokenset.Split][]int64{tokenset.Train: rows, tokenset.Validation: {4}} {
		c := &tokenset.Counts{}
		for i, n := range rows {
			w, err := tokenset.NewWriter(filepath.Join(dir, tokenset.ShardName(split, i, len(rows))), i, testLength, testVocab)
			if err != nil {
				t.Fatal(err)
			}
			for row := range n {
				tokens := make([]int32, testLength)
				g := newGenerator(tokenset.ID(i, row)+salt<<60, string(split))
				for k := range tokens {
					tokens[k] = int32(g.unit() * g.unit() * testVocab) // low ids are frequent
				}
				if err := w.Append(tokens); err != nil {
					t.Fatal(err)
				}
			}
			s, err := w.Close()
			if err != nil {
				t.Fatal(err)
			}
			c.Shards = append(c.Shards, s)
			c.Rows += n
		}
		c.Tokens = c.Rows * testLength
		m.Splits[split] = c
	}
	if err := tokenset.WriteManifest(dir, m); err != nil {
		t.Fatal(err)
	}
}

func testTeacher(t testing.TB) *checkpoint.Model { return spread(random(t, teacherConfig(), 5)) }

// saved writes a model to a folder of the test.
func saved(t testing.TB, m *checkpoint.Model) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "model")
	if err := m.Save(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// wrapped is a cpu engine with a hook around training steps: before is called
// with the number of each, from 1 over all models, and may fail it; after may
// change its result.
type wrapped struct {
	gpu.Engine
	steps  atomic.Int64
	before func(n int64) error
	after  func(n int64, r *gpu.Result)
	sees   func(s gpu.Step) // is told each step
}

type inner interface{ gpu.Model }

type wrappedModel struct {
	inner
	w *wrapped
}

// register makes the engine a device and returns the device's name.
func (w *wrapped) register(t testing.TB) string {
	name := "test-" + t.Name()
	w.registerAs(name)
	return name
}

func (w *wrapped) registerAs(name string) {
	gpu.Register(name, func(string) (gpu.Engine, error) {
		e, err := gpu.Open("cpu")
		w.Engine = e
		return w, err
	})
}

func (w *wrapped) Open(m *checkpoint.Model, o gpu.Options) (gpu.Model, error) {
	model, err := w.Engine.Open(m, o)
	if err != nil || !o.Train {
		return model, err // a teacher must stay the engine's own type
	}
	return wrappedModel{model, w}, nil
}

func (m wrappedModel) Step(s gpu.Step) (gpu.Result, error) {
	n := m.w.steps.Add(1)
	if m.w.before != nil {
		if err := m.w.before(n); err != nil {
			return gpu.Result{}, err
		}
	}
	if m.w.sees != nil {
		m.w.sees(s)
	}
	r, err := m.inner.Step(s)
	if m.w.after != nil {
		m.w.after(n, &r)
	}
	return r, err
}

// trainer is one of the training commands with tiny options: train runs it on
// a device in a folder.
type trainer struct {
	name  string
	steps int64 // in all
	train func(ctx context.Context, device, dir string, change func(*Run)) (Summary, error)
}

// trainers are all kinds of training over one token set.
func trainers(t testing.TB, set string) []trainer {
	t.Helper()
	teacher := saved(t, testTeacher(t))
	student := saved(t, spread(random(t, studentConfig(), 6)))
	run := func(device, dir string, change func(*Run)) Run {
		r := Run{Dataset: set, Dir: dir, Device: device, Seed: 4, Batch: 3, Steps: 6, SaveEvery: 4, Quiet: true}
		if change != nil {
			change(&r)
		}
		return r
	}
	fresh := StudentOptions{Width: 8, Bands: 5}
	return []trainer{
		{"distill progressive", 12, func(ctx context.Context, device, dir string, change func(*Run)) (Summary, error) {
			return Distill(ctx, DistillOptions{Run: run(device, dir, change), StudentOptions: fresh, Teacher: teacher, Feed: Feed{Source: FromInline}})
		}},
		{"distill joint", 6, func(ctx context.Context, device, dir string, change func(*Run)) (Summary, error) {
			return Distill(ctx, DistillOptions{Run: run(device, dir, change), StudentOptions: fresh, Teacher: teacher, Feed: Feed{Source: FromInline}, Schedule: Joint, Type: "int8"})
		}},
		{"finetune", 6, func(ctx context.Context, device, dir string, change func(*Run)) (Summary, error) {
			return Finetune(ctx, FinetuneOptions{Run: run(device, dir, change), StudentOptions: StudentOptions{Student: student}})
		}},
		{"finetune on soft targets", 6, func(ctx context.Context, device, dir string, change func(*Run)) (Summary, error) {
			return Finetune(ctx, FinetuneOptions{Run: run(device, dir, change), StudentOptions: StudentOptions{Student: student}, Teacher: teacher, SoftWeight: 0.7})
		}},
		{"pretrain hyena", 6, func(ctx context.Context, device, dir string, change func(*Run)) (Summary, error) {
			return Pretrain(ctx, PretrainOptions{Run: run(device, dir, change), Dim: 16, Layers: 2, MLP: 32, Width: 8, Bands: 5})
		}},
		{"pretrain attention", 6, func(ctx context.Context, device, dir string, change func(*Run)) (Summary, error) {
			return Pretrain(ctx, PretrainOptions{Run: run(device, dir, change), Mixer: MixerAttention, Dim: 16, Layers: 2, Heads: 2, MLP: 32})
		}},
	}
}
