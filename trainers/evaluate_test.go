package trainers

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/tokenizer"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

func TestScoreDoesNotDependOnBatchSize(t *testing.T) {
	dir := testSet(t, 7, 4)
	for _, m := range []*checkpoint.Model{testTeacher(t), spread(random(t, studentConfig(), 6))} {
		model := saved(t, m)
		for _, context := range []int{0, 12, 7, 5} { // windows of 12; 12; 7 + 5; 5 + 5 + 2
			var want Score
			for i, batch := range []int{1, 2, 3, 5, 64} {
				s, err := Evaluate(t.Context(), EvaluateOptions{Model: model, Dataset: dir, Split: tokenset.Train, Context: context, Batch: batch, Quiet: true})
				if err != nil {
					t.Fatal(err)
				}
				s.Seconds = 0
				if i == 0 {
					want = s
				}
				if s != want {
					t.Errorf("context %d, batch %d: %+v, want %+v", context, batch, s, want)
				}
			}
			windows := map[int]int64{0: 1, 12: 1, 7: 2, 5: 3}[context]
			if want.Windows != 11*windows || want.Tokens != 11*(testLength-windows) {
				t.Errorf("context %d: %d windows, %d tokens scored, want %d and %d", context, want.Windows, want.Tokens, 11*windows, 11*(testLength-windows))
			}
		}
	}
}

// The score is the sum of what the logits say of each token after the first.
func TestScoreIsTheLogitsCrossEntropy(t *testing.T) {
	dir := testSet(t, 3)
	m := testTeacher(t)
	got, err := Evaluate(t.Context(), EvaluateOptions{Model: saved(t, m), Dataset: dir, Quiet: true})
	if err != nil {
		t.Fatal(err)
	}
	e, err := gpu.Open("cpu")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	model, err := e.Open(m, gpu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	set, err := tokenset.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	var nats float64
	for _, id := range set.IDs(tokenset.Validation) {
		tokens, err := set.Sequence(tokenset.Validation, id)
		if err != nil {
			t.Fatal(err)
		}
		logits, err := model.Logits(gpu.Batch{Rows: 1, Length: len(tokens), Tokens: tokens})
		if err != nil {
			t.Fatal(err)
		}
		v := m.Config.Vocab
		for i, next := range tokens[1:] {
			var sum float64
			for _, l := range logits[i*v : (i+1)*v] {
				sum += math.Exp(float64(l))
			}
			nats += math.Log(sum) - float64(logits[i*v+int(next)])
		}
	}
	if got.Tokens != 4*(testLength-1) || math.Abs(got.Nats-nats) > 1e-4*nats {
		t.Errorf("%d tokens, %.6f nats, want %d and %.6f", got.Tokens, got.Nats, 4*(testLength-1), nats)
	}
	if want := math.Exp(nats / float64(got.Tokens)); math.Abs(got.Perplexity()/want-1) > 1e-4 {
		t.Errorf("perplexity %g, want %g", got.Perplexity(), want)
	}
}

func TestTextIsScoredInWindowsAndNamesItsConventions(t *testing.T) {
	text := strings.Repeat("the cat and the dog and the bird\n", 9)
	tok, err := tokenizer.Train(func(yield func(string) bool) { yield(text) }, tokenizer.TrainOptions{Vocab: 270})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path, words := filepath.Join(dir, "tokenizer.json"), filepath.Join(dir, "text.txt")
	if err := tok.Save(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(words, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c := teacherConfig()
	c.Vocab = 272
	o := EvaluateOptions{Model: saved(t, spread(random(t, c, 1))), Text: words, Tokenizer: path, Quiet: true}
	s, err := Evaluate(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	n := int64(len(tok.Encode(text)))
	windows := (n + 23) / 24
	if n%24 == 1 {
		windows-- // a last window of one token has nothing to score
	}
	if s.Context != 24 || s.Windows != windows || s.Tokens != n-(n+23)/24 || s.Bytes != int64(len(text)) || s.Words != 72 {
		t.Errorf("%+v of %d tokens, %d bytes", s, n, len(text))
	}
	for _, want := range []string{"every token after a window's first once", "nats", "perplexity", "bits per byte", "all 297 bytes", "all 72 words between white space"} {
		if !strings.Contains(s.String(), want) {
			t.Errorf("no %q in\n%s", want, s)
		}
	}
	o.Batch = 3
	if again, err := Evaluate(t.Context(), o); err != nil || again.Nats != s.Nats {
		t.Errorf("batch 3: %v nats, want %v (%v)", again.Nats, s.Nats, err)
	}
}

func TestEvaluationsThatCannotBeAreRefused(t *testing.T) {
	dir := testSet(t, 3)
	narrow := teacherConfig()
	narrow.Vocab = 50
	model := saved(t, testTeacher(t))
	broken := testTeacher(t)
	broken.Weights[checkpoint.FinalScale][0] = float32(math.NaN())
	for want, o := range map[string]EvaluateOptions{
		"--model is missing":              {Dataset: dir},
		"what to score is missing":        {Model: model},
		"exclude each other":              {Model: model, Dataset: dir, Text: "a"},
		"--text needs --tokenizer":        {Model: model, Text: "a"},
		`--split "test"`:                  {Model: model, Dataset: dir, Split: "test"},
		"--context 25: the model's is 24": {Model: model, Dataset: dir, Context: 25},
		"--context 1":                     {Model: model, Dataset: dir, Context: 1},
		"--batch -1":                      {Model: model, Dataset: dir, Batch: -1},
		"is 90, the model's 50":           {Model: saved(t, random(t, narrow, 1)), Dataset: dir},
		"no such folder":                  {Model: model, Dataset: filepath.Join(dir, "none")},
		"--model: ":                       {Model: filepath.Join(dir, "none"), Dataset: dir},
		"the model's weights are no use":  {Model: saved(t, broken), Dataset: dir},
		"--device: ":                      {Model: model, Dataset: dir, Device: "abacus"},
		"--tokenizer: ":                   {Model: model, Text: "a", Tokenizer: filepath.Join(dir, "none")},
		"its train split is empty":        {Model: model, Dataset: testSet(t), Split: tokenset.Train},
		"this engine computes in":         {Model: model, Dataset: dir, Precision: gpu.BFloat16},
		`--precision "half"`:              {Model: model, Dataset: dir, Precision: "half"},
	} {
		o.Quiet = true
		if _, err := Evaluate(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want one line with %q", err, want)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Evaluate(ctx, EvaluateOptions{Model: model, Dataset: dir, Quiet: true}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
