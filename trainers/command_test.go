package trainers

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// outputs runs a command with its output caught.
func outputs(t *testing.T, args []string, flags func(*flag.FlagSet), run func(context.Context) (fmt.Stringer, error)) (code int, out, errs string) {
	t.Helper()
	stdout, stderr := os.Stdout, os.Stderr
	defer func() { os.Stdout, os.Stderr = stdout, stderr }()
	var files [2]*os.File
	for i := range files {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	os.Stdout, os.Stderr = files[0], files[1]
	code = command("test: says things", flags, run, args)
	var text [2]string
	for i, f := range files {
		f.Seek(0, io.SeekStart)
		b, _ := io.ReadAll(f)
		text[i] = string(b)
	}
	return code, text[0], text[1]
}

func TestLogAsJSONIsARecordALine(t *testing.T) {
	tr := trainers(t, testSet(t, 8))[2]
	dir := t.TempDir()
	begin := func(r *Run) { r.Log, r.Quiet, r.SaveEvery = LogJSON, false, 2 }
	w := &wrapped{before: func(n int64) error {
		if n == 5 {
			return errKilled
		}
		return nil
	}}
	_, _, _ = outputs(t, nil, func(*flag.FlagSet) {}, func(ctx context.Context) (fmt.Stringer, error) { return tr.train(ctx, w.register(t), dir, begin) })
	code, _, errs := outputs(t, nil, func(*flag.FlagSet) {}, func(ctx context.Context) (fmt.Stringer, error) { return tr.train(ctx, "cpu", dir, begin) })
	lines := strings.Split(strings.TrimSpace(errs), "\n")
	if code != 0 || len(lines) != 3 { // going on, the first step after that, the last
		t.Fatalf("status %d: %q", code, errs)
	}
	var last struct {
		Level, Msg, Stage string
		Step, Tokens      int64
		Loss              float64
	}
	for _, line := range lines {
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	if last.Level != "INFO" || last.Msg != "step" || last.Stage != "finetune" || last.Step != 6 || last.Tokens != 6*3*testLength || !(last.Loss > 0) {
		t.Errorf("%+v", last)
	}
}

func TestCommandTurnsErrorsIntoOneLineAndAnExitStatus(t *testing.T) {
	none := func(*flag.FlagSet) {}
	ok := func(context.Context) (fmt.Stringer, error) { return Summary{Steps: 3}, nil }
	for _, c := range []struct {
		args      []string
		run       func(context.Context) (fmt.Stringer, error)
		code      int
		out, errs string
	}{
		{nil, ok, 0, "trained: 3 steps", ""},
		{nil, func(context.Context) (fmt.Stringer, error) {
			return nil, errors.Join(errors.New("one"), errors.New("two"))
		}, 1, "", "test: one; two\n"},
		{[]string{"--none"}, ok, 2, "", "test: flag provided but not defined: -none (-h lists the flags)\n"},
		{[]string{"stray"}, ok, 2, "", `test: argument "stray" is not a flag`},
		{[]string{"-h"}, ok, 0, "", "test: says things"},
		{nil, func(ctx context.Context) (fmt.Stringer, error) {
			syscall.Kill(os.Getpid(), syscall.SIGTERM)
			<-ctx.Done()
			return nil, fmt.Errorf("stopped after step 2: %w", ctx.Err())
		}, 130, "", "test: stopped after step 2: context canceled\n"},
	} {
		code, out, errs := outputs(t, c.args, none, c.run)
		if code != c.code || !strings.HasPrefix(out, c.out) || !strings.HasPrefix(errs, c.errs) {
			t.Errorf("%v: status %d, output %q, errors %q; want %d, %q, %q", c.args, code, out, errs, c.code, c.out, c.errs)
		}
	}
}

func TestCommandsTrainAndEvaluateFromFlags(t *testing.T) {
	dir := testSet(t, 8)
	teacher, runs := saved(t, testTeacher(t)), t.TempDir()
	distilled, tuned, fresh := filepath.Join(runs, "a"), filepath.Join(runs, "b"), filepath.Join(runs, "c")
	small := []string{"--dataset", dir, "--batch", "2", "--quiet"}
	var d DistillOptions
	var f FinetuneOptions
	var p PretrainOptions
	var e EvaluateOptions
	for _, c := range []struct {
		flags func(*flag.FlagSet)
		run   func(context.Context) (fmt.Stringer, error)
		args  []string
		want  string
	}{
		{d.Flags, func(ctx context.Context) (fmt.Stringer, error) { return Distill(ctx, d) },
			append(small, "--teacher", teacher, "--source", "inline", "--schedule", "joint", "--init", "attention", "--steps-per-layer", "3", "--run", distilled), "trained: 3 steps, 72 tokens"},
		{f.Flags, func(ctx context.Context) (fmt.Stringer, error) { return Finetune(ctx, f) },
			append(small, "--student", distilled, "--epochs", "1", "--run", tuned), "trained: 4 steps, 96 tokens"},
		{p.Flags, func(ctx context.Context) (fmt.Stringer, error) { return Pretrain(ctx, p) },
			append(small, "--dim", "16", "--layers", "1", "--mixer", "attention", "--heads", "2", "--steps", "2", "--run", fresh), "trained: 2 steps, 48 tokens"},
		{e.Flags, func(ctx context.Context) (fmt.Stringer, error) { return Evaluate(ctx, e) },
			append(small, "--model", tuned), "tokens scored  44 in 4 windows of up to 12 tokens"},
	} {
		code, out, errs := outputs(t, slices.Clone(c.args), c.flags, c.run)
		if code != 0 || errs != "" || !strings.HasPrefix(out, c.want) {
			t.Errorf("%v: status %d, output %q, errors %q; want %q", c.args, code, out, errs, c.want)
		}
	}
}
