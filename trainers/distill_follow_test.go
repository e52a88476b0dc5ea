package trainers

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/report"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// following are the options of a run that follows the producer's stream.
func (g *growing) following(t testing.TB) DistillOptions {
	t.Helper()
	return DistillOptions{Run: Run{Dataset: g.dir, Dir: t.TempDir(), Seed: 4, Batch: 3, SaveEvery: 2, Quiet: true}, Teacher: saved(t, g.teacher), Follow: true,
		StudentOptions: StudentOptions{Width: 8, Bands: 5}, Feed: Feed{Access: g.broker.access, Topic: g.run, Stall: 20 * time.Second}}
}

// wrote is a growing set of three parts whose stream has ended.
func wrote(t testing.TB, b *testBroker) *growing {
	t.Helper()
	g := newGrowing(t, b, 5, 3)
	g.grow(t, 6)
	g.grow(t, 7, 4)
	for n := range int64(3) {
		g.teach(t, n)
	}
	g.control(t, activation.EndOfStream, 2)
	return g
}

// Each layer goes on where the one before it stopped; when the stream has
// ended, what it holds is read again. Killed anywhere, the run ends the same.
func TestLayersFollowAStreamByTokens(t *testing.T) {
	g := wrote(t, startBroker(t))
	o := g.following(t)
	o.Advance = Advance{Rule: AdvanceTokens, Tokens: 15 * testLength}
	var seen [2][]int64
	w := &wrapped{sees: func(s gpu.Step) { seen[s.Layer] = append(seen[s.Layer], s.IDs...) }}
	o.Device = w.register(t)
	s, err := Distill(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	all := g.order(Shuffle{}, 3)
	// 25 sequences: 15, then the 10 that are left, and the first 6 again
	if want := slices.Concat(all[15:], all[:6]); s.Steps != 5+4+2 || !slices.Equal(seen[0], all[:15]) || !slices.Equal(seen[1], want) {
		t.Fatalf("%d steps: layers saw\n%v\n%v, want\n%v\n%v", s.Steps, seen[0], seen[1], all[:15], want)
	}
	want := endOf(t, o.Dir)
	for at := range int64(11) {
		o.Dir = t.TempDir()
		w := &wrapped{before: func(n int64) error {
			if n == at+1 {
				return errKilled
			}
			return nil
		}}
		o.Device = fmt.Sprintf("test-%s-%d", t.Name(), at)
		w.registerAs(o.Device)
		if _, err := Distill(context.Background(), o); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		o.Device = ""
		if _, err := Distill(context.Background(), o); err != nil {
			t.Fatal(err)
		}
		endOf(t, o.Dir).compare(t, want, fmt.Sprintf("killed in step %d", at+1))
	}
	if s, err := Distill(context.Background(), o); err != nil || !s.Already {
		t.Errorf("again: %v, %v", s, err)
	}
	if told := g.told(t, activation.Topic(g.run, 0), o.Dir); len(told) > 0 {
		t.Errorf("a trainer beyond layer 0 is still registered there: %v", told)
	}
	// a trainer that joins late, with a student of its own, learns from the same
	late := g.following(t)
	late.Advance, late.Rate.Peak, late.Width = o.Advance, 3e-3, 12
	if s, err := Distill(context.Background(), late); err != nil || s.Steps != 11 {
		t.Errorf("a late trainer: %v, %v", s, err)
	}
	if endOf(t, late.Dir).weights == want.weights {
		t.Error("a late trainer's student is the other's")
	}
}

func TestLayersAdvanceWhenTheHeldOutLossIsFlat(t *testing.T) {
	g := wrote(t, startBroker(t))
	o := g.following(t)
	o.Advance = Advance{Rule: AdvancePlateau, Margin: 0.2, Patience: 2}
	o.Evaluation = Evaluation{Every: 3, Sequences: 3}
	s, err := Distill(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := report.ReadMetrics(filepath.Join(o.Dir, "metrics.jsonl"))
	if err != nil || int64(len(lines)) != s.Steps {
		t.Fatalf("%d metrics of %d steps, %v", len(lines), s.Steps, err)
	}
	// what the rule says, from the metrics
	layer, best, waited, step := 0, math.Inf(1), 0, 0
	for i, l := range lines {
		if l.Layer != layer {
			if waited != 2 {
				t.Errorf("step %d: layer %d ended after %d evaluations without gain", l.Step, layer, waited)
			}
			layer, best, waited, step = l.Layer, math.Inf(1), 0, 0
		}
		if step++; (l.HeldOut != nil) != (step%3 == 0) {
			t.Errorf("step %d, the %d. of layer %d: held-out loss %v", l.Step, step, layer, l.HeldOut)
		}
		if l.HeldOut != nil {
			if *l.HeldOut < best*0.8 {
				best, waited = *l.HeldOut, 0
			} else {
				waited++
			}
			if waited == 2 && i+1 < len(lines) && lines[i+1].Layer == layer {
				t.Errorf("step %d: layer %d goes on", l.Step, layer)
			}
		}
	}
	if layer != 1 || waited != 2 {
		t.Errorf("ended in layer %d after %d evaluations without gain", layer, waited)
	}
	// the last one is the distance of what was saved to the teacher
	m, err := checkpoint.Load(o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	e, err := gpu.Open("cpu")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	var hidden [2][]float32
	for i, m := range []*checkpoint.Model{m, g.producer.teacher} {
		x, err := e.Open(m, gpu.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		b := gpu.Batch{Rows: 3, Length: testLength}
		for _, id := range g.series.First().IDs(tokenset.Validation)[:3] {
			tokens, err := g.series.Sequence(tokenset.Validation, id)
			if err != nil {
				t.Fatal(err)
			}
			b.Tokens = append(b.Tokens, tokens...)
		}
		h, err := x.Hidden(b, []int{1})
		if err != nil {
			t.Fatal(err)
		}
		hidden[i] = h[0]
	}
	var sum float64
	for i, v := range hidden[0] {
		sum += math.Pow(float64(v)-float64(hidden[1][i]), 2)
	}
	if got, want := *lines[len(lines)-1].HeldOut, sum/float64(len(hidden[0])); math.Abs(got-want) > 1e-6*want {
		t.Errorf("held-out loss %g, want %g", got, want)
	}
	// stopped at an evaluation, between them and in the second layer
	want := endOf(t, o.Dir)
	for _, at := range []int64{3, 5, s.Steps - 1} {
		o.Dir = t.TempDir()
		w := &wrapped{before: func(n int64) error {
			if n == at {
				return errKilled
			}
			return nil
		}}
		o.Device = fmt.Sprintf("test-%s-%d", t.Name(), at)
		w.registerAs(o.Device)
		if _, err := Distill(context.Background(), o); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		o.Device = ""
		if _, err := Distill(context.Background(), o); err != nil {
			t.Fatal(err)
		}
		endOf(t, o.Dir).compare(t, want, fmt.Sprintf("killed in step %d", at))
	}
}

// The rules hold where the number of steps is known too, which is the most then.
func TestLayersOfAPlainRunMayAdvanceEarly(t *testing.T) {
	o := DistillOptions{Run: Run{Dataset: testSet(t, 5, 3), Dir: t.TempDir(), Seed: 4, Batch: 3, Steps: 200, Quiet: true, Evaluation: Evaluation{Every: 2}},
		Teacher: saved(t, testTeacher(t)), StudentOptions: StudentOptions{Width: 8, Bands: 5}, Feed: Feed{Source: FromInline}, Advance: Advance{Rule: AdvancePlateau, Margin: 0.5}}
	s, err := Distill(context.Background(), o)
	if err != nil || s.Steps < 2*2*4 || s.Steps >= 200 {
		t.Fatalf("%v, %v", s, err)
	}
	if s, err := Distill(context.Background(), o); err != nil || !s.Already {
		t.Errorf("again: %v, %v", s, err)
	}
	o.Dir, o.Steps = t.TempDir(), 3
	if s, err := Distill(context.Background(), o); err != nil || s.Steps != 6 {
		t.Errorf("with fewer steps than the rule wants: %v, %v", s, err)
	}
}

// A run that nothing else ends trains until the stream's end, and goes on when
// there is more.
func TestAJointRunFollowsToTheEnd(t *testing.T) {
	g := newGrowing(t, startBroker(t), 5, 3)
	g.teach(t, 0)
	o := g.following(t)
	o.Schedule = Joint
	type result struct {
		Summary
		error
	}
	done := make(chan result, 1)
	go func() {
		s, err := Distill(context.Background(), o)
		done <- result{s, err}
	}()
	g.grow(t, 4)
	g.teach(t, 1)
	select {
	case r := <-done:
		t.Fatalf("it ended before the stream: %v %v", r.Summary, r.error)
	case <-time.After(300 * time.Millisecond):
	}
	g.control(t, activation.EndOfStream, 1)
	if r := <-done; r.error != nil || r.Steps != 4 || r.Tokens != 12*testLength {
		t.Fatalf("%v, %v", r.Summary, r.error)
	}
	g.grow(t, 5)
	g.teach(t, 2)
	g.control(t, activation.EndOfStream, 2)
	if s, err := Distill(context.Background(), o); err != nil || s.Steps != 6 || s.Tokens != 17*testLength {
		t.Fatalf("gone on: %v, %v", s, err)
	}
}

func TestFollowOptionsThatCannotBe(t *testing.T) {
	teacher := saved(t, testTeacher(t))
	set := testSet(t, 4)
	for want, change := range map[string]func(o *DistillOptions){
		"--from is for --follow":              func(o *DistillOptions) { o.Follow, o.Steps, o.From = false, 3, FromLatest },
		"how long to train is missing":        func(o *DistillOptions) { o.Follow = false },
		`--from "here"`:                       func(o *DistillOptions) { o.From, o.Steps = "here", 3 },
		"want --source stream, not inline":    func(o *DistillOptions) { o.Source, o.Steps = FromInline, 3 },
		"--follow and --epochs":               func(o *DistillOptions) { o.Epochs = 1 },
		"when to move on":                     func(o *DistillOptions) {},
		`--advance "soon"`:                    func(o *DistillOptions) { o.Advance.Rule = "soon" },
		"--advance-tokens is missing":         func(o *DistillOptions) { o.Advance.Rule = AdvanceTokens },
		"--advance-tokens is for":             func(o *DistillOptions) { o.Steps, o.Advance.Tokens = 3, 5 },
		"--eval-every is missing":             func(o *DistillOptions) { o.Advance.Rule = AdvancePlateau },
		"--plateau and --patience are for":    func(o *DistillOptions) { o.Steps, o.Advance.Patience = 3, 5 },
		"--plateau 2":                         func(o *DistillOptions) { o.Advance, o.Evaluation.Every = Advance{Rule: AdvancePlateau, Margin: 2}, 1 },
		"--eval-every -1":                     func(o *DistillOptions) { o.Evaluation.Every = -1 },
		"no such folder":                      func(o *DistillOptions) { o.Steps, o.Dataset = 3, filepath.Join(set, "none") },
		"it has no manifest.json":             func(o *DistillOptions) { o.Steps, o.Dataset = 3, t.TempDir() },
		"it is a growing token set: name one": func(o *DistillOptions) { o.Follow, o.Steps, o.Dataset = false, 3, filepath.Dir(set) },
	} {
		if want == "it is a growing token set: name one" {
			writeSet(t, filepath.Join(filepath.Dir(set), tokenset.PartName(0)), 0, 3)
		}
		o := DistillOptions{Run: Run{Dataset: set, Dir: filepath.Join(t.TempDir(), "run"), Batch: 2, Quiet: true}, Teacher: teacher, Follow: true}
		o.Brokers, o.Topic, o.Source = []string{"127.0.0.1:1"}, "t", FromStream
		change(&o)
		if _, err := Distill(context.Background(), o); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want one line with %q", err, want)
		}
	}
}
