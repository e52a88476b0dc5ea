package tokenizer

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// trained is the small tokenizer.json that Hugging Face's trainer made of this
// project's licence, with top-level parts replaced.
func trained(t testing.TB, change map[string]json.RawMessage) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/trained.json")
	if err != nil {
		t.Fatal(err)
	}
	var d map[string]json.RawMessage
	if err := json.Unmarshal(data, &d); err != nil {
		t.Fatal(err)
	}
	for key, v := range change {
		d[key] = v
	}
	if data, err = json.Marshal(d); err != nil {
		t.Fatal(err)
	}
	return data
}

func small(t testing.TB) *Tokenizer {
	t.Helper()
	tok, err := Parse(trained(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestVariantsAgreeWithHuggingFace(t *testing.T) {
	data, err := os.ReadFile("testdata/variants.json")
	if err != nil {
		t.Fatal(err)
	}
	var variants map[string]map[string]json.RawMessage
	if err := json.Unmarshal(data, &variants); err != nil {
		t.Fatal(err)
	}
	all := readGolden(t, "testdata/golden.jsonl")
	for name, change := range variants {
		t.Run(name, func(t *testing.T) {
			tok, err := Parse(trained(t, change))
			if err != nil {
				t.Fatal(err)
			}
			cases := slices.DeleteFunc(slices.Clone(all), func(c golden) bool { return c.Variant != name })
			if len(cases) < 50 {
				t.Fatalf("%d cases", len(cases))
			}
			checkGolden(t, tok, cases)
		})
	}
}

func TestTrainingAgreesWithHuggingFace(t *testing.T) {
	text, err := os.ReadFile("../../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	tok, err := Train(strings.SplitAfterSeq(string(text), "\n"), TrainOptions{Vocab: 600})
	if err != nil {
		t.Fatal(err)
	}
	want := small(t)
	if tok.Vocab() != 600 || want.Vocab() != 600 {
		t.Fatalf("%d tokens, Hugging Face has %d", tok.Vocab(), want.Vocab())
	}
	for id := range want.tokens {
		if string(tok.tokens[id]) != string(want.tokens[id]) {
			t.Fatalf("token %d is %q, Hugging Face has %q", id, tok.tokens[id], want.tokens[id])
		}
	}
	if !slices.Equal(tok.Encode(string(text)), want.Encode(string(text))) {
		t.Error("the text that both are trained on is encoded differently")
	}
}

func TestTrainingDoesNotDependOnTheOrderOfTexts(t *testing.T) {
	texts := []string{"the cat sat on the mat", "a cat and a hat", "that hat, that cat", "e\u0301t\u00e9 \u00e9te\u0301", "\xff\xfe the"}
	a, err := Train(slices.Values(texts), TrainOptions{Vocab: 300})
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(texts)
	b, err := Train(slices.Values(texts), TrainOptions{Vocab: 300})
	if err != nil {
		t.Fatal(err)
	}
	if a.Fingerprint() != b.Fingerprint() {
		t.Error("two orders of the same texts give two tokenizers")
	}
	if n := a.Vocab(); n <= least || n >= 300 {
		t.Errorf("%d tokens of a text that has fewer pairs than asked for", n)
	}
}

func TestTrainingRefusesWhatCannotBe(t *testing.T) {
	for _, o := range []TrainOptions{{Vocab: 257}, {Vocab: maxID + 1}, {Vocab: 300, MinFrequency: -1}} {
		if _, err := Train(slices.Values([]string{"text"}), o); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
	if _, err := Train(slices.Values([]string{}), TrainOptions{Vocab: 300}); err == nil {
		t.Error("no text: no error")
	}
}

func TestSavedFileIsTheOneThatWasRead(t *testing.T) {
	tok := small(t)
	path := filepath.Join(t.TempDir(), "tokenizer.json")
	if err := tok.Save(path); err != nil {
		t.Fatal(err)
	}
	back, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if back.Fingerprint() != tok.Fingerprint() {
		t.Error("the fingerprint changed")
	}
}

func TestUnknownPartsAreRefusedByName(t *testing.T) {
	raw := func(s string) json.RawMessage { return json.RawMessage(s) }
	model := func(old, new string) map[string]json.RawMessage {
		var d map[string]json.RawMessage
		if err := json.Unmarshal(trained(t, nil), &d); err != nil {
			t.Fatal(err)
		}
		changed := strings.Replace(string(d["model"]), old, new, 1)
		if changed == string(d["model"]) {
			t.Fatalf("the model has no %s", old)
		}
		return map[string]json.RawMessage{"model": raw(changed)}
	}
	token := func(flags string) map[string]json.RawMessage {
		return map[string]json.RawMessage{"added_tokens": raw(`[{"id": 700, "content": "x", ` + flags + `}]`)}
	}
	for _, c := range []struct {
		change map[string]json.RawMessage
		want   string
	}{
		{map[string]json.RawMessage{"normalizer": raw(`{"type": "NFKC"}`)}, `normalizer of type "NFKC"`},
		{map[string]json.RawMessage{"normalizer": raw(`{"type": "NFC", "strip": true}`)}, `normalizer`},
		{map[string]json.RawMessage{"pre_tokenizer": raw(`{"type": "Metaspace"}`)}, `pre_tokenizer of type "Metaspace"`},
		{map[string]json.RawMessage{"pre_tokenizer": raw(`null`)}, "pre_tokenizer"},
		{map[string]json.RawMessage{"post_processor": raw(`{"type": "TemplateProcessing"}`)}, `post_processor of type "TemplateProcessing"`},
		{map[string]json.RawMessage{"decoder": raw(`{"type": "WordPiece"}`)}, `decoder of type "WordPiece"`},
		{map[string]json.RawMessage{"truncation": raw(`{"max_length": 5}`)}, "truncation"},
		{map[string]json.RawMessage{"padding": raw(`{"strategy": "BatchLongest"}`)}, "padding"},
		{map[string]json.RawMessage{"surprise": raw(`1`)}, "surprise"},
		{map[string]json.RawMessage{"model": raw(`null`)}, "no model"},
		{map[string]json.RawMessage{"model": raw(`{"type": "Unigram", "vocab": []}`)}, `model of type "Unigram"`},
		{model(`"dropout":null`, `"dropout":0.1`), "dropout"},
		{model(`"continuing_subword_prefix":null`, `"continuing_subword_prefix":"##"`), "continuing_subword_prefix"},
		{model(`"end_of_word_suffix":null`, `"end_of_word_suffix":"</w>"`), "end_of_word_suffix"},
		{model(`"byte_fallback":false`, `"byte_fallback":true`), "byte_fallback"},
		{model(`"ignore_merges":false`, `"ignore_merges":true`), "ignore_merges"},
		{model(`"A":`, `"AAAA":`), `no token for byte 0x41`},
		{model(`"A":`, `"A":3,"AAAA":`), `id 3 is also`},
		{model(`"merges":[`, `"merges":[["A","QQQ"],`), `"QQQ"`},
		{model(`"merges":[`, `"merges":[["A"],`), `merge`},
		{model(`"merges":[`, `"merges":["A  B",`), `merge`},
		{token(`"lstrip": true`), "lstrip"},
		{token(`"rstrip": true`), "rstrip"},
		{token(`"single_word": true`), "single_word"},
		{map[string]json.RawMessage{"added_tokens": raw(`[{"id": 5, "content": "new"}]`)}, "id 5"},
		{map[string]json.RawMessage{"added_tokens": raw(`[{"id": 5, "content": "<|endoftext|>"}]`)}, "id 5"},
		{map[string]json.RawMessage{"added_tokens": raw(`[{"id": 700, "content": ""}]`)}, "empty"},
		{map[string]json.RawMessage{"added_tokens": raw(`[{"id": 2000000000, "content": "x"}]`)}, "2000000000"},
	} {
		_, err := Parse(trained(t, c.change))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.120s: %v, want a line with %q", c.change, err, c.want)
		}
	}
}

func TestDecodeRefusesUnknownIDs(t *testing.T) {
	tok := small(t)
	for _, id := range []int32{-1, int32(tok.Vocab())} {
		if _, err := tok.Decode([]int32{5, id}); err == nil || !strings.Contains(err.Error(), fmt.Sprint(id)) {
			t.Errorf("id %d: %v", id, err)
		}
	}
}

func TestInvalidTextIsReadAsPythonReadsIt(t *testing.T) {
	for _, c := range []struct { // bytes.decode(errors="replace") of CPython 3
		text string
		want string
		n    int
	}{
		{"abc", "abc", 0}, {"a\xffb", "a\uFFFDb", 1}, {"\xff\xfe", "\uFFFD\uFFFD", 2},
		{"\xe4\xb8x", "\uFFFDx", 1}, {"\xf0\x9f\x98", "\uFFFD", 1}, {"\xed\xa0\x80", "\uFFFD\uFFFD\uFFFD", 3},
		{"\xc0\x80", "\uFFFD\uFFFD", 2}, {"\xf4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD", 4}, {"\xe0\x80\x80", "\uFFFD\uFFFD\uFFFD", 3},
		{"\xf0\x9f\xf0\x9f\x98\x80", "\uFFFD😀", 1}, {"\uFFFD", "\uFFFD", 0}, {"\xc3", "\uFFFD", 1},
	} {
		got, n := ReplaceInvalid([]byte(c.text))
		if string(got) != c.want || n != c.n {
			t.Errorf("%q: %q, %d; want %q, %d", c.text, got, n, c.want, c.n)
		}
	}
	tok := small(t)
	if !slices.Equal(tok.Encode("a\xffb"), tok.Encode("a\uFFFDb")) {
		t.Error("Encode does not replace invalid bytes")
	}
}

// The table is of Unicode 16; where Go's own tables know a character and the
// version before had it, both must agree.
func TestClassesAgreeWithGo(t *testing.T) {
	counts := map[class]int{}
	for r := range rune(utf8.MaxRune + 1) {
		want := other
		switch {
		case unicode.Is(unicode.L, r):
			want = letter
		case unicode.Is(unicode.N, r):
			want = number
		case unicode.Is(unicode.White_Space, r):
			want = space
		}
		got := unicodeClasses.of(r)
		counts[got]++
		if got != want && want != other {
			t.Errorf("%U: class %d, Go's tables say %d", r, got, want)
		}
	}
	if counts[letter] != 141028 || counts[number] != 1911 || counts[space] != 25 {
		t.Errorf("letters, numbers, spaces: %d, %d, %d", counts[letter], counts[number], counts[space])
	}
}

func TestLongRunsTakeLinearTime(t *testing.T) {
	tok := small(t)
	for _, s := range []string{"a", "^", " ", "\n", "ab", "license ", "e\u0301", "\u0316", "\xff", "的"} {
		text := strings.Repeat(s, 1<<20/len(s))
		start := time.Now()
		ids := tok.Encode(text)
		// A second is ten times what it takes; a quadratic path would take hours.
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("a megabyte of %q takes %v", s, d)
		}
		if back, err := tok.Decode(ids); err != nil || back != norm.NFC.String(strings.ToValidUTF8(text, "\uFFFD")) && !strings.ContainsAny(s, "\u0316\xff") {
			t.Errorf("a megabyte of %q does not come back: %v", s, err)
		}
	}
}

// Both ways to merge, and with them words on both sides of the border, give
// the same tokens.
func TestLongAndShortMergesAgree(t *testing.T) {
	tok := small(t)
	m := merger{merges: tok.merges}
	text := []byte(strings.Repeat("reproduction of the Licensed Work, ", 3))
	for n := 1; n < longPretoken; n++ {
		for at := 0; at+n <= len(text); at += 7 {
			word := text[at : at+n]
			short := slices.Clone(m.merge(word))
			if long := m.mergeLong(word); !slices.Equal(short, long) {
				t.Fatalf("%q: %v and %v", word, short, long)
			}
		}
	}
}

// A merge file in which a later merge makes a pair of an earlier rank: the
// order is still always the lowest rank first.
func TestLongMergesTakeTheLowestRankFirst(t *testing.T) {
	tok := small(t)
	a, b, c := tok.merges.byteID['a'], tok.merges.byteID['b'], tok.merges.byteID['c']
	pairs := newPairTable(3)
	pairs.set(1000, c, 0, 1001) // (ab)c before ab
	pairs.set(a, b, 1, 1000)
	pairs.set(c, a, 2, 1002)
	m := merger{merges: &merges{pairs: pairs, byteID: tok.merges.byteID}}
	word := []byte(strings.Repeat("abc", 30))
	got := m.mergeLong(word)
	for _, id := range got {
		if id != 1001 {
			t.Fatalf("%v: want 30 times 1001", got)
		}
	}
	if len(got) != 30 {
		t.Fatalf("%d tokens, want 30", len(got))
	}
}

func TestConcurrentUse(t *testing.T) {
	tok := small(t)
	texts := readGolden(t, "testdata/golden.jsonl")[:100]
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for _, c := range texts {
				tok.Encode(c.Text)
			}
		})
	}
	wg.Wait()
	checkGolden(t, tok, slices.DeleteFunc(texts, func(c golden) bool { return c.Variant != "trained" }))
}
