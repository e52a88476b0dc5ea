package pipelines

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/bits"
	"os"

	"github.com/scavenge/scavenge/schemas/durable"
	"github.com/scavenge/scavenge/schemas/tokenizer"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// InspectOptions says what Inspect looks at.
type InspectOptions struct {
	Dataset   string // folder of a token set, or a subset of one, FOLDER#name
	Tokenizer string // tokenizer.json; "": tokens are shown as numbers
	Rows      int    // sequences of each split that are shown
	Markdown  string // file for the card as a dataset card; "": none
	Out       io.Writer
}

// Flags declares the command's flags.
func (o *InspectOptions) Flags(f *flag.FlagSet) {
	f.StringVar(&o.Dataset, "dataset", "", "`folder` of a token set, also s3://… and gs://…, or FOLDER#subset")
	f.StringVar(&o.Tokenizer, "tokenizer", "", "the `tokenizer.json` that made it, to show text (default tokens are shown as numbers)")
	f.IntVar(&o.Rows, "rows", 2, "`sequences` of each split to show")
	f.StringVar(&o.Markdown, "markdown", "", "`file` for the card as Markdown, as the Hub shows it beside a data set")
}

// Inspect prints a token set's card. It reads every sequence: a shard that is
// not as its manifest says, or that holds an id outside the vocabulary, is an
// error, and then no card is written.
func Inspect(ctx context.Context, o InspectOptions) error {
	switch {
	case o.Dataset == "":
		return errors.New("--dataset is not set: name the folder of a token set")
	case o.Rows < 0:
		return fmt.Errorf("--rows %d: want 0 or more", o.Rows)
	}
	if o.Out == nil {
		o.Out = os.Stdout
	}
	set, err := tokenset.Open(o.Dataset)
	if err != nil {
		return err
	}
	var tok *tokenizer.Tokenizer
	if o.Tokenizer != "" {
		if tok, err = tokenizer.Load(o.Tokenizer); err != nil {
			return err
		}
		if want := set.Manifest.Tokenizer.SHA256; tok.Fingerprint() != want {
			return fmt.Errorf("tokenizer %s: it did not make this token set: its sha256 is %s, that was %s", o.Tokenizer, tok.Fingerprint(), want)
		}
	}
	c := &card{set: set, name: o.Dataset, tok: tok, rows: o.Rows}
	for _, split := range []tokenset.Split{tokenset.Train, tokenset.Validation} {
		if err := c.read(ctx, split); err != nil {
			return err
		}
	}
	if o.Markdown != "" {
		err := durable.WriteFile(o.Markdown, func(w io.Writer) error {
			c.frontMatter(w)
			c.write(w)
			return nil
		})
		if err != nil {
			return fmt.Errorf("card: %w", err)
		}
	}
	c.write(o.Out)
	return nil
}

// A card is what is said of a token set.
type card struct {
	set   *tokenset.Set
	name  string
	tok   *tokenizer.Tokenizer
	rows  int
	stats []*statistics
}

// statistics are a split's.
type statistics struct {
	split  tokenset.Split
	rows   int64
	counts []int64   // by token
	parts  [64]int64 // of documents, by the bits of their length in tokens
	shown  [][]int32
}

// read reads a split from end to end.
func (c *card) read(ctx context.Context, split tokenset.Split) error {
	if c.set.Rows(split) == 0 {
		return nil
	}
	m := c.set.Manifest
	s := &statistics{split: split, counts: make([]int64, m.Tokenizer.Vocab)}
	c.stats = append(c.stats, s)
	for i := range m.Splits[split].Shards {
		if err := ctx.Err(); err != nil {
			return ErrInterrupted
		}
		if err := c.set.Verify(split, i); err != nil {
			return err
		}
	}
	for _, id := range c.set.IDs(split) {
		if err := ctx.Err(); err != nil {
			return ErrInterrupted
		}
		tokens, err := c.set.Sequence(split, id)
		if err != nil {
			return err
		}
		if s.rows++; len(s.shown) < c.rows {
			s.shown = append(s.shown, append([]int32(nil), tokens...))
		}
		part := 0
		for _, t := range tokens {
			s.counts[t]++
			if part++; t == m.Tokenizer.EndOfText {
				s.parts[bits.Len(uint(part))]++
				part = 0
			}
		}
		if part > 0 {
			s.parts[bits.Len(uint(part))]++
		}
	}
	return nil
}
