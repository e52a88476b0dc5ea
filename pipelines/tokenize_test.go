package pipelines

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/scavenge/scavenge/schemas/durable"
	"github.com/scavenge/scavenge/schemas/tokenizer"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// corpus is a folder with a tokenizer and 60 documents in three forms.
type corpus struct {
	dir  string
	docs []string
	tok  *tokenizer.Tokenizer
}

func newCorpus(t *testing.T) corpus {
	t.Helper()
	c := corpus{dir: t.TempDir()}
	for i := range 60 {
		c.docs = append(c.docs, fmt.Sprint("Document ", i, ": ", strings.Repeat("the quick brown fox ", 1+i*7%11), strings.Repeat("été\n", i%5)))
	}
	tok, err := tokenizer.Train(slices.Values(c.docs), tokenizer.TrainOptions{Vocab: 300})
	if err != nil {
		t.Fatal(err)
	}
	c.tok = tok
	if err := tok.Save(c.tokenizer()); err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	for _, doc := range c.docs[:50] {
		line, _ := json.Marshal(map[string]string{"text": doc})
		lines.Write(append(line, '\n'))
	}
	c.put(t, "a.jsonl", lines.String())
	for i, doc := range c.docs[50:] {
		c.put(t, fmt.Sprintf("b%d.txt", i), doc)
	}
	return c
}

func (c corpus) put(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

func (c corpus) tokenizer() string { return filepath.Join(c.dir, "tokenizer.json") }

// options make five shards of the corpus.
func (c corpus) options(output string) TokenizeOptions {
	return TokenizeOptions{
		Inputs: []string{filepath.Join(c.dir, "*.jsonl"), filepath.Join(c.dir, "*.txt")}, Tokenizer: c.tokenizer(), Output: filepath.Join(c.dir, output),
		SeqLen: 16, Validation: 0.2, Seed: 1, ShardBytes: 2048, Log: new(bytes.Buffer), Quiet: true,
	}
}

// files is a folder's content by name.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range list {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(data)
	}
	return all
}

func sameFiles(t *testing.T, got, want map[string]string) {
	t.Helper()
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s differs: %d bytes and %d", name, len(got[name]), len(want[name]))
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d files, want %d", len(got), len(want))
	}
}

func tokenize(t *testing.T, o TokenizeOptions) *tokenset.Set {
	t.Helper()
	if err := Tokenize(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	set, err := tokenset.Open(o.Output)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// The sequences of a shard are its documents, each once and whole but for the
// tail, with <|endoftext|> after each.
func TestTokenSetHoldsEveryDocumentInItsSplit(t *testing.T) {
	c := newCorpus(t)
	o := c.options("set")
	o.ShardBytes = 1 << 20 // one shard
	set := tokenize(t, o)
	end, _ := c.tok.EndOfText()
	left := map[string]bool{}
	for _, doc := range c.docs {
		left[doc] = true
	}
	var documents, tokens int64
	for split, counts := range set.Manifest.Splits {
		var ids []int32
		for _, id := range set.IDs(split) {
			sequence, err := set.Sequence(split, id)
			if err != nil {
				t.Fatal(err)
			}
			if len(sequence) != o.SeqLen {
				t.Fatalf("a sequence of %d tokens", len(sequence))
			}
			ids = append(ids, sequence...)
		}
		for at := slices.Index(ids, end); at >= 0; at = slices.Index(ids, end) {
			text, err := c.tok.Decode(ids[:at])
			if err != nil {
				t.Fatal(err)
			}
			if !left[text] {
				t.Errorf("%s: %.60q is no document, or twice", split, text)
			}
			delete(left, text)
			ids = ids[at+1:]
		}
		documents += counts.Documents
		tokens += counts.Tokens + counts.TokensDropped
		if counts.TokensDropped >= int64(o.SeqLen) || counts.Rows == 0 || counts.Documents < 3 {
			t.Errorf("%s: %+v", split, counts)
		}
	}
	if len(left) > 2 { // at most the cut tail of each split
		t.Errorf("%d documents are missing", len(left))
	}
	want := int64(0)
	for _, doc := range c.docs {
		want += int64(len(c.tok.Encode(doc))) + 1
	}
	if documents != 60 || tokens != want {
		t.Errorf("%d documents and %d tokens, want 60 and %d", documents, tokens, want)
	}
	if v := set.Manifest.Splits[tokenset.Validation].Documents; v > 25 {
		t.Errorf("%d of 60 documents for validation at a share of 0.2", v)
	}
}

func TestRerunIsByteIdentical(t *testing.T) {
	c := newCorpus(t)
	first := tokenize(t, c.options("first"))
	second := c.options("second")
	second.Inputs = []string{filepath.Join(c.dir, "b*.txt"), filepath.Join(c.dir, "a.jsonl")} // given otherwise
	tokenize(t, second)
	if n := len(first.Manifest.Splits[tokenset.Train].Shards); n < 4 {
		t.Fatalf("%d shards: too few for this test to mean anything", n)
	}
	sameFiles(t, files(t, second.Output), files(t, filepath.Join(c.dir, "first")))
}

func TestAWholeSetIsLeftAndAnotherRefused(t *testing.T) {
	c := newCorpus(t)
	o := c.options("set")
	tokenize(t, o)
	before := files(t, o.Output)
	log := new(bytes.Buffer)
	o.Log = log
	tokenize(t, o)
	if !strings.Contains(log.String(), "already there") {
		t.Errorf("it says %q", log)
	}
	for what, change := range map[string]func(*TokenizeOptions){
		"--seq-len":    func(o *TokenizeOptions) { o.SeqLen = 32 },
		"--seed":       func(o *TokenizeOptions) { o.Seed = 9 },
		"--sample":     func(o *TokenizeOptions) { o.Sample = 0.5 },
		"--validation": func(o *TokenizeOptions) { o.Validation = 0.1 },
		"shards":       func(o *TokenizeOptions) { o.ShardBytes = 1 << 20 },
		"input":        func(o *TokenizeOptions) { o.Inputs = []string{c.put(t, "new.txt", "other text")} },
		"tokenizer": func(o *TokenizeOptions) {
			tok, err := tokenizer.Train(slices.Values(c.docs), tokenizer.TrainOptions{Vocab: 270})
			if err == nil {
				o.Tokenizer = filepath.Join(c.dir, "other.json")
				err = tok.Save(o.Tokenizer)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
	} {
		other := c.options("set")
		change(&other)
		if err := Tokenize(context.Background(), other); err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "other") {
			t.Errorf("%s: %v", what, err)
		}
	}
	sameFiles(t, files(t, o.Output), before)
}

// A run that is cut short leaves finished shards, no manifest and no
// temporaries; the next makes only the rest and ends in the same bytes.
func TestResumeAfterInterruptIsByteIdentical(t *testing.T) {
	c := newCorpus(t)
	tokenize(t, c.options("whole"))
	want := files(t, filepath.Join(c.dir, "whole"))

	o := c.options("cut")
	ctx, cancel := context.WithCancel(context.Background())
	var renamed atomic.Int32
	durable.Fault = func(step, path string) {
		if step == "rename" && renamed.Add(1) == 3 {
			cancel()
		}
	}
	err := Tokenize(ctx, o)
	if !errors.Is(err, ErrInterrupted) {
		t.Fatalf("an interrupted run returns %v", err)
	}
	left := files(t, o.Output)
	if _, ok := left[tokenset.ManifestFile]; ok || len(left) < 2 || len(left) >= len(want) {
		t.Fatalf("the interrupted run left %d files of %d", len(left), len(want))
	}
	for name := range left {
		if left[name] != want[name] {
			t.Errorf("the interrupted run left %s, which is no whole shard", name)
		}
	}

	// What a killed process leaves: a temporary, and a damaged shard.
	os.WriteFile(filepath.Join(o.Output, ".train-00001-of-00005.parquet.tmp-ABCDEFGHIJKL"), []byte("part"), 0o666)
	damaged := filepath.Join(o.Output, "train-00000-of-00005.parquet")
	os.WriteFile(damaged, []byte("PAR1 not whole"), 0o666)
	durable.Fault = func(step, path string) {
		if step == "rename" {
			renamed.Add(1)
		}
	}
	renamed.Store(0)
	defer func() { durable.Fault = nil }()
	tokenize(t, o)
	sameFiles(t, files(t, o.Output), want)
	if n := int(renamed.Load()); n > len(want)-len(left)+3 {
		t.Errorf("the second run wrote %d files, %d of %d were there", n, len(left), len(want))
	}
}

func TestSampleTakesAShareAndTheSameOne(t *testing.T) {
	c := newCorpus(t)
	o := c.options("set")
	o.Sample, o.Validation, o.ShardBytes = 0.5, 0, 1<<20
	set := tokenize(t, o)
	n := set.Manifest.Splits[tokenset.Train].Documents
	if n < 18 || n > 42 {
		t.Errorf("%d of 60 documents at a share of a half", n)
	}
	if v := set.Manifest.Splits[tokenset.Validation]; v.Rows != 0 || len(v.Shards) != 0 {
		t.Errorf("no validation was asked for, there is %+v", v)
	}
}

func TestBadInputIsOneClearLineAndLeavesNothing(t *testing.T) {
	c := newCorpus(t)
	noEnd := strings.ReplaceAll(string(mustRead(t, c.tokenizer())), tokenizer.EndOfText, "<|end|>")
	for _, x := range []struct {
		name   string
		change func(o *TokenizeOptions)
		want   string
	}{
		{"no match", func(o *TokenizeOptions) { o.Inputs = []string{filepath.Join(c.dir, "*.nothing")} }, "no such file"},
		{"empty corpus", func(o *TokenizeOptions) { o.Inputs = []string{c.put(t, "empty.txt", "")} }, "no text"},
		{"too small", func(o *TokenizeOptions) { o.Inputs = []string{c.put(t, "small.txt", "few words")}; o.Validation = 0 }, "less than one sequence of 16"},
		{"broken line", func(o *TokenizeOptions) { o.Inputs = []string{c.put(t, "broken.jsonl", "{\"text\": \"a\"}\n{]")} }, "broken.jsonl: line 2"},
		{"no tokenizer", func(o *TokenizeOptions) { o.Tokenizer = filepath.Join(c.dir, "none.json") }, "none.json"},
		{"no end of text", func(o *TokenizeOptions) { o.Tokenizer = c.put(t, "no end.json", noEnd) }, tokenizer.EndOfText},
		{"no input", func(o *TokenizeOptions) { o.Inputs = nil }, "--input"},
		{"seq-len", func(o *TokenizeOptions) { o.SeqLen = -1 }, "--seq-len -1"},
		{"validation", func(o *TokenizeOptions) { o.Validation = 1 }, "--validation 1"},
		{"sample", func(o *TokenizeOptions) { o.Sample = 1.5 }, "--sample 1.5"},
		{"runner", func(o *TokenizeOptions) { o.Runner.Name = "flink" }, `--runner "flink"`},
		{"output is a file", func(o *TokenizeOptions) { o.Output = c.put(t, "file", "") }, "a file of this name"},
	} {
		o := c.options("set")
		x.change(&o)
		err := Tokenize(context.Background(), o)
		if err == nil || !strings.Contains(err.Error(), x.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; want a line with %q", x.name, err, x.want)
		}
		if _, err := os.Stat(filepath.Join(c.dir, "set")); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s: it left a folder", x.name)
		}
	}
}

func TestWarnings(t *testing.T) {
	c := newCorpus(t)
	o := c.options("set")
	log := new(bytes.Buffer)
	o.Log, o.Validation = log, 1e-9
	o.Inputs = append(o.Inputs, c.put(t, "latin1.txt", "caf\xe9 cr\xe8me"))
	tokenize(t, o)
	for _, want := range []string{"2 places in the input are not valid UTF-8", "the validation split is empty"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %q in %q", want, log)
		}
	}
}

// A run with other shards leaves none of an unfinished run's; files that are
// not ours are not touched.
func TestShardsOfAnotherUnfinishedRunAreRemoved(t *testing.T) {
	c := newCorpus(t)
	o := c.options("set")
	tokenize(t, o)
	if err := os.Remove(filepath.Join(o.Output, tokenset.ManifestFile)); err != nil {
		t.Fatal(err)
	}
	o.ShardBytes = 1 << 20
	tokenize(t, o)
	if all := files(t, o.Output); len(all) != 3 {
		t.Errorf("%d files, want a shard a split and the manifest", len(all))
	}
	foreign := c.options("foreign")
	os.Mkdir(foreign.Output, 0o777)
	name := filepath.Join(foreign.Output, "train-00000-of-00077.parquet")
	os.WriteFile(name, []byte("mine"), 0o666)
	if err := Tokenize(context.Background(), foreign); err == nil || !strings.Contains(err.Error(), "train-00000-of-00077.parquet") {
		t.Errorf("a foreign file: %v", err)
	}
	if string(mustRead(t, name)) != "mine" {
		t.Error("a foreign file was changed")
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
