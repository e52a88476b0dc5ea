package pipelines

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/scavenge/scavenge/schemas/durable"
	"github.com/scavenge/scavenge/schemas/store"
	"github.com/scavenge/scavenge/schemas/store/storetest"
	"github.com/scavenge/scavenge/schemas/tokenizer"
	"github.com/scavenge/scavenge/schemas/tokenset"
	"github.com/scavenge/scavenge/transforms"
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

// options make several shards of the corpus.
func (c corpus) options(output string) TokenizeOptions {
	return TokenizeOptions{
		Inputs: []string{filepath.Join(c.dir, "*.jsonl"), filepath.Join(c.dir, "*.txt")}, Tokenizer: c.tokenizer(), Output: filepath.Join(c.dir, output),
		SeqLen: 16, Validation: 0.2, Seed: 1, ShardTokens: 512, GroupBytes: 2048, RunTokens: 300, Log: new(bytes.Buffer), Quiet: true,
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
		if e.IsDir() {
			continue
		}
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
	o.ShardTokens = 1 << 20 // one shard
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
		"--seq-len":      func(o *TokenizeOptions) { o.SeqLen = 32 },
		"--seed":         func(o *TokenizeOptions) { o.Seed = 9 },
		"--documents":    func(o *TokenizeOptions) { o.Documents = 0.5 },
		"--validation":   func(o *TokenizeOptions) { o.Validation = 0.1 },
		"--shard-tokens": func(o *TokenizeOptions) { o.ShardTokens = 1 << 20 },
		"input":          func(o *TokenizeOptions) { o.Inputs = []string{c.put(t, "new.txt", "other text")} },
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
		if err := Tokenize(context.Background(), other); err == nil || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "other ") {
			t.Errorf("%s: %v", what, err)
		}
	}
	sameFiles(t, files(t, o.Output), before)
}

// cutAfterScan interrupts a run when it writes its third shard.
func cutAfterScan(t *testing.T, o TokenizeOptions, ctx context.Context, cancel func()) {
	t.Helper()
	defer func() { durable.Fault = nil }()
	shards := new(atomic.Int32)
	durable.Fault = func(step, path string) {
		if step == "rename" && strings.HasSuffix(path, ".parquet") && shards.Add(1) == 3 {
			cancel()
		}
	}
	if err := Tokenize(ctx, o); !errors.Is(err, ErrInterrupted) {
		t.Fatalf("an interrupted run returns %v", err)
	}
}

// A run that is cut short leaves no manifest and no temporaries of its own; the
// next makes only the rest and ends in the same bytes.
func TestResumeAfterInterruptIsByteIdentical(t *testing.T) {
	c := newCorpus(t)
	tokenize(t, c.options("whole"))
	want := files(t, filepath.Join(c.dir, "whole"))

	o := c.options("cut")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cutAfterScan(t, o, ctx, cancel)
	left := files(t, o.Output)
	if _, ok := left[tokenset.ManifestFile]; ok || len(left) < 2 || len(left) >= len(want) {
		t.Fatalf("the interrupted run left %d files of %d", len(left), len(want))
	}
	for name := range left {
		if left[name] != want[name] {
			t.Errorf("the interrupted run left %s, which is no whole shard", name)
		}
	}

	// What a killed process leaves: temporaries, a damaged shard, a run that
	// no group knows, and one that is damaged.
	var damaged string
	for name := range left {
		damaged = filepath.Join(o.Output, name)
	}
	defer func() { durable.Fault = nil }()
	os.WriteFile(damaged, []byte("PAR1 not whole"), 0o666)
	os.WriteFile(filepath.Join(o.Output, ".train-00001-of-00005.parquet.tmp-ABCDEFGHIJKL"), []byte("part"), 0o666)
	os.WriteFile(filepath.Join(o.Output, transforms.WorkFolder, "run-00000-99-AAAAAAAA"), []byte("part"), 0o666)
	runs, err := filepath.Glob(filepath.Join(o.Output, transforms.WorkFolder, "run-00001-*"))
	if err != nil || len(runs) < 2 { // the one above is swept
		t.Fatalf("runs of group 1: %q, %v", runs, err)
	}
	os.WriteFile(runs[0], []byte("part"), 0o666)
	var scans, parquet atomic.Int32
	durable.Fault = func(step, path string) {
		if step == "rename" && strings.HasSuffix(path, ".parquet") {
			parquet.Add(1)
		}
		if step == "rename" && strings.HasPrefix(filepath.Base(path), "scanned-") {
			scans.Add(1)
		}
	}
	tokenize(t, o)
	sameFiles(t, files(t, o.Output), want)
	if n, shards := int(parquet.Load()), len(want)-1; n != shards-len(left)+1 || scans.Load() != 1 {
		t.Errorf("the second run wrote %d shards, %d of %d were there and one of them damaged; it read %d groups where one had to be", n, len(left), shards, scans.Load())
	}
	if _, err := os.Stat(filepath.Join(o.Output, transforms.WorkFolder)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the work folder is left: %v", err)
	}
}

// killed is what TestMain runs in a child: it ends itself by SIGKILL before
// the n-th step that changes the disk.
func killed(dir string, n int64) {
	var steps atomic.Int64
	durable.Fault = func(string, string) {
		if steps.Add(1) == n {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	o := corpus{dir: dir}.options(fmt.Sprint("killed-", n))
	if store.Remote(dir) { // the server ends it
		durable.Fault = nil
		o = corpus{dir: dir}.inCloud(&storetest.Server{Root: dir}, fmt.Sprint("killed-", n))
	}
	if err := Tokenize(context.Background(), o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func TestMain(m *testing.M) {
	if dir := os.Getenv("SCAVENGE_TEST_KILLED_IN"); dir != "" {
		n, err := strconv.ParseInt(os.Getenv("SCAVENGE_TEST_KILLED_AT"), 10, 64)
		if err != nil {
			panic(err)
		}
		killed(dir, n)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestResumeAfterKillIsByteIdentical(t *testing.T) {
	c := newCorpus(t)
	tokenize(t, c.options("whole"))
	want := files(t, filepath.Join(c.dir, "whole"))
	kills, stride := 0, int64(11)
	for n := int64(1); ; n += stride {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), "SCAVENGE_TEST_KILLED_IN="+c.dir, fmt.Sprint("SCAVENGE_TEST_KILLED_AT=", n))
		out, err := child.CombinedOutput()
		var exit *exec.ExitError
		if err == nil {
			break // it was done before the n-th step
		}
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("killed at step %d: %v\n%s", n, err, out)
		}
		kills++
		o := c.options(fmt.Sprint("killed-", n))
		if _, err := os.Stat(filepath.Join(o.Output, tokenset.ManifestFile)); err == nil && n < stride {
			t.Fatal("a manifest before anything else")
		}
		tokenize(t, o)
		sameFiles(t, files(t, o.Output), want)
	}
	if kills < 8 {
		t.Errorf("killed %d times: too few for this test to mean anything", kills)
	}
}

func TestSampleTakesAShareAndTheSameOne(t *testing.T) {
	c := newCorpus(t)
	o := c.options("set")
	o.Documents, o.Validation, o.ShardTokens = 0.5, 0, 1<<20
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
		{"documents", func(o *TokenizeOptions) { o.Documents = 1.5 }, "--documents 1.5"},
		{"sample", func(o *TokenizeOptions) { o.Sequences = -1 }, "--sample -1"},
		{"policy", func(o *TokenizeOptions) { o.OnBad = "ignore" }, `--on-bad-document "ignore"`},
		{"clean", func(o *TokenizeOptions) { o.Clean = "all" }, `--clean "all"`},
		{"max-document", func(o *TokenizeOptions) { o.MaxDocument = -1 }, "--max-document -1"},
		{"shard-tokens", func(o *TokenizeOptions) { o.ShardTokens = 8 }, "--shard-tokens 8"},
		{"subsets", func(o *TokenizeOptions) {
			o.Subsets = []transforms.Subset{{Name: "a", Tokens: 1}, {Name: "a", Tokens: 2}}
		}, "--subset a=2"},
		{"latin1", func(o *TokenizeOptions) { o.Inputs = []string{c.put(t, "latin1.txt", "caf\xe9 cr\xe8me")} }, "latin1.txt: invalid UTF-8 at byte 3"},
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
	o.Log, o.Validation, o.OnBad = log, 1e-9, transforms.OnBadSkip
	o.Inputs = append(o.Inputs, c.put(t, "latin1.txt", "caf\xe9 cr\xe8me"))
	set := tokenize(t, o)
	for _, want := range []string{"1 bad documents were left out (invalid UTF-8: 1)", "latin1.txt: invalid UTF-8 at byte 3", "the validation split is empty"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %q in %q", want, log)
		}
	}
	if m := set.Manifest; m.Omitted == nil || m.Omitted.Bad["invalid UTF-8"] != 1 || len(m.Omitted.Named) != 1 || m.OnBad != transforms.OnBadSkip {
		t.Errorf("the manifest says %+v", m.Omitted)
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
	o.ShardTokens = 1 << 20
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
