package pipelines

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/scavenge/scavenge/schemas/tokenset"
)

// frontMatter is what the Hub reads of a dataset card: where the splits are.
func (c *card) frontMatter(w io.Writer) {
	fmt.Fprintf(w, "---\npretty_name: %s\ntask_categories:\n- text-generation\nconfigs:\n- config_name: default\n  data_files:\n", c.name)
	for _, s := range c.stats {
		fmt.Fprintf(w, "  - split: %s\n    path: %s-*.parquet\n", s.split, s.split)
	}
	fmt.Fprint(w, "---\n\n")
}

// listed is how many inputs, bad documents and tokens a card lists.
const listed = 20

// write writes the card as Markdown.
func (c *card) write(w io.Writer) {
	m := c.set.Manifest
	fmt.Fprintf(w, "# Token set %s\n\n", c.name)
	fmt.Fprintf(w, "Sequences of exactly %d token ids, in Parquet: `sequence_id` (int64) and `tokens` (list of int32). Documents end in id %d.\nAll shards were read: checksums, counts and ids are right.\n\n", m.SeqLen, m.Tokenizer.EndOfText)
	fmt.Fprint(w, "| split | sequences | tokens | documents | tokens left over | shards | bytes |\n|---|---:|---:|---:|---:|---:|---:|\n")
	for _, s := range c.stats {
		n := m.Splits[s.split]
		var bytes int64
		for _, shard := range n.Shards {
			bytes += shard.Bytes
		}
		fmt.Fprintf(w, "| %s | %d | %d | %d | %d | %d | %d |\n", s.split, n.Rows, n.Tokens, n.Documents, n.TokensDropped, len(n.Shards), bytes)
	}
	for _, s := range m.Subsets {
		fmt.Fprintf(w, "\nThe first %d shards of %s are the subset `%s`: %d sequences, %d tokens (%d were asked for).\n", s.Shards, tokenset.Train, s.Name, s.Rows, s.Rows*int64(m.SeqLen), s.Tokens)
	}
	c.making(w)
	c.sources(w)
	for _, s := range c.stats {
		c.distribution(w, s)
	}
	for _, s := range c.stats {
		c.examples(w, s)
	}
}

// making says how the set was made.
func (c *card) making(w io.Writer) {
	m := c.set.Manifest
	fmt.Fprintf(w, "\n## How it was made\n\n")
	item := func(name, format string, a ...any) { fmt.Fprintf(w, "- %s: %s\n", name, fmt.Sprintf(format, a...)) }
	item("fingerprint of the set", "`%s`", c.set.Fingerprint())
	if m.Corpus != "" {
		item("fingerprint of the documents", "`%s`", m.Corpus)
	}
	item("tokenizer", "sha256 `%s`, %d ids", m.Tokenizer.SHA256, m.Tokenizer.Vocab)
	item("seed", "%d", m.Seed)
	item("share of the documents taken", "%g", m.Sample)
	item("share of those for validation", "%g", m.Validation)
	if m.Sequences > 0 {
		item("sequences drawn at random", "%d", m.Sequences)
	}
	if m.Deduplicated {
		item("equal documents left out", "%d", m.Duplicates)
	}
	if m.Clean != "" {
		item("text cleaned as", "%s", m.Clean)
	}
	if o := m.Omitted; o != nil {
		item("empty documents", "%d", o.Empty)
		if o.Total() > 0 {
			item("bad documents left out", "%d (%s)", o.Total(), kinds(o))
		}
		for _, name := range o.Named[:min(len(o.Named), listed)] {
			fmt.Fprintf(w, "  - %s\n", name)
		}
	}
}

// sources lists the inputs.
func (c *card) sources(w io.Writer) {
	inputs := c.set.Manifest.Inputs
	var files, bytes int64
	for _, in := range inputs {
		files += max(1, in.Files)
		bytes += in.Bytes
	}
	fmt.Fprintf(w, "\n## Sources\n\n%d files of %d bytes in all.\n\n| file | bytes | sha256 |\n|---|---:|---|\n", files, bytes)
	for _, in := range inputs[:min(len(inputs), listed)] {
		fmt.Fprintf(w, "| %s | %d | %.16s |\n", strings.ReplaceAll(in.Name, "|", `\|`), in.Bytes, in.SHA256)
	}
	if n := len(inputs) - listed; n > 0 {
		fmt.Fprintf(w, "| and %d more | | |\n", n)
	}
}

// distribution shows how long the documents' parts and how frequent the tokens
// are.
func (c *card) distribution(w io.Writer, s *statistics) {
	var total, most int64
	for _, n := range s.parts {
		total, most = total+n, max(most, n)
	}
	fmt.Fprintf(w, "\n## Lengths, %s\n\n%d documents, or parts of them where a sequence cuts them, by tokens:\n\n```\n", s.split, total)
	for i, n := range s.parts {
		if n > 0 {
			fmt.Fprintf(w, "%7d to %7d  %9d  %s\n", 1<<i>>1, 1<<i-1, n, strings.Repeat("#", int((40*n+most-1)/most)))
		}
	}
	fmt.Fprint(w, "```\n")

	ids := make([]int, 0, len(s.counts))
	var tokens int64
	entropy := 0.0
	for id, n := range s.counts {
		if n > 0 {
			ids, tokens = append(ids, id), tokens+n
		}
	}
	for _, id := range ids {
		p := float64(s.counts[id]) / float64(tokens)
		entropy -= p * math.Log2(p)
	}
	slices.SortFunc(ids, func(a, b int) int {
		if s.counts[a] != s.counts[b] {
			return int(max(-1, min(1, s.counts[b]-s.counts[a])))
		}
		return a - b
	})
	fmt.Fprintf(w, "\n## Tokens, %s\n\n%d of %d ids occur; their entropy is %.2f bits.\n\n", s.split, len(ids), len(s.counts), entropy)
	var sum int64
	for i, id := range ids {
		sum += s.counts[id]
		if n := i + 1; n == 10 || n == 100 || n == 1000 || n == 10000 {
			fmt.Fprintf(w, "- the %d most frequent are %.1f %% of all\n", n, 100*float64(sum)/float64(tokens))
		}
	}
	fmt.Fprint(w, "\n| id | token | times | share |\n|---:|---|---:|---:|\n")
	for _, id := range ids[:min(len(ids), listed)] {
		fmt.Fprintf(w, "| %d | %s | %d | %.2f %% |\n", id, c.token(int32(id)), s.counts[id], 100*float64(s.counts[id])/float64(tokens))
	}
}

// token shows one token, if the tokenizer is there.
func (c *card) token(id int32) string {
	if c.tok == nil {
		return ""
	}
	text, err := c.tok.Decode([]int32{id})
	if err != nil { // a gap in the vocabulary
		return ""
	}
	return "`" + strings.NewReplacer("|", `\|`, "`", "'").Replace(fmt.Sprintf("%q", text)) + "`"
}

// shownText is how much of a sequence is shown, characters and tokens.
const (
	shownText   = 600
	shownTokens = 32
)

// examples shows the first sequences.
func (c *card) examples(w io.Writer, s *statistics) {
	if len(s.shown) == 0 {
		return
	}
	fmt.Fprintf(w, "\n## Examples, %s\n", s.split)
	for i, tokens := range s.shown {
		fmt.Fprintf(w, "\nSequence %d:\n\n", i)
		text := fmt.Sprint(tokens[:min(len(tokens), shownTokens)])
		if c.tok != nil {
			decoded, err := c.tok.Decode(tokens)
			if err == nil {
				text = strings.ToValidUTF8(decoded, "\uFFFD")
			}
		}
		if r := []rune(text); len(r) > shownText {
			text = string(r[:shownText]) + " …"
		}
		for line := range strings.Lines(text) {
			fmt.Fprintf(w, "    %s\n", strings.TrimRight(line, "\r\n"))
		}
	}
}
