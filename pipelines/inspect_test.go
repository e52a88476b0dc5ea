package pipelines

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/scavenge/scavenge/schemas/tokenset"
	"github.com/scavenge/scavenge/transforms"
)

func TestACardSaysWhatIsInASet(t *testing.T) {
	c := newCorpus(t)
	o := c.options("set")
	o.Subsets, o.OnBad, o.Deduplicate = []transforms.Subset{{Name: "few", Tokens: 100}}, transforms.OnBadSkip, true
	o.Inputs = append(o.Inputs, c.put(t, "latin1.txt", "caf\xe9"), c.put(t, "twice.txt", c.docs[3]))
	set := tokenize(t, o)
	var out bytes.Buffer
	markdown := filepath.Join(c.dir, "README.md")
	if err := Inspect(context.Background(), InspectOptions{Dataset: o.Output, Tokenizer: c.tokenizer(), Rows: 1, Markdown: markdown, Out: &out}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{set.Fingerprint(), set.Manifest.Corpus, "the subset `few`: 7 sequences, 112 tokens (100 were asked for)", "bad documents left out: 1 (invalid UTF-8: 1)",
		"latin1.txt: invalid UTF-8 at byte 3", "equal documents left out: 1", "13 files of", "a.jsonl", "`\"<\\|endoftext\\|>\"`", "Sequence 0:", "brown fox", "| train | ", "| validation | ", "entropy is"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in the card:\n%s", want, out.String())
		}
	}
	data := string(mustRead(t, markdown))
	if !strings.HasPrefix(data, "---\n") || !strings.Contains(data, "- split: validation\n    path: validation-*.parquet\n") || !strings.HasSuffix(data, out.String()) {
		t.Errorf("the Markdown is\n%s", data)
	}
	// Every token is counted once.
	s := &card{set: set}
	if err := s.read(context.Background(), tokenset.Train); err != nil {
		t.Fatal(err)
	}
	var tokens int64
	for _, n := range s.stats[0].counts {
		tokens += n
	}
	if end := s.stats[0].counts[set.Manifest.Tokenizer.EndOfText]; tokens != set.Manifest.Splits[tokenset.Train].Tokens || end < 30 || end > 60 {
		t.Errorf("%d tokens are counted, %d of them ends of text", tokens, end)
	}
	if err := Inspect(context.Background(), InspectOptions{Dataset: o.Output + "#few", Out: new(bytes.Buffer)}); err != nil {
		t.Error(err)
	}
}

func TestInspectRefusesWhatIsNotWhole(t *testing.T) {
	c := newCorpus(t)
	o := c.options("set")
	set := tokenize(t, o)
	other := c.put(t, "other.json", strings.Replace(string(mustRead(t, c.tokenizer())), "{", "{ ", 1))
	shard := filepath.Join(o.Output, set.Manifest.Splits[tokenset.Train].Shards[1].Name)
	data := mustRead(t, shard)
	data[len(data)/2] ^= 1
	for _, x := range []struct {
		o    InspectOptions
		want string
	}{
		{InspectOptions{}, "--dataset"}, {InspectOptions{Dataset: o.Output, Rows: -1}, "--rows -1"}, {InspectOptions{Dataset: c.dir}, "not a whole token set"},
		{InspectOptions{Dataset: o.Output + "#none"}, `no subset "none"`}, {InspectOptions{Dataset: o.Output, Tokenizer: other}, "did not make this token set"},
		{InspectOptions{Dataset: o.Output, Markdown: filepath.Join(c.dir, "card.md")}, "sha256"},
	} {
		if x.want == "sha256" {
			if err := os.WriteFile(shard, data, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		x.o.Out = new(bytes.Buffer)
		if err := Inspect(context.Background(), x.o); err == nil || !strings.Contains(err.Error(), x.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want %q", err, x.want)
		}
	}
	if _, err := os.Stat(filepath.Join(c.dir, "card.md")); err == nil {
		t.Error("a card of a damaged set was written")
	}
}
