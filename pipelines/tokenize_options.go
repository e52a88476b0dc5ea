package pipelines

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/scavenge/scavenge/transforms"
)

// Defaults of TokenizeOptions.
const (
	DefaultSeqLen      = 1024
	DefaultValidation  = 0.001
	DefaultShardTokens = 16 << 20
)

// Stdin among the inputs is what comes in on standard input.
const Stdin = "-"

// TokenizeOptions says what Tokenize makes of what. Zero values of SeqLen,
// Documents, ShardTokens, MaxDocument and OnBad stand for their defaults.
type TokenizeOptions struct {
	Inputs      []string // globs of text files, folders, Stdin; like the other paths, local, s3:// or gs://
	Tokenizer   string   // tokenizer.json
	Output      string   // folder of the token set
	SeqLen      int      // tokens in a sequence
	Documents   float64  // share of the documents that is taken, above 0 to 1
	Validation  float64  // share of those that goes to the validation split, 0 to 1
	Sequences   int64    // of the train split, drawn at random; 0: all
	Subsets     []transforms.Subset
	Deduplicate bool   // of equal documents, take one
	Clean       string // transforms.CleanOpenWebText; "": text as it is
	OnBad       string // transforms.OnBadFail (default) or OnBadSkip
	MaxDocument int    // bytes of the longest document
	Seed        int64  // of all draws
	ShardTokens int64  // for one shard, about
	GroupBytes  int64  // that a worker reads in one go; 0: transforms.DefaultGroupBytes
	RunTokens   int    // that it holds in memory; 0: transforms.DefaultRunTokens
	Overwrite   bool   // replace a token set of other inputs or options
	Runner      Runner
	Stdin       io.Reader // what the input Stdin reads; nil: os.Stdin
	Log         io.Writer // what is said in words goes here; nil: stderr
	Quiet       bool      // no progress bar
}

// Flags declares the command's flags.
func (o *TokenizeOptions) Flags(f *flag.FlagSet) {
	f.Func("input", "text: `glob` or folder, also s3://… and gs://…, repeatable or several with commas; - is standard input. What a file holds is told by its content: OpenWebText's tar and xz archives, Parquet with a column text, JSON lines of {\"text\": …}, plain text (one document a file), each also with gzip, zstd, xz or bzip2", func(s string) error {
		for glob := range strings.SplitSeq(s, ",") {
			if glob = strings.TrimSpace(glob); glob != "" {
				o.Inputs = append(o.Inputs, glob)
			}
		}
		return nil
	})
	f.StringVar(&o.Tokenizer, "tokenizer", "", "`tokenizer.json` of Hugging Face tokenizers, byte-level BPE")
	f.StringVar(&o.Output, "output", "", "`folder` of the token set, also s3://… and gs://…")
	f.IntVar(&o.SeqLen, "seq-len", DefaultSeqLen, "`tokens` in a sequence")
	f.Float64Var(&o.Documents, "documents", 1, "`share` of the documents that is taken")
	f.Float64Var(&o.Validation, "validation", DefaultValidation, "`share` of the documents that goes to the validation split")
	f.Int64Var(&o.Sequences, "sample", 0, "how many `sequences` of the train split to keep, drawn at random (default all)")
	f.Func("subset", "`name=tokens` of a random part of the train split, as distill=40M; repeatable, the smaller inside the larger. It is the set's first shards, and --dataset FOLDER#name elsewhere", func(s string) error {
		subset, err := parseSubset(s)
		o.Subsets = append(o.Subsets, subset)
		return err
	})
	f.BoolVar(&o.Deduplicate, "deduplicate", false, "of documents with equal text, take one")
	f.StringVar(&o.Clean, "clean", "", "`what` to do to the text: openwebtext (as the Hub's loader: at most one blank line in a row, no white space around the text) (default nothing)")
	f.StringVar(&o.OnBad, "on-bad-document", transforms.OnBadFail, "what to do about truncated and damaged archives, invalid UTF-8, NUL bytes, lines that are no JSON and the like: fail, or `skip` and say so in the manifest; of a damaged archive nothing is taken")
	f.IntVar(&o.MaxDocument, "max-document", transforms.DefaultMaxDocument, "`bytes` of the longest document; longer ones are bad")
	f.Int64Var(&o.Seed, "seed", 0, "`seed` of the order, the split and the samples")
	f.Int64Var(&o.ShardTokens, "shard-tokens", DefaultShardTokens, "`tokens` for one shard, about")
	f.BoolVar(&o.Overwrite, "overwrite", false, "replace what other inputs or options made of --output")
	o.Runner.Flags(f)
}

// parseSubset reads name=tokens, where tokens may end in K, M or G (thousands).
func parseSubset(s string) (transforms.Subset, error) {
	name, size, ok := strings.Cut(s, "=")
	unit := 1.0
	if n := len(size); n > 0 {
		if i := strings.IndexByte("KMG", size[n-1]); i >= 0 {
			unit, size = math.Pow(1000, float64(i+1)), size[:n-1]
		}
	}
	tokens, err := strconv.ParseFloat(size, 64)
	if !ok || name == "" || strings.ContainsAny(name, "#/\\ ") || err != nil || !(tokens > 0 && tokens*unit < 1<<53) {
		return transforms.Subset{}, errors.New("want name=tokens, as distill=40M")
	}
	return transforms.Subset{Name: name, Tokens: int64(tokens * unit)}, nil
}

func (o *TokenizeOptions) setDefaults() {
	if o.SeqLen == 0 {
		o.SeqLen = DefaultSeqLen
	}
	if o.Documents == 0 {
		o.Documents = 1
	}
	if o.ShardTokens == 0 {
		o.ShardTokens = DefaultShardTokens
	}
	if o.MaxDocument == 0 {
		o.MaxDocument = transforms.DefaultMaxDocument
	}
	if o.OnBad == "" {
		o.OnBad = transforms.OnBadFail
	}
	if o.Log == nil {
		o.Log = os.Stderr
	}
	if o.Stdin == nil {
		o.Stdin = os.Stdin
	}
	o.Subsets = slices.Clone(o.Subsets)
	slices.SortFunc(o.Subsets, func(a, b transforms.Subset) int {
		if a.Tokens != b.Tokens {
			return int(max(-1, min(1, a.Tokens-b.Tokens)))
		}
		return strings.Compare(a.Name, b.Name)
	})
}

// maxMaxDocument bounds --max-document: one document is in memory as text and
// as tokens.
const maxMaxDocument = 1 << 30

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
	case !(o.Documents > 0 && o.Documents <= 1):
		return fmt.Errorf("--documents %g: want a share above 0, at most 1", o.Documents)
	case !(o.Validation >= 0 && o.Validation < 1):
		return fmt.Errorf("--validation %g: want a share from 0 to below 1", o.Validation)
	case o.Sequences < 0:
		return fmt.Errorf("--sample %d: want a number of sequences", o.Sequences)
	case o.Clean != "" && o.Clean != transforms.CleanOpenWebText:
		return fmt.Errorf("--clean %q: want %s", o.Clean, transforms.CleanOpenWebText)
	case o.OnBad != transforms.OnBadFail && o.OnBad != transforms.OnBadSkip:
		return fmt.Errorf("--on-bad-document %q: want %s or %s", o.OnBad, transforms.OnBadFail, transforms.OnBadSkip)
	case o.MaxDocument < 1 || o.MaxDocument > maxMaxDocument:
		return fmt.Errorf("--max-document %d: want 1 to %d bytes", o.MaxDocument, maxMaxDocument)
	case o.ShardTokens < int64(o.SeqLen):
		return fmt.Errorf("--shard-tokens %d: want at least one sequence of %d", o.ShardTokens, o.SeqLen)
	}
	seen := map[string]bool{}
	for _, s := range o.Subsets {
		if s.Name == "" || s.Tokens < 1 || seen[s.Name] {
			return fmt.Errorf("--subset %s=%d: want names that differ, and at least one token", s.Name, s.Tokens)
		}
		seen[s.Name] = true
	}
	if !o.Runner.local() {
		for _, path := range append(o.files(), o.Tokenizer, o.Output) {
			if !strings.HasPrefix(path, "gs://") {
				return fmt.Errorf("--runner %s: its workers do not see %s: want paths in gs://", o.Runner.Name, path)
			}
		}
	}
	return o.Runner.Validate()
}
