package tokenizer

import (
	"cmp"
	"container/heap"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"
	"unicode/utf8"
)

// Padding is the second token of a trained vocabulary.
const Padding = "<|padding|>"

// TrainOptions says what vocabulary Train makes.
type TrainOptions struct {
	Vocab        int // tokens in all: <|endoftext|>, <|padding|>, 256 bytes and the merges
	MinFrequency int // a pair seen less often is not merged; 0: 2
}

// least is a vocabulary without merges.
const least = 2 + 256

// Validate says what of the options cannot be.
func (o TrainOptions) Validate() error {
	if o.Vocab < least || o.Vocab > maxID {
		return fmt.Errorf("tokenizer: a vocabulary of %d tokens: want %d (two special ones and the bytes) to %d", o.Vocab, least, maxID)
	}
	if o.MinFrequency < 0 {
		return fmt.Errorf("tokenizer: a least frequency of %d", o.MinFrequency)
	}
	return nil
}

// Train makes a vocabulary from texts: byte-level BPE with GPT-NeoX's form of
// tokenizer.json (NFC, GPT-2's split), <|endoftext|> with id 0 and <|padding|>
// with id 1. Again and again the most frequent pair of neighbouring tokens
// becomes a token; of equally frequent pairs the one of lower ids. The same
// texts, in any order, give the same file, and Hugging Face's BpeTrainer gives
// the same merges. Text that is too small for o.Vocab gives a smaller
// vocabulary. Memory is that of the different words.
func Train(texts iter.Seq[string], o TrainOptions) (*Tokenizer, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	b := newTrainer(countWords(texts))
	if len(b.words) == 0 {
		return nil, fmt.Errorf("tokenizer: no text to train a vocabulary on")
	}
	if o.MinFrequency == 0 {
		o.MinFrequency = 2
	}
	b.merge(o.Vocab, o.MinFrequency)
	data, err := b.marshal()
	if err != nil {
		return nil, err
	}
	return Parse(data)
}

// countWords counts the pre-tokens of texts.
func countWords(texts iter.Seq[string]) map[string]int {
	counts := map[string]*int{} // pointers: a word that is there is counted without a copy of it
	var composed []byte
	for text := range texts {
		s := []byte(text)
		if !utf8.Valid(s) {
			s, _ = ReplaceInvalid(s)
		}
		if !isNFC(s) {
			composed = appendNFC(composed[:0], s)
			s = composed
		}
		for i := 0; i < len(s); {
			end := nextSplit(s, i)
			if n := counts[string(s[i:end])]; n != nil {
				*n++
			} else {
				one := 1
				counts[string(s[i:end])] = &one
			}
			i = end
		}
	}
	words := make(map[string]int, len(counts))
	for w, n := range counts {
		words[w] = *n
	}
	return words
}

// A trainer holds the words of a corpus, each once, as the tokens made so far.
type trainer struct {
	words  []trainingWord
	spell  []string         // by id, in the spelling of tokenizer.json
	ids    map[string]int32 // its inverse
	merges []string
	pairs  map[pair]*pairCount
	queue  pairQueue
}

type trainingWord struct {
	ids   []int32
	count int
}

type pair struct{ a, b int32 }

// A pairCount is how often a pair occurs, and in which words it may.
type pairCount struct {
	pair   pair
	count  int
	queued int // the count that it is in the queue with
	index  int // in the queue; -1: not in it
	words  []int32
}

// A pairQueue has the most frequent pair on top, of equals that of lower ids.
// A pair whose count has fallen while it waits is put back when it comes up.
type pairQueue []*pairCount

func (q pairQueue) Len() int { return len(q) }
func (q pairQueue) Less(i, j int) bool {
	a, b := q[i], q[j]
	return cmp.Or(cmp.Compare(b.queued, a.queued), cmp.Compare(a.pair.a, b.pair.a), cmp.Compare(a.pair.b, b.pair.b)) < 0
}
func (q pairQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}
func (q *pairQueue) Push(x any) {
	p := x.(*pairCount)
	p.index = len(*q)
	*q = append(*q, p)
}
func (q *pairQueue) Pop() any {
	last := len(*q) - 1
	p := (*q)[last]
	*q = (*q)[:last]
	p.index = -1
	return p
}

func newTrainer(counts map[string]int) *trainer {
	t := &trainer{ids: map[string]int32{}, pairs: map[pair]*pairCount{}}
	for _, special := range []string{EndOfText, Padding} {
		t.add(special)
	}
	alphabet := slices.Clone(byteRune[:])
	slices.Sort(alphabet)
	for _, r := range alphabet {
		t.add(string(r))
	}
	var byteID [256]int32
	for b, r := range byteRune {
		byteID[b] = t.ids[string(r)]
	}
	texts := make([]string, 0, len(counts))
	for w := range counts {
		texts = append(texts, w)
	}
	slices.Sort(texts)
	for i, w := range texts {
		word := trainingWord{ids: make([]int32, len(w)), count: counts[w]}
		for j := range len(w) {
			word.ids[j] = byteID[w[j]]
			if j > 0 {
				t.count(pair{word.ids[j-1], word.ids[j]}, word.count, int32(i))
			}
		}
		t.words = append(t.words, word)
	}
	for _, p := range t.pairs {
		p.queued, p.index = p.count, len(t.queue)
		t.queue = append(t.queue, p)
	}
	heap.Init(&t.queue)
	return t
}

// add gives a token its id.
func (t *trainer) add(token string) int32 {
	if id, ok := t.ids[token]; ok { // two merges can spell one token
		return id
	}
	id := int32(len(t.spell))
	t.spell = append(t.spell, token)
	t.ids[token] = id
	return id
}

// count adds n occurrences of a pair in word w, and returns the pair's entry.
func (t *trainer) count(p pair, n int, w int32) *pairCount {
	c := t.pairs[p]
	if c == nil {
		c = &pairCount{pair: p, index: -1}
		t.pairs[p] = c
	}
	c.count += n
	if n > 0 && (len(c.words) == 0 || c.words[len(c.words)-1] != w) {
		c.words = append(c.words, w)
	}
	return c
}

// merge makes tokens until there are vocab or no pair occurs often enough.
func (t *trainer) merge(vocab, frequency int) {
	for len(t.spell) < vocab && len(t.queue) > 0 {
		top := t.queue[0]
		if top.count != top.queued {
			top.queued = top.count
			heap.Fix(&t.queue, 0)
			continue
		}
		if top.count < frequency {
			return
		}
		heap.Pop(&t.queue)
		t.apply(top)
	}
}

// apply makes a token of a pair, in all words that it is in. Only the counts
// of pairs beside it change.
func (t *trainer) apply(top *pairCount) {
	a, b := top.pair.a, top.pair.b
	id := t.add(t.spell[a] + t.spell[b])
	t.merges = append(t.merges, t.spell[a]+" "+t.spell[b])
	grown := map[*pairCount]bool{}
	slices.Sort(top.words)
	for _, w := range slices.Compact(top.words) {
		word := &t.words[w]
		ids, out := word.ids, word.ids[:0]
		for i := 0; i < len(ids); i++ {
			if ids[i] != a || i+1 == len(ids) || ids[i+1] != b {
				out = append(out, ids[i])
				continue
			}
			if n := len(out); n > 0 {
				t.count(pair{out[n-1], a}, -word.count, w)
				grown[t.count(pair{out[n-1], id}, word.count, w)] = true
			}
			if i+2 < len(ids) {
				t.count(pair{b, ids[i+2]}, -word.count, w)
				grown[t.count(pair{id, ids[i+2]}, word.count, w)] = true
			}
			out = append(out, id)
			i++
		}
		word.ids = out
	}
	top.words = nil
	delete(t.pairs, top.pair)
	for p := range grown {
		p.queued = p.count
		if p.index < 0 {
			heap.Push(&t.queue, p)
		} else { // the token was there before, by another merge
			heap.Fix(&t.queue, p.index)
		}
	}
}

// marshal writes the tokenizer.json.
func (t *trainer) marshal() ([]byte, error) {
	var s strings.Builder
	quote := func(v string) string {
		var b strings.Builder
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.Encode(v) // a string cannot fail
		return strings.TrimSuffix(b.String(), "\n")
	}
	s.WriteString("{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  \"added_tokens\": [")
	for id, token := range []string{EndOfText, Padding} {
		fmt.Fprintf(&s, "%s\n    {\"id\": %d, \"content\": %s, \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": true}",
			strings.Repeat(",", id), id, quote(token))
	}
	const byteLevel = `{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}`
	fmt.Fprintf(&s, "\n  ],\n  \"normalizer\": {\"type\": \"NFC\"},\n  \"pre_tokenizer\": %s,\n  \"post_processor\": %[1]s,\n  \"decoder\": %[1]s,\n", byteLevel)
	s.WriteString("  \"model\": {\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n    \"fuse_unk\": false,\n    \"vocab\": {")
	for id, token := range t.spell {
		fmt.Fprintf(&s, "%s\n      %s: %d", strings.Repeat(",", min(id, 1)), quote(token), id)
	}
	s.WriteString("\n    },\n    \"merges\": [")
	for i, m := range t.merges {
		fmt.Fprintf(&s, "%s\n      %s", strings.Repeat(",", min(i, 1)), quote(m))
	}
	s.WriteString("\n    ]\n  }\n}\n")
	return []byte(s.String()), nil
}
