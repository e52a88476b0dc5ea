package pipelines

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/apache/beam/sdks/v2/go/pkg/beam"

	"github.com/scavenge/scavenge/schemas/report"
	"github.com/scavenge/scavenge/schemas/store"
	_ "github.com/scavenge/scavenge/schemas/store/cloud" // s3:// and gs://
	"github.com/scavenge/scavenge/schemas/tokenset"
	"github.com/scavenge/scavenge/transforms"
)

// Tokenize makes a token set of text files: documents in a random order, each
// ended by <|endoftext|>, one after the other and cut into sequences of exactly
// SeqLen tokens. What of a split does not fill the last sequence is dropped and
// counted. The same documents and options give the same shards to the byte, in
// whatever files, layouts and order the documents came and whatever ran in
// parallel.
//
// A run that was cut short goes on where it was; a whole token set of the same
// inputs and options is left as it is, and what was made of others is refused,
// or replaced where Overwrite says so.
func Tokenize(ctx context.Context, o TokenizeOptions) error {
	if err := o.Validate(); err != nil {
		return err
	}
	o.setDefaults()
	r, err := o.recipe(ctx)
	if err != nil {
		return err
	}
	if i, err := store.Stat(ctx, r.Dir); err == nil && !i.Folder {
		return fmt.Errorf("token set %s: a file of this name is there", o.Output)
	}
	w := &workplace{o: o, r: r}
	if w.inputs, err = transforms.List(ctx, o.files(), o.GroupBytes); err != nil { // before any folder is made
		return interrupted(ctx, err)
	}
	defer w.inputs.Close()
	held, err := w.open(ctx)
	if err != nil {
		return interrupted(ctx, err)
	}
	whole, err := w.prepare(held)
	if err == nil && !whole {
		err = w.run(held)
	}
	if ctx.Err() == nil && held.Err() != nil { // what comes of it is not the cause
		err = context.Cause(held)
	}
	return w.close(interrupted(ctx, err))
}

// interrupted is the error of something that ctx may have cut short.
func interrupted(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return ErrInterrupted
	}
	return err
}

// files is the inputs without standard input.
func (o TokenizeOptions) files() []string {
	return slices.DeleteFunc(slices.Clone(o.Inputs), func(s string) bool { return s == Stdin })
}

// recipe checks the tokenizer and makes paths absolute.
func (o TokenizeOptions) recipe(ctx context.Context) (r transforms.Recipe, err error) {
	t, err := transforms.LoadTokenizer(ctx, o.Tokenizer)
	if err != nil {
		return r, err
	}
	r = transforms.Recipe{Fingerprint: t.Fingerprint(), Vocab: t.Vocab(), SeqLen: o.SeqLen, Seed: o.Seed, Documents: o.Documents, Validation: o.Validation,
		Deduplicate: o.Deduplicate, Sequences: o.Sequences, Subsets: o.Subsets, ShardTokens: o.ShardTokens, RunTokens: o.RunTokens, InputName: strings.Join(o.Inputs, ","),
		Rules: transforms.Rules{Clean: o.Clean, MaxDocument: o.MaxDocument, Skip: o.OnBad == transforms.OnBadSkip}}
	if r.Tokenizer, err = store.Abs(o.Tokenizer); err != nil {
		return r, err
	}
	r.Dir, err = store.Abs(o.Output)
	return r, err
}

// run runs the pipeline.
func (w *workplace) run(ctx context.Context) error {
	var bar *report.Bar
	total, counted := 2*w.r.InputBytes, int64(0) // each byte is read, and written as tokens
	if !w.o.Quiet {
		bar = report.NewBar("tokenize", total)
	}
	err := w.o.Runner.Run(ctx, func(s beam.Scope, launch transforms.LaunchID) {
		transforms.Tokenize(s, launch, w.r)
	}, func(bytes, tokens int64) {
		counted = tokens
		bar.Set(bytes, tokens, math.NaN())
	})
	if err == nil { // shares of bytes were rounded, and duplicates are not written
		bar.Set(total, counted, math.NaN())
	}
	bar.Done()
	if err != nil {
		return err
	}
	return w.conclude()
}

// conclude says what was made and what of it may surprise.
func (w *workplace) conclude() error {
	set, err := tokenset.Open(w.r.Dir)
	if err != nil {
		return err
	}
	m := set.Manifest
	fmt.Fprintf(w.o.Log, "token set %s: %s\n", w.o.Output, summary(set))
	if m.Duplicates > 0 {
		fmt.Fprintf(w.o.Log, "%d documents were left out as the equals of others\n", m.Duplicates)
	}
	if m.Omitted != nil && m.Omitted.Total() > 0 {
		fmt.Fprintf(w.o.Log, "warning: %d bad documents were left out (%s); the manifest names them; the first: %s\n", m.Omitted.Total(), kinds(m.Omitted), m.Omitted.Named[0])
	}
	if w.o.Validation > 0 && set.Rows(tokenset.Validation) == 0 {
		fmt.Fprintf(w.o.Log, "warning: the validation split is empty: its documents do not fill one sequence of %d tokens; a larger --validation, or more text, would\n", w.o.SeqLen)
	}
	return nil
}

// kinds lists what was omitted, by kind.
func kinds(o *tokenset.Omitted) string {
	var list []string
	for kind, n := range o.Bad {
		list = append(list, fmt.Sprintf("%s: %d", kind, n))
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

func summary(set *tokenset.Set) string {
	var parts []string
	var dropped int64
	for _, split := range []tokenset.Split{tokenset.Train, tokenset.Validation} {
		c := set.Manifest.Splits[split]
		if c == nil {
			continue
		}
		parts = append(parts, fmt.Sprintf("%s %d sequences of %d tokens from %d documents in %d shards", split, c.Rows, set.Manifest.SeqLen, c.Documents, len(c.Shards)))
		dropped += c.TokensDropped
	}
	return strings.Join(slices.Concat(parts, []string{fmt.Sprintf("%d tokens over", dropped)}), "; ")
}
