package pipelines

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/apache/beam/sdks/v2/go/pkg/beam"

	"github.com/scavenge/scavenge/schemas/durable"
	"github.com/scavenge/scavenge/schemas/report"
	"github.com/scavenge/scavenge/schemas/tokenizer"
	"github.com/scavenge/scavenge/schemas/tokenset"
	"github.com/scavenge/scavenge/transforms"
)

// Defaults of TokenizeOptions.
const (
	DefaultSeqLen     = 1024
	DefaultValidation = 0.001
	DefaultShardBytes = 64 << 20
)

// TokenizeOptions says what Tokenize makes of what. Zero values of SeqLen,
// Sample and ShardBytes stand for their defaults.
type TokenizeOptions struct {
	Inputs     []string // globs of text files
	Tokenizer  string   // tokenizer.json
	Output     string   // folder of the token set
	SeqLen     int      // tokens in a sequence
	Validation float64  // share of the documents that goes to the validation split, 0 to 1
	Sample     float64  // share of the documents that is taken, above 0 to 1
	Seed       int64    // of both draws
	ShardBytes int64    // input text for one shard, bytes
	Runner     Runner
	Log        io.Writer // what is said in words goes here; nil: stderr
	Quiet      bool      // no progress bar
}

// Flags declares the command's flags.
func (o *TokenizeOptions) Flags(f *flag.FlagSet) {
	f.Func("input", "text files: `glob`, repeatable or several with commas; .txt is one document a file, .jsonl one {\"text\": …} a line, also with gzip or zstd", func(s string) error {
		for glob := range strings.SplitSeq(s, ",") {
			if glob = strings.TrimSpace(glob); glob != "" {
				o.Inputs = append(o.Inputs, glob)
			}
		}
		return nil
	})
	f.StringVar(&o.Tokenizer, "tokenizer", "", "`tokenizer.json` of Hugging Face tokenizers, byte-level BPE")
	f.StringVar(&o.Output, "output", "", "`folder` of the token set")
	f.IntVar(&o.SeqLen, "seq-len", DefaultSeqLen, "`tokens` in a sequence")
	f.Float64Var(&o.Validation, "validation", DefaultValidation, "`share` of the documents that goes to the validation split")
	f.Float64Var(&o.Sample, "sample", 1, "`share` of the documents that is taken")
	f.Int64Var(&o.Seed, "seed", 0, "`seed` of the split and of the sample")
	f.Int64Var(&o.ShardBytes, "shard-bytes", DefaultShardBytes, "`bytes` of text for one shard")
	o.Runner.Flags(f)
}

func (o *TokenizeOptions) setDefaults() {
	if o.SeqLen == 0 {
		o.SeqLen = DefaultSeqLen
	}
	if o.Sample == 0 {
		o.Sample = 1
	}
	if o.ShardBytes == 0 {
		o.ShardBytes = DefaultShardBytes
	}
	if o.Log == nil {
		o.Log = os.Stderr
	}
}

// Validate says what of the options cannot be.
func (o TokenizeOptions) Validate() error {
	o.setDefaults()
	switch {
	case len(o.Inputs) == 0:
		return errors.New("--input is not set: name the text files")
	case o.Tokenizer == "":
		return errors.New("--tokenizer is not set: name a tokenizer.json")
	case o.Output == "":
		return errors.New("--output is not set: name a folder for the token set")
	case o.SeqLen < 2 || o.SeqLen > 1<<20:
		return fmt.Errorf("--seq-len %d: want 2 to %d tokens", o.SeqLen, 1<<20)
	case !(o.Validation >= 0 && o.Validation < 1):
		return fmt.Errorf("--validation %g: want a share from 0 to below 1", o.Validation)
	case !(o.Sample > 0 && o.Sample <= 1):
		return fmt.Errorf("--sample %g: want a share above 0, at most 1", o.Sample)
	case o.ShardBytes < 1<<10:
		return fmt.Errorf("--shard-bytes %d: want at least %d", o.ShardBytes, 1<<10)
	}
	return o.Runner.Validate()
}

// Tokenize makes a token set of text files: documents, each ended by
// <|endoftext|>, one after the other and cut into sequences of exactly SeqLen
// tokens. What of a shard's tokens does not fill the last sequence is dropped
// and counted. The same input and options give the same bytes, whatever ran in
// parallel. A run that was cut short goes on where it was; a whole token set
// of the same options is left as it is, and one of other options refused.
func Tokenize(ctx context.Context, o TokenizeOptions) error {
	if err := o.Validate(); err != nil {
		return err
	}
	o.setDefaults()
	r, err := o.recipe()
	if err != nil {
		return err
	}
	groups, err := transforms.Plan(o.Inputs, o.ShardBytes)
	if err != nil {
		return err
	}
	if there, err := o.alreadyThere(r, groups); err != nil || there {
		return err
	}
	if err := os.MkdirAll(r.Dir, 0o777); err != nil {
		return fmt.Errorf("token set: %w", err)
	}
	if err := durable.Sweep(r.Dir); err != nil {
		return fmt.Errorf("token set %s: %w", o.Output, err)
	}
	if err := r.RemoveOthers(len(groups)); err != nil {
		return err
	}
	var total int64
	for _, g := range groups {
		total += g.Bytes()
	}
	var bar *report.Bar
	if !o.Quiet {
		bar = report.NewBar("tokenize", total)
	}
	err = o.Runner.Run(ctx, func(s beam.Scope, launch transforms.LaunchID) {
		transforms.Tokenize(s, launch, r, groups)
	}, func(bytes, tokens int64) { bar.Set(bytes, tokens, math.NaN()) })
	bar.Done()
	if err != nil {
		os.Remove(r.Dir) // only a folder that nothing came into
		return err
	}
	return o.conclude()
}

// recipe checks the tokenizer and makes paths absolute.
func (o TokenizeOptions) recipe() (r transforms.Recipe, err error) {
	t, err := tokenizer.Load(o.Tokenizer)
	if err != nil {
		return r, err
	}
	if _, ok := t.EndOfText(); !ok {
		return r, fmt.Errorf("tokenizer %s: it has no token %s to end documents with", o.Tokenizer, tokenizer.EndOfText)
	}
	r = transforms.Recipe{Fingerprint: t.Fingerprint(), SeqLen: o.SeqLen, Seed: o.Seed, Sample: o.Sample, Validation: o.Validation}
	if r.Tokenizer, err = filepath.Abs(o.Tokenizer); err != nil {
		return r, err
	}
	r.Dir, err = filepath.Abs(o.Output)
	return r, err
}

// alreadyThere says that the output is a whole token set of these options. One
// of other options is an error: it is not replaced.
func (o TokenizeOptions) alreadyThere(r transforms.Recipe, groups []transforms.Group) (bool, error) {
	if st, err := os.Stat(r.Dir); err == nil && !st.IsDir() {
		return false, fmt.Errorf("token set %s: a file of this name is there", o.Output)
	}
	if _, err := os.Stat(filepath.Join(r.Dir, tokenset.ManifestFile)); errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	set, err := tokenset.Open(o.Output)
	if err != nil {
		return false, err
	}
	if what := difference(set.Manifest, r, groups); what != "" {
		return false, fmt.Errorf("token set %s: already there, with other %s: name another --output, or remove it", o.Output, what)
	}
	fmt.Fprintf(o.Log, "token set %s: already there: %s\n", o.Output, summary(set))
	return true, nil
}

// difference names the first setting in which a manifest is not what a run of
// the recipe would write.
func difference(m *tokenset.Manifest, r transforms.Recipe, groups []transforms.Group) string {
	switch {
	case m.Tokenizer.SHA256 != r.Fingerprint:
		return "tokenizer"
	case m.SeqLen != r.SeqLen:
		return fmt.Sprintf("--seq-len, %d", m.SeqLen)
	case m.Seed != r.Seed:
		return fmt.Sprintf("--seed, %d", m.Seed)
	case m.Sample != r.Sample:
		return fmt.Sprintf("--sample, %g", m.Sample)
	case m.Validation != r.Validation:
		return fmt.Sprintf("--validation, %g", m.Validation)
	}
	if n := len(m.Splits[tokenset.Train].Shards); n != len(groups) {
		return fmt.Sprintf("input or --shard-bytes: %d shards, not %d", n, len(groups))
	}
	key := func(name string, bytes int64) string { return fmt.Sprint(filepath.Base(name), " of ", bytes, " bytes") }
	var want []string
	for _, g := range groups {
		for _, p := range g.Pieces {
			if p.Start == 0 {
				want = append(want, key(p.Name, p.Size))
			}
		}
	}
	for i, in := range m.Inputs {
		if have := key(in.Name, in.Bytes); i >= len(want) || have != want[i] {
			return "input: " + have
		}
	}
	if len(want) > len(m.Inputs) {
		return "input: without " + want[len(m.Inputs)]
	}
	return ""
}

// conclude says what was made and what of it may surprise.
func (o TokenizeOptions) conclude() error {
	set, err := tokenset.Open(o.Output)
	if err != nil {
		return err
	}
	fmt.Fprintf(o.Log, "token set %s: %s\n", o.Output, summary(set))
	if n := set.Manifest.Replaced; n > 0 {
		fmt.Fprintf(o.Log, "warning: %d places in the input are not valid UTF-8; each was read as U+FFFD\n", n)
	}
	if o.Validation > 0 && set.Rows(tokenset.Validation) == 0 {
		fmt.Fprintf(o.Log, "warning: the validation split is empty: no shard has %d tokens for it; a larger --validation, or more text, would fill it\n", o.SeqLen)
	}
	return nil
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
