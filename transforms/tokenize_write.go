package transforms

import (
	"context"
	"encoding/json"
	"fmt"
	"sort"

	"github.com/scavenge/scavenge/schemas/store"
	"github.com/scavenge/scavenge/schemas/tokenrun"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// note is kept in each shard's file, so that a rerun knows the shard for its
// own.
type note struct {
	Recipe string    `json:"recipe"` // hash of all that the shard depends on
	Shard  shardPlan `json:"shard"`
}

// noteKey is the note's key in the Parquet file's metadata.
const noteKey = "scavenge"

// writeFn writes one shard.
type writeFn struct {
	step
	bundle bundle[Result]
}

func (fn *writeFn) ProcessElement(ctx context.Context, i int, _ func(Result)) error {
	return fn.bundle.start(ctx, &fn.step, func(ctx context.Context, task *Task) (Result, error) {
		shard, err := fn.write(ctx, i, task)
		if err != nil {
			return Result{}, err
		}
		return newResult(i, shard)
	})
}

func (fn *writeFn) FinishBundle(_ context.Context, emit func(Result)) error {
	return fn.bundle.finish(emit)
}

// write writes one shard, if it is not there.
func (fn *writeFn) write(ctx context.Context, i int, task *Task) (shard tokenset.Shard, err error) {
	var o outline
	if err := loadJSON(ctx, fn.Recipe.outlinePath(), &o); err != nil {
		return shard, err
	}
	if i < 0 || i >= len(o.Shards) {
		return shard, fmt.Errorf("token set %s: shard %d of %d", fn.Recipe.Dir, i, len(o.Shards))
	}
	shard, ok := fn.Recipe.finishedShard(ctx, &o, i)
	if !ok {
		w := &shardWriter{recipe: fn.Recipe, outline: &o, plan: o.Shards[i]}
		if shard, err = w.write(ctx); err != nil {
			return shard, err
		}
	}
	var all int64
	for _, s := range o.Shards {
		all += s.To - s.From
	}
	share := float64(o.Shards[i].To-o.Shards[i].From) / float64(all)
	task.Advance(int64(share*float64(fn.Recipe.InputBytes)), 0)
	return shard, nil
}

func (r Recipe) shardPath(p shardPlan) string {
	return store.Join(r.Dir, tokenset.ShardName(p.Split, p.Index, p.Of))
}

// finishedShard is a shard that is there already, from the same recipe and the
// same documents.
func (r Recipe) finishedShard(ctx context.Context, o *outline, i int) (shard tokenset.Shard, ok bool) {
	shard, notes, err := tokenset.Describe(r.shardPath(o.Shards[i]))
	var n note
	return shard, err == nil && json.Unmarshal([]byte(notes[noteKey]), &n) == nil && n == note{o.Recipe, o.Shards[i]}
}

// A shardWriter merges the runs' part of a shard and cuts it into sequences.
type shardWriter struct {
	recipe  Recipe
	outline *outline
	plan    shardPlan
	out     *tokenset.Writer
	ranks   *ranks // nil: all sequences are in
	row     []byte // not yet whole
	width   int    // bytes a token, in runs and shards
}

// readTokens is the most that is read at a time, in tokens.
const readTokens = 1 << 18

func (w *shardWriter) write(ctx context.Context) (shard tokenset.Shard, err error) {
	r, o, p := w.recipe, w.outline, w.plan
	s := o.Splits[p.Split]
	if p.High-p.Low < s.Rows {
		w.ranks = newRanks(s.Rows, r.Seed)
	}
	data, err := json.Marshal(note{o.Recipe, p})
	if err != nil {
		return shard, err
	}
	if w.out, err = tokenset.NewWriter(r.shardPath(p), p.Index, r.SeqLen, r.Vocab); err != nil {
		return shard, err
	}
	defer w.out.Abort()
	w.out.Note(noteKey, string(data))
	m, err := r.openRuns(o.Runs)
	if err != nil {
		return shard, err
	}
	defer m.close()
	w.width = tokenset.Width(r.Vocab)
	for i, run := range m.runs {
		if run.Width() != w.width {
			return shard, fmt.Errorf("token set %s: %s has %d bytes a token, want %d: remove it, and the same command makes it again", r.Dir, o.Runs[i], run.Width(), w.width)
		}
	}
	from, to := p.From*int64(r.SeqLen), p.To*int64(r.SeqLen) // in tokens of the stream
	first := sort.Search(tokenrun.Buckets, func(b int) bool { return s.Starts[b+1] > from })
	for b := first; b < tokenrun.Buckets && s.Starts[b] < to; b++ {
		if err := ctx.Err(); err != nil {
			return shard, err
		}
		docs, err := m.bucket(b, true)
		if err != nil {
			return shard, err
		}
		at := s.Starts[b]
		for i := range docs {
			if split, ok := r.splitOf(docs[i].ID); !ok || split != p.Split || r.duplicate(docs, i) {
				continue
			}
			if err := w.document(&docs[i], at); err != nil {
				return shard, err
			}
			at += int64(docs[i].Tokens)
		}
		if at != s.Starts[b+1] {
			return shard, fmt.Errorf("token set %s: bucket %d has %d tokens of %s, %d were counted: the runs were changed", r.Dir, b, at-s.Starts[b], p.Split, s.Starts[b+1]-s.Starts[b])
		}
	}
	if len(w.row) != 0 {
		return shard, fmt.Errorf("token set %s: shard %d of %s: its last sequence has %d tokens", r.Dir, p.Index, p.Split, len(w.row)/w.width)
	}
	return w.out.Close()
}

// document writes what of a document, which begins at token `at` of the
// stream, is in the shard's sequences.
func (w *shardWriter) document(d *tokenrun.Doc, at int64) (err error) {
	n := int64(w.recipe.SeqLen)
	end := min(at+int64(d.Tokens), w.plan.To*n)
	for from := max(at, w.plan.From*n); from < end; {
		row := from / n
		if !w.selected(row) {
			from = (row + 1) * n
			continue
		}
		to := (row + 1) * n
		for to < end && to-from < readTokens && w.selected(to/n) {
			to += n
		}
		to = min(to, end)
		if w.row, err = d.AppendTokens(w.row, uint32(from-at), uint32(to-at)); err != nil {
			return err
		}
		from = to
		whole, bytes := w.row, int(n)*w.width
		for ; len(whole) >= bytes; whole = whole[bytes:] {
			if err := w.out.AppendBytes(whole[:bytes]); err != nil {
				return err
			}
		}
		w.row = append(w.row[:0], whole...)
	}
	return nil
}

func (w *shardWriter) selected(row int64) bool {
	if w.ranks == nil {
		return true
	}
	rank := w.ranks.rank(row)
	return rank >= w.plan.Low && rank < w.plan.High
}

// completeFn writes the manifest, last, when every shard is there.
type completeFn struct{ step }

func (fn *completeFn) ProcessElement(ctx context.Context, _ int, each func(*Result) bool) (err error) {
	ctx, task := fn.Launch.Begin(ctx)
	defer task.End(&err)
	var o outline
	if err := loadJSON(ctx, fn.Recipe.outlinePath(), &o); err != nil {
		return err
	}
	shards, err := results[tokenset.Shard](fn.Recipe.Dir, len(o.Shards), each)
	if err != nil {
		return err
	}
	return fn.Recipe.complete(ctx, &o, shards)
}

func (r Recipe) complete(ctx context.Context, o *outline, shards []tokenset.Shard) error {
	tok, err := loadTokenizer(ctx, r.Tokenizer, r.Fingerprint)
	if err != nil {
		return err
	}
	end, _ := tok.EndOfText()
	m := &tokenset.Manifest{
		Tokenizer: tokenset.Tokenizer{SHA256: r.Fingerprint, Vocab: tok.Vocab(), EndOfText: end},
		SeqLen:    r.SeqLen, Seed: r.Seed, Sample: r.Documents, Validation: r.Validation, Sequences: r.Sequences,
		Splits: map[tokenset.Split]*tokenset.Counts{},
		Corpus: o.Corpus, Deduplicated: r.Deduplicate, Duplicates: o.Duplicates, Clean: r.Rules.Clean, MaxDocument: int64(r.Rules.maxDocument()),
		OnBad: OnBadFail, ShardTokens: r.ShardTokens,
	}
	if r.Rules.Skip {
		m.OnBad = OnBadSkip
	}
	for split, s := range o.Splits {
		m.Splits[split] = &tokenset.Counts{Documents: s.Docs, TokensDropped: s.Tokens % int64(r.SeqLen)}
	}
	for i, s := range shards {
		c := m.Splits[o.Shards[i].Split]
		c.Rows += s.Rows
		c.Tokens += s.Rows * int64(r.SeqLen)
		c.Shards = append(c.Shards, s)
	}
	for _, s := range o.Subsets {
		for _, shard := range shards[:s.Shards] {
			s.Rows += shard.Rows
		}
		if want := sequencesFor(s.Tokens, r.SeqLen); s.Rows != want {
			return fmt.Errorf("token set %s: subset %s has %d sequences, %d were planned", r.Dir, s.Name, s.Rows, want)
		}
		m.Subsets = append(m.Subsets, s)
	}
	g, err := r.gathered(ctx)
	if err != nil {
		return err
	}
	if g.Omitted.Empty != 0 || g.Omitted.Total() != 0 {
		m.Omitted = &g.Omitted
	}
	if m.Inputs, err = r.inputs(ctx); err != nil {
		return err
	}
	return tokenset.WriteManifest(r.Dir, m)
}

// RemoveShards removes the shards that this program wrote from a set's folder:
// readers of Parquet take all files that match train-*. A file of such a name
// that it did not write is an error.
func (r Recipe) RemoveShards(ctx context.Context) error {
	var names []string
	for i, err := range store.List(ctx, r.Dir) {
		if err != nil {
			return fmt.Errorf("token set %s: %w", r.Dir, err)
		}
		if tokenset.IsShardName(store.Base(i.Path)) {
			names = append(names, i.Path)
		}
	}
	for _, name := range names {
		if _, notes, err := tokenset.Describe(name); err != nil || notes[noteKey] == "" {
			return fmt.Errorf("token set %s: %s is there, which this program did not write: name another --output, or remove it", r.Dir, store.Base(name))
		}
	}
	for _, name := range names {
		if err := store.Remove(ctx, name); err != nil {
			return fmt.Errorf("token set %s: %w", r.Dir, err)
		}
	}
	return nil
}
