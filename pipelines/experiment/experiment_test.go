package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "github.com/scavenge/scavenge/gpu/devices"
	"github.com/scavenge/scavenge/pipelines"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/report"
	"github.com/scavenge/scavenge/trainers"
)

// corpus writes documents of English-like sentences, the same each time.
func corpus(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "corpus.jsonl")
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	words := strings.Fields("the a stream of tokens flows from one small model to another and each layer learns what its teacher would have said about it")
	for d := range 60 {
		var s strings.Builder
		for i := range 120 {
			fmt.Fprintf(&s, "%s ", words[(d*31+i*i*7+i)%len(words)])
		}
		if err := enc.Encode(document{Text: s.String()}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, b.Bytes(), 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// parse is what the command makes of its arguments.
func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("experiment", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	o.flags(f)
	if err := f.Parse(args); err != nil {
		return o, err
	}
	return o, o.validate()
}

func micro(t *testing.T, input, run string, more ...string) options {
	t.Helper()
	o, err := parse(append([]string{"--run", run, "--input", input, "--vocab", "300", "--dim", "16", "--layers", "2", "--heads", "2", "--context", "32",
		"--filter-width", "8", "--filter-features", "5", "--validation", "0.2", "--batch", "4", "--teacher-seconds", "0.1", "--student-seconds", "0.1"}, more...))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// weights of every checkpoint in a run's folder, by path.
func weights(t *testing.T, run string) map[string]string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(run, "*", "latest", "model.safetensors"))
	if err != nil || len(list) == 0 {
		t.Fatalf("no checkpoints in %s: %v", run, err)
	}
	all := map[string]string{}
	for _, path := range list {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name, _ := filepath.Rel(run, path)
		all[name] = string(data)
	}
	return all
}

func TestExperimentPrintsTheTableAndRunsNothingTwice(t *testing.T) {
	run1 := filepath.Join(t.TempDir(), "run")
	o := micro(t, corpus(t), run1)
	var out bytes.Buffer
	if err := run(context.Background(), o, &out); err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if !strings.Contains(out.String(), row.title) {
			t.Errorf("the table lacks %q:\n%s", row.title, &out)
		}
	}
	var r report.Run
	data, err := os.ReadFile(filepath.Join(run1, "report.json"))
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Models) != 4 || r.Models[0].Scores[0].Tokens == 0 || r.Models[3].Tokens == 0 {
		t.Errorf("report.json: %+v", r)
	}
	if left, _ := filepath.Glob(filepath.Join(run1, "*-broker")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	before := weights(t, run1)
	var again bytes.Buffer
	began := time.Now()
	if err := run(context.Background(), o, &again); err != nil {
		t.Fatal(err)
	}
	t.Logf("the second run took %v", time.Since(began))
	if again.String() != out.String() {
		t.Errorf("the second run printed\n%s\nafter\n%s", &again, &out)
	}
	for name, w := range weights(t, run1) {
		if before[name] != w {
			t.Errorf("%s changed", name)
		}
	}
}

// With the teacher beside the student, the same records give the same student
// as those that went through Kafka.
func TestExperimentInlineTrainsTheSameStudents(t *testing.T) {
	input, streamed, inline := corpus(t), filepath.Join(t.TempDir(), "streamed"), filepath.Join(t.TempDir(), "inline")
	if err := run(context.Background(), micro(t, input, streamed), &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	var p plan
	if err := readJSON(filepath.Join(streamed, "plan.json"), &p); err != nil {
		t.Fatal(err)
	}
	p.Source = trainers.FromInline
	if err := os.MkdirAll(inline, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(filepath.Join(inline, "plan.json"), p); err != nil {
		t.Fatal(err)
	}
	if err := run(context.Background(), micro(t, input, inline, "--source", "inline"), &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	got := weights(t, inline)
	for name, want := range weights(t, streamed) {
		if got[name] != want {
			t.Errorf("%s differs", name)
		}
	}
}

// Stopped in the middle of any stage and started again, the experiment ends in
// the same weights as one that was not.
func TestExperimentStoppedAnywhereEndsInTheSameWeights(t *testing.T) {
	input, whole, parts := corpus(t), filepath.Join(t.TempDir(), "whole"), filepath.Join(t.TempDir(), "parts")
	if err := run(context.Background(), micro(t, input, whole), &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	// the step counts are measured: give the second run those of the first
	plan, err := os.ReadFile(filepath.Join(whole, "plan.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(parts, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(parts, "plan.json"), plan, 0o666); err != nil {
		t.Fatal(err)
	}
	stops := 0
	for wait := 50 * time.Millisecond; ; wait += 100 * time.Millisecond {
		ctx, cancel := context.WithCancel(context.Background())
		stop := time.AfterFunc(wait, cancel) // no deadline: Beam's SDK panics on those
		err := run(ctx, micro(t, input, parts), &bytes.Buffer{})
		stop.Stop()
		cancel()
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) && !errors.Is(err, pipelines.ErrInterrupted) {
			t.Fatalf("stopped after %v: %v", wait, err)
		}
		stops++
	}
	if stops == 0 {
		t.Fatal("it was never stopped")
	}
	t.Logf("stopped %d times", stops)
	want, got := weights(t, whole), weights(t, parts)
	if len(got) != len(want) {
		t.Errorf("%d checkpoints, want %d", len(got), len(want))
	}
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s differs", name)
		}
	}
}

func TestBadCommandLinesAreOneLine(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--dim", "0"}, "--dim 0"},
		{[]string{"--heads", "3"}, "3 heads"},
		{[]string{"--filter-features", "4"}, "hyena_filter_emb_dim 4"},
		{[]string{"--vocab", "10"}, "--vocab 10"},
		{[]string{"--student-seconds", "NaN"}, "--student-seconds"},
		{[]string{"--validation", "1.5"}, "--validation"},
		{[]string{"--eval", "wiki=/no/such/file"}, "--eval wiki"},
		{[]string{"--source", "carrier-pigeon"}, "--source"},
		{[]string{"--precision", "float8"}, "--precision"},
		{[]string{"--eval", "nothing"}, "name=file"},
	} {
		_, err := parse(c.args)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v", c.args, err)
		}
	}
}

func TestBadInputIsNamedAndLeavesNoTokenSet(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.txt")
	if err := os.WriteFile(empty, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	input := corpus(t)
	for _, c := range []struct {
		input string
		more  []string
		want  string
	}{
		{filepath.Join(t.TempDir(), "no-such-*"), nil, "no-such-"},
		{empty, nil, "no text"},
		{input, []string{"--tokenizer", empty}, "empty.txt"},
		{input, []string{"--teacher", t.TempDir()}, "--teacher"},
		{input, []string{"--device", "tpu"}, "tpu"},
		{input, []string{"--context", "100000"}, "less than one sequence"},
	} {
		o := micro(t, c.input, filepath.Join(t.TempDir(), "run"), c.more...)
		err := run(context.Background(), o, &bytes.Buffer{})
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v", append([]string{c.input}, c.more...), err)
		}
	}
}

func TestAnotherBudgetInTheSameFolderIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	o := micro(t, corpus(t), dir)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(filepath.Join(dir, "plan.json"), plan{TeacherSeconds: 1, StudentSeconds: 2, Batch: 4, Source: "stream"}); err != nil {
		t.Fatal(err)
	}
	_, err := loadPlan(context.Background(), o, checkpoint.Config{})
	if err == nil || !strings.Contains(err.Error(), "--student-seconds 2") {
		t.Errorf("got %v", err)
	}
}
