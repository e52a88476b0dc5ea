package trainers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/report"
	"github.com/scavenge/scavenge/schemas/tokenizer"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// EvaluateOptions are those of Evaluate: a model and either a token set or a
// text.
type EvaluateOptions struct {
	Model string // checkpoint

	Dataset string         // folder of a token set
	Split   tokenset.Split // ""; validation

	Text      string // path of a text file
	Tokenizer string // path of its tokenizer.json

	Context   int // tokens of a window; 0: the model's context
	Batch     int // windows computed together; 0: 16. No result depends on it
	Device    string
	Precision gpu.Precision

	Stage string
	Quiet bool
}

// Validate says which option no evaluation can have.
func (o EvaluateOptions) Validate() error {
	switch {
	case o.Model == "":
		return errors.New("--model is missing: the folder of a checkpoint")
	case o.Dataset == "" && o.Text == "":
		return errors.New("what to score is missing: --dataset, the folder of a token set, or --text, a file")
	case o.Dataset != "" && o.Text != "":
		return errors.New("--dataset and --text exclude each other")
	case o.Text != "" && o.Tokenizer == "":
		return errors.New("--text needs --tokenizer: the path of a tokenizer.json")
	case o.Split != "" && o.Split != tokenset.Train && o.Split != tokenset.Validation:
		return fmt.Errorf("--split %q: want %s or %s", o.Split, tokenset.Train, tokenset.Validation)
	case o.Context < 0 || o.Context == 1:
		return fmt.Errorf("--context %d: want at least 2 tokens", o.Context)
	case o.Batch < 0:
		return fmt.Errorf("--batch %d: want a positive number of windows", o.Batch)
	}
	return checkPrecision(o.Precision)
}

// Score is how well a model predicts a text: windows of Context tokens that do
// not overlap, every token after a window's first scored once.
type Score struct {
	Context int     // tokens of a window; a sequence's last may be shorter
	Windows int64   //
	Tokens  int64   // scored
	Nats    float64 // −ln p, summed over them
	Seconds float64

	// Of a text, as its bytes and as fields between white space; 0 for a token set.
	Bytes, Words int64
}

// Perplexity is exp(nats a scored token).
func (s Score) Perplexity() float64 { return math.Exp(s.Nats / float64(s.Tokens)) }

// String says the result and the conventions it follows.
func (s Score) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "tokens scored  %d in %d windows of up to %d tokens, every token after a window's first once\n", s.Tokens, s.Windows, s.Context)
	fmt.Fprintf(&b, "nats           %.6f in all, %.6f a token\n", s.Nats, s.Nats/float64(s.Tokens))
	fmt.Fprintf(&b, "perplexity     %.4f a token of this tokenizer", s.Perplexity())
	if s.Bytes > 0 {
		fmt.Fprintf(&b, "\nbits per byte  %.6f (nats of the scored tokens / ln 2 / all %d bytes of the text)", s.Nats/math.Ln2/float64(s.Bytes), s.Bytes)
	}
	if s.Words > 0 {
		fmt.Fprintf(&b, "\nper word       perplexity %.4f (nats of the scored tokens / all %d words between white space)", math.Exp(s.Nats/float64(s.Words)), s.Words)
	}
	return b.String()
}

// Evaluate scores a model.
func Evaluate(ctx context.Context, o EvaluateOptions) (s Score, err error) {
	if err := o.Validate(); err != nil {
		return s, err
	}
	model, err := LoadModel("--model", o.Model)
	if err != nil {
		return s, err
	}
	s.Context = o.Context
	if s.Context == 0 {
		s.Context = model.Config.Context
	}
	if s.Context > model.Config.Context {
		return s, fmt.Errorf("--context %d: the model's is %d", s.Context, model.Config.Context)
	}
	var text sequences
	if o.Text != "" {
		text, err = o.readText(model.Config.Vocab, &s)
	} else {
		text, err = o.readSet(model.Config.Vocab)
	}
	if err != nil {
		return s, err
	}
	e, err := device(o.Device)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	m, err := e.Open(model, gpu.Options{Precision: o.Precision})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	batch := o.Batch
	if batch == 0 {
		batch = 16
	}
	began := time.Now()
	w := scorer{model: m, batch: batch, score: &s}
	if !o.Quiet {
		stage := o.Stage
		if stage == "" {
			stage = "evaluate"
		}
		w.bar = report.NewBar(stage, text.tokens)
		defer w.bar.Done()
	}
	for i := range text.count {
		tokens, err := text.at(i)
		if err != nil {
			return s, err
		}
		if err := w.add(ctx, tokens); err != nil {
			return s, err
		}
	}
	if err := w.flush(ctx); err != nil {
		return s, err
	}
	s.Seconds = time.Since(began).Seconds()
	if s.Tokens == 0 {
		return s, errors.New("nothing to score: want at least one sequence of 2 tokens")
	}
	return s, nil
}

// sequences are token sequences that are scored apart from each other.
type sequences struct {
	count  int
	tokens int64
	at     func(i int) ([]int32, error)
}

// readText is a text file as one sequence.
func (o EvaluateOptions) readText(vocab int, s *Score) (sequences, error) {
	t, err := tokenizer.Load(o.Tokenizer)
	if err != nil {
		return sequences{}, fmt.Errorf("--tokenizer: %w", err)
	}
	if t.Vocab() > vocab {
		return sequences{}, fmt.Errorf("--tokenizer %s and --model do not fit: the vocabularies are %d and %d", o.Tokenizer, t.Vocab(), vocab)
	}
	data, err := os.ReadFile(o.Text)
	if err != nil {
		return sequences{}, fmt.Errorf("--text: %w", err)
	}
	if !utf8.Valid(data) {
		return sequences{}, fmt.Errorf("--text %s: it is not UTF-8", o.Text)
	}
	s.Bytes, s.Words = int64(len(data)), int64(len(bytes.Fields(data)))
	tokens := t.AppendEncode(nil, data)
	if len(tokens) < 2 {
		return sequences{}, fmt.Errorf("--text %s: it has %d tokens, want at least 2", o.Text, len(tokens))
	}
	return sequences{1, int64(len(tokens)), func(int) ([]int32, error) { return tokens, nil }}, nil
}

// readSet is a split of a token set, a sequence a row.
func (o EvaluateOptions) readSet(vocab int) (sequences, error) {
	set, err := openSet(o.Dataset)
	if err != nil {
		return sequences{}, err
	}
	split := o.Split
	if split == "" {
		split = tokenset.Validation
	}
	if v := set.Manifest.Tokenizer.Vocab; v > vocab {
		return sequences{}, fmt.Errorf("--model and --dataset do not fit: the token set's vocabulary is %d, the model's %d", v, vocab)
	}
	ids := set.IDs(split)
	if len(ids) == 0 {
		return sequences{}, fmt.Errorf("--dataset %s: its %s split is empty", o.Dataset, split)
	}
	return sequences{len(ids), int64(len(ids)) * int64(set.Manifest.SeqLen), func(i int) ([]int32, error) { return set.Sequence(split, ids[i]) }}, nil
}

// scorer cuts sequences into windows and scores those of one length together.
type scorer struct {
	model   gpu.Model
	batch   int
	score   *Score
	bar     *report.Bar
	pending gpu.Batch
	read    int64 // tokens of the windows scored so far
}

// add takes a sequence's windows. What is left of it at the end is a shorter
// window; a single token has nothing before it and is not scored.
func (w *scorer) add(ctx context.Context, tokens []int32) error {
	for len(tokens) > 1 {
		n := min(w.score.Context, len(tokens))
		if w.pending.Length != n || w.pending.Rows == w.batch {
			if err := w.flush(ctx); err != nil {
				return err
			}
			w.pending.Length = n
		}
		w.pending.Tokens = append(w.pending.Tokens, tokens[:n]...)
		w.pending.Rows++
		tokens = tokens[n:]
	}
	return nil
}

// flush scores the pending windows. The sum is taken token by token in the
// order of the text, so that it does not depend on the batch size.
func (w *scorer) flush(ctx context.Context) error {
	if w.pending.Rows == 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	nats, err := w.model.Score(w.pending)
	if err != nil {
		return fmt.Errorf("window %d: %w", w.score.Windows, err)
	}
	for _, v := range nats {
		w.score.Nats += float64(v)
	}
	if math.IsNaN(w.score.Nats) || math.IsInf(w.score.Nats, 0) {
		return fmt.Errorf("windows %d to %d: the score is %g: the model's weights are no use", w.score.Windows, w.score.Windows+int64(w.pending.Rows)-1, w.score.Nats)
	}
	w.score.Windows += int64(w.pending.Rows)
	w.score.Tokens += int64(len(nats))
	w.read += int64(len(w.pending.Tokens))
	w.bar.Set(w.read, w.read, w.score.Nats/float64(w.score.Tokens))
	w.pending.Rows, w.pending.Tokens = 0, w.pending.Tokens[:0]
	return nil
}
