package pipelines

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/scavenge/scavenge/schemas/tokenset"
	"github.com/scavenge/scavenge/transforms"
)

// sequences lists a split's sequences, sorted.
func sequences(t *testing.T, dir string, split tokenset.Split) []string {
	t.Helper()
	set, err := tokenset.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, id := range set.IDs(split) {
		tokens, err := set.Sequence(split, id)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprint(tokens))
	}
	slices.Sort(all)
	return all
}

// within says that a, sorted, is part of b, sorted.
func within(a, b []string) bool {
	for _, s := range a {
		i, ok := slices.BinarySearch(b, s)
		if !ok {
			return false
		}
		b = b[i+1:]
	}
	return true
}

// A sample is exactly as large as was asked for, and part of the whole; a
// subset is part of it and of each larger one, and is the same whatever else
// is asked for.
func TestSamplesAndSubsetsAreNested(t *testing.T) {
	c := newCorpus(t)
	all := c.options("all")
	tokenize(t, all)
	whole := sequences(t, all.Output, tokenset.Train)
	if len(whole) < 90 {
		t.Fatalf("%d sequences: too few for this test to mean anything", len(whole))
	}
	small, large := transforms.Subset{Name: "small", Tokens: 81}, transforms.Subset{Name: "large", Tokens: 640} // 6 and 40 sequences of 16
	o := c.options("sampled")
	o.Sequences, o.Subsets = 70, []transforms.Subset{large, small}
	set := tokenize(t, o)
	if m := set.Manifest; m.Sequences != 70 || set.Rows(tokenset.Train) != 70 || len(m.Subsets) != 2 || m.Subsets[0].Name != "small" || m.Subsets[0].Rows != 6 || m.Subsets[1].Rows != 40 {
		t.Errorf("%d sequences, subsets %+v", set.Rows(tokenset.Train), m.Subsets)
	}
	sample := sequences(t, o.Output, tokenset.Train)
	inner, outer := sequences(t, o.Output+"#small", tokenset.Train), sequences(t, o.Output+"#large", tokenset.Train)
	if len(sample) != 70 || len(outer) != 40 || len(inner) != 6 || !within(sample, whole) || !within(outer, sample) || !within(inner, outer) {
		t.Errorf("%d, %d and %d sequences, not each within the one before", len(sample), len(outer), len(inner))
	}
	if !slices.Equal(sequences(t, o.Output, tokenset.Validation), sequences(t, all.Output, tokenset.Validation)) {
		t.Error("a sample of the train split changes the validation split")
	}

	again := c.options("again")
	again.Subsets, again.ShardTokens = []transforms.Subset{small}, 64
	tokenize(t, again)
	if !slices.Equal(sequences(t, again.Output+"#small", tokenset.Train), inner) {
		t.Error("the same subset without a sample and in other shards is another")
	}
	if !slices.Equal(sequences(t, again.Output, tokenset.Train), whole) {
		t.Error("a set with a subset has other sequences")
	}
	other := c.options("other")
	other.Sequences, other.Seed = 70, 2
	tokenize(t, other)
	if slices.Equal(sequences(t, other.Output, tokenset.Train), sample) {
		t.Error("another seed gives the same sample")
	}

	for want, change := range map[string]func(o *TokenizeOptions){
		"--sample 1000000":            func(o *TokenizeOptions) { o.Sequences = 1e6 },
		"--subset b: 1000 tokens are": func(o *TokenizeOptions) { o.Sequences, o.Subsets = 50, []transforms.Subset{{Name: "b", Tokens: 1000}} },
	} {
		o := c.options("too large")
		o.Overwrite = true
		change(&o)
		if err := Tokenize(context.Background(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestEqualDocumentsAreTakenOnceIfAsked(t *testing.T) {
	c := newCorpus(t)
	for i := range 40 {
		c.put(t, fmt.Sprintf("again%d.txt", i), c.docs[i/3])
	}
	o := c.options("with")
	with := tokenize(t, o)
	o = c.options("without")
	o.Deduplicate = true
	without := tokenize(t, o)
	docs := func(s *tokenset.Set) int64 {
		return s.Manifest.Splits[tokenset.Train].Documents + s.Manifest.Splits[tokenset.Validation].Documents
	}
	if docs(with) != 100 || docs(without) != 60 || without.Manifest.Duplicates != 40 || with.Manifest.Duplicates != 0 {
		t.Errorf("%d documents and %d without duplicates, of which there were %d", docs(with), docs(without), without.Manifest.Duplicates)
	}
	clean := c.options("clean")
	clean.Inputs = []string{filepath.Join(c.dir, "a.jsonl"), filepath.Join(c.dir, "b*.txt")}
	tokenize(t, clean)
	if !slices.Equal(sequences(t, clean.Output, tokenset.Train), sequences(t, o.Output, tokenset.Train)) {
		t.Error("without duplicates it is not the set of the documents, each once")
	}
}

// What is in the folder is not mixed with what another command would make.
func TestChangedInputAndOptionsAreRefusedUnlessOverwritten(t *testing.T) {
	c := newCorpus(t)
	o := c.options("set")
	tokenize(t, o)
	before := files(t, o.Output)
	later := time.Now().Add(time.Hour)
	touch := func(name string) {
		if err := os.Chtimes(filepath.Join(c.dir, name), later, later); err != nil {
			t.Fatal(err)
		}
	}
	touch("b3.txt") // written to again with the same content
	tokenize(t, o)
	sameFiles(t, files(t, o.Output), before)
	c.put(t, "b3.txt", strings.Repeat("x", len(c.docs[53]))) // of the same size
	touch("b3.txt")
	if err := Tokenize(context.Background(), o); err == nil || !strings.Contains(err.Error(), "b3.txt was changed") {
		t.Fatalf("a changed input: %v", err)
	}
	sameFiles(t, files(t, o.Output), before)
	o.Overwrite = true
	set := tokenize(t, o)
	fresh := c.options("fresh")
	if tokenize(t, fresh).Fingerprint() != set.Fingerprint() {
		t.Error("an overwritten set is not what a fresh one is")
	}
	o.Seed, o.ShardTokens = 5, 2048
	tokenize(t, o)
	if n := len(files(t, o.Output)); n > 6 {
		t.Errorf("%d files: shards of the set that was there before are left", n)
	}

	// An unfinished one, too.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cut := c.options("cut")
	cutAfterScan(t, cut, ctx, cancel)
	cut.SeqLen = 32
	if err := Tokenize(context.Background(), cut); err == nil || !strings.Contains(err.Error(), "other --seq-len, 16") {
		t.Errorf("another --seq-len for an unfinished set: %v", err)
	}
	cut.SeqLen = 16
	c.put(t, "b4.txt", "changed")
	if err := Tokenize(context.Background(), cut); err == nil || !strings.Contains(err.Error(), "b4.txt is new or was changed") {
		t.Errorf("a changed input of an unfinished set: %v", err)
	}
	cut.Overwrite = true
	if tokenize(t, cut).Manifest.Corpus == set.Manifest.Corpus {
		t.Error("the changed input does not show")
	}
}

func TestStandardInputIsReadAgain(t *testing.T) {
	c := newCorpus(t)
	lines := mustRead(t, filepath.Join(c.dir, "a.jsonl"))
	o := c.options("set")
	o.Inputs, o.Stdin = []string{Stdin}, bytes.NewReader(lines)
	set := tokenize(t, o)
	if in := set.Manifest.Inputs; len(in) != 1 || in[0].Name != "standard input" || in[0].Bytes != int64(len(lines)) {
		t.Errorf("%+v", in)
	}
	log := new(bytes.Buffer)
	o.Stdin, o.Log = bytes.NewReader(lines), log
	if tokenize(t, o); !strings.Contains(log.String(), "already there") {
		t.Errorf("it says %q", log)
	}
	o.Stdin = strings.NewReader(strings.ReplaceAll(string(lines), "fox", "cat"))
	if err := Tokenize(context.Background(), o); err == nil || !strings.Contains(err.Error(), "input") {
		t.Errorf("other input: %v", err)
	}
	cut := c.options("cut")
	cut.Inputs, cut.Stdin = o.Inputs, bytes.NewReader(lines)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cutAfterScan(t, cut, ctx, cancel)
	cut.Stdin = bytes.NewReader(lines)
	if tokenize(t, cut).Fingerprint() != set.Fingerprint() {
		t.Error("going on from standard input gives another set")
	}
}
