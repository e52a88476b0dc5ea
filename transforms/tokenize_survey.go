package transforms

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/scavenge/scavenge/schemas/store"
	"github.com/scavenge/scavenge/schemas/tokenrun"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// surveys is how many tasks the survey has; each looks at as many buckets.
const surveys = 64

// surveyed is what is known of some buckets.
type surveyed struct {
	Train, Validation []tally // by bucket
	Docs              int64   // before any was left out
	Duplicates        int64
	Sum               [2]uint64 // of the ids: in no order, each as two numbers
}

// tally counts a bucket's documents of a split.
type tally struct{ Docs, Tokens int64 }

// surveyFn counts what the runs hold in a range of buckets.
type surveyFn struct {
	step
	bundle bundle[Result]
}

func (fn *surveyFn) ProcessElement(ctx context.Context, i int, _ func(Result)) error {
	return fn.bundle.start(ctx, &fn.step, func(ctx context.Context, _ *Task) (Result, error) {
		s, err := fn.survey(ctx, i)
		if err != nil {
			return Result{}, err
		}
		return newResult(i, s)
	})
}

func (fn *surveyFn) FinishBundle(_ context.Context, emit func(Result)) error {
	return fn.bundle.finish(emit)
}

// survey counts one range.
func (fn *surveyFn) survey(ctx context.Context, i int) (s surveyed, err error) {
	g, err := fn.Recipe.gathered(ctx)
	if err != nil {
		return s, err
	}
	m, err := fn.Recipe.openRuns(g.Runs)
	if err != nil {
		return s, err
	}
	defer m.close()
	const each = tokenrun.Buckets / surveys
	for b := i * each; b < (i+1)*each; b++ {
		if err := ctx.Err(); err != nil {
			return s, err
		}
		docs, err := m.bucket(b, false)
		if err != nil {
			return s, err
		}
		var train, validation tally
		for j, d := range docs {
			s.Docs++
			s.Sum[0] += binary.LittleEndian.Uint64(d.ID[:])
			s.Sum[1] += binary.LittleEndian.Uint64(d.ID[8:])
			if fn.Recipe.duplicate(docs, j) {
				s.Duplicates++
				continue
			}
			split, ok := fn.Recipe.splitOf(d.ID)
			if !ok {
				continue
			}
			t := &train
			if split == tokenset.Validation {
				t = &validation
			}
			t.Docs++
			t.Tokens += int64(d.Tokens)
		}
		s.Train, s.Validation = append(s.Train, train), append(s.Validation, validation)
	}
	return s, nil
}

// duplicate says whether document i of a bucket's, which are sorted, is to be
// left out as the equal of the one before.
func (r Recipe) duplicate(docs []tokenrun.Doc, i int) bool {
	return r.Deduplicate && i > 0 && docs[i].ID == docs[i-1].ID
}

// merged is all runs, open together.
type merged struct {
	runs   []*tokenrun.Run
	remote bool
	docs   []tokenrun.Doc
}

// fetches is how many runs in a bucket are asked at once: what takes time there
// is the answer's way.
const fetches = 16

func (r Recipe) openRuns(names []string) (*merged, error) {
	m := &merged{runs: make([]*tokenrun.Run, len(names)), remote: store.Remote(r.Dir)}
	err := m.each(func(i int) (err error) {
		m.runs[i], err = tokenrun.Open(r.work(names[i]))
		return err
	})
	if err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// each calls do for every run, for several at once where they are remote.
func (m *merged) each(do func(i int) error) error {
	var g errgroup.Group
	g.SetLimit(fetches)
	for i := range m.runs {
		if !m.remote {
			if err := do(i); err != nil {
				return err
			}
			continue
		}
		g.Go(func() error { return do(i) })
	}
	return g.Wait()
}

func (m *merged) close() {
	for _, r := range m.runs {
		if r != nil {
			r.Close()
		}
	}
}

// bucket is all runs' documents of a bucket, sorted; valid until the next call.
// tokens says that theirs will be read.
func (m *merged) bucket(b int, tokens bool) (docs []tokenrun.Doc, err error) {
	if m.remote {
		if err := m.each(func(i int) error { return m.runs[i].Prefetch(b, tokens) }); err != nil {
			return nil, err
		}
	}
	m.docs = m.docs[:0]
	for _, r := range m.runs {
		if m.docs, err = r.AppendDocs(m.docs, b); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(m.docs, tokenrun.Compare)
	return m.docs, nil
}

// outline says where everything goes: it is written once all is counted.
type outline struct {
	Recipe     string // hash, with the documents in it
	Corpus     string // fingerprint of the documents
	Duplicates int64
	Runs       []string
	Splits     map[tokenset.Split]*stream
	Shards     []shardPlan
	Subsets    []tokenset.Subset // their rows still to be counted
}

// stream is a split's documents one after the other.
type stream struct {
	Docs, Tokens int64
	Rows         int64   // whole sequences in it
	Starts       []int64 // tokens before each bucket
}

// shardPlan says which sequences are in a shard: those of the stream's rows
// From to To whose rank is from Low to below High.
type shardPlan struct {
	Split     tokenset.Split
	Index, Of int
	From, To  int64
	Low, High int64
}

func (r Recipe) outlinePath() string { return r.work("outline.json") }

// layOutFn lays the shards out and hands them out.
type layOutFn struct{ step }

func (fn *layOutFn) ProcessElement(ctx context.Context, _ int, each func(*Result) bool, emit func(int)) (err error) {
	ctx, task := fn.Launch.Begin(ctx)
	defer task.End(&err)
	all, err := results[surveyed](fn.Recipe.Dir, surveys, each)
	if err != nil {
		return err
	}
	o, err := fn.Recipe.layOut(ctx, all)
	if err != nil {
		return err
	}
	if err := saveJSON(ctx, fn.Recipe.outlinePath(), o); err != nil {
		return err
	}
	for i := range o.Shards {
		emit(i)
	}
	return nil
}

func (r Recipe) layOut(ctx context.Context, all []surveyed) (o outline, err error) {
	g, err := r.gathered(ctx)
	if err != nil {
		return o, err
	}
	o.Runs = g.Runs
	train, validation := &stream{Starts: []int64{0}}, &stream{Starts: []int64{0}}
	var docs int64
	var sum [2]uint64
	for _, s := range all {
		docs, o.Duplicates = docs+s.Docs, o.Duplicates+s.Duplicates
		sum[0], sum[1] = sum[0]+s.Sum[0], sum[1]+s.Sum[1]
		train.add(s.Train)
		validation.add(s.Validation)
	}
	h := sha256.Sum256(fmt.Appendf(nil, "documents %d %016x%016x", docs, sum[0], sum[1]))
	o.Corpus = hex.EncodeToString(h[:])
	o.Recipe = r.hash(o.Corpus)
	o.Splits = map[tokenset.Split]*stream{tokenset.Train: train, tokenset.Validation: validation}
	train.Rows, validation.Rows = train.Tokens/int64(r.SeqLen), validation.Tokens/int64(r.SeqLen)
	if train.Rows == 0 { // nothing to train on: leave nothing behind
		err := fmt.Errorf("token set %s: the %d documents for training have %d tokens, less than one sequence of %d", r.Dir, train.Docs, train.Tokens, r.SeqLen)
		if train.Docs+validation.Docs == 0 {
			err = fmt.Errorf("token set %s: the input has no text, or the sample none of it%s", r.Dir, g.note())
		}
		return o, errors.Join(err, store.RemoveAll(ctx, r.work("")))
	}
	if r.Sequences > train.Rows {
		return o, fmt.Errorf("token set %s: --sample %d: the train split has %d sequences of %d tokens", r.Dir, r.Sequences, train.Rows, r.SeqLen)
	}
	rows := train.Rows
	if r.Sequences > 0 {
		rows = r.Sequences
	}
	var low int64
	for _, s := range r.Subsets { // each of them inside the next
		high := sequencesFor(s.Tokens, r.SeqLen)
		if high > rows {
			return o, fmt.Errorf("token set %s: --subset %s: %d tokens are %d sequences, the train split has %d", r.Dir, s.Name, s.Tokens, high, rows)
		}
		if high > low {
			o.plan(tokenset.Train, train.Rows, low, high, r)
		}
		o.Subsets = append(o.Subsets, tokenset.Subset{Name: s.Name, Tokens: s.Tokens, Shards: len(o.Shards)})
		low = high
	}
	if rows > low {
		o.plan(tokenset.Train, train.Rows, low, rows, r)
	}
	of := len(o.Shards)
	for i := range o.Shards {
		o.Shards[i].Index, o.Shards[i].Of = i, of
	}
	if validation.Rows > 0 {
		o.plan(tokenset.Validation, validation.Rows, 0, validation.Rows, r)
	}
	for i := of; i < len(o.Shards); i++ {
		o.Shards[i].Index, o.Shards[i].Of = i-of, len(o.Shards)-of
	}
	return o, nil
}

// plan adds the shards of the sequences of ranks low to high of a stream of
// rows.
func (o *outline) plan(split tokenset.Split, rows, low, high int64, r Recipe) {
	n := max(1, ((high-low)*int64(r.SeqLen)+r.ShardTokens-1)/r.ShardTokens)
	n = min(n, high-low)
	for i := range n {
		o.Shards = append(o.Shards, shardPlan{Split: split, From: part(rows, i, n), To: part(rows, i+1, n), Low: low, High: high})
	}
}

// part is where the i-th of n parts of rows begins.
func part(rows, i, n int64) int64 { return rows/n*i + min(i, rows%n) }

func (s *stream) add(buckets []tally) {
	for _, b := range buckets {
		s.Docs += b.Docs
		s.Tokens += b.Tokens
		s.Starts = append(s.Starts, s.Tokens)
	}
}

// note says what bad documents there were, for an error.
func (g *gathered) note() string {
	if g.Omitted.Total() == 0 {
		return ""
	}
	return fmt.Sprintf("; %d bad documents were left out, the first: %s", g.Omitted.Total(), g.Omitted.Named[0])
}
