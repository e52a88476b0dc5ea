package tokenizer

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/text/unicode/norm"
)

// FuzzParse: any bytes are a tokenizer or an error.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"version":"1.0","truncation":null,"added_tokens":[{"id":0,"content":"x"}],"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":1},"merges":["a a"]}}`))
	f.Fuzz(func(t *testing.T, data []byte) { parseAndUse(t, data) })
}

// FuzzParts puts parts into a file that is whole otherwise, so that the fuzzer
// gets past the vocabulary of bytes.
func FuzzParts(f *testing.F) {
	bytes := map[string]int32{}
	for b, r := range byteRune {
		bytes[string(r)] = int32(b)
	}
	vocab, err := json.Marshal(bytes)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(`"He": 256, "ll": 257, "Hell": 258`, `"H e", ["l", "l"], "He ll"`, `{"id": 300, "content": "wor", "normalized": true}`, `{"type": "NFC"}`, `"add_prefix_space": true, "use_regex": false`)
	f.Add(`"aa": 300, "aaa": 256`, `"aa a", "a aa", "a a"`, `{"id": 257, "content": "e\u0301", "normalized": false}`, `null`, `"add_prefix_space": false`)
	f.Fuzz(func(t *testing.T, tokens, merges, added, normalizer, pre string) {
		parseAndUse(t, fmt.Appendf(nil, `{"added_tokens": [%s], "normalizer": %s, "pre_tokenizer": {"type": "ByteLevel", %s}, "model": {"type": "BPE", "vocab": %s, %s}, "merges": [%s]}}`,
			added, normalizer, pre, vocab[:len(vocab)-1], tokens, merges))
	})
}

func parseAndUse(t *testing.T, data []byte) {
	tok, err := Parse(data)
	if err != nil {
		return
	}
	const text = "Hello, world! e\u0301  \n 12 aaaaaaa"
	ids := tok.Encode(text)
	if _, err := tok.Decode(ids); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if int(id) >= tok.Vocab() {
			t.Fatalf("id %d of a vocabulary of %d", id, tok.Vocab())
		}
	}
}

// FuzzRoundTrip: decoding gives the normalized text back, and text encodes in
// one piece as it does through a cache that has seen it.
func FuzzRoundTrip(f *testing.F) {
	tok := small(f)
	for _, c := range readGolden(f, "testdata/golden.jsonl")[:60] {
		f.Add(c.Text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ids := tok.Encode(text)
		got, err := tok.Decode(ids)
		if err != nil {
			t.Fatal(err)
		}
		valid, _ := ReplaceInvalid([]byte(text))
		if want := string(appendNFC(nil, valid)); got != want {
			t.Fatalf("%q comes back as %q, want %q", text, got, want)
		}
		if again := tok.Encode(text); !slices.Equal(ids, again) {
			t.Fatalf("%q: %v, the second time %v", text, ids, again)
		}
		for _, r := range got { // where norm cannot differ, it does not
			if r > 0x2FF {
				return
			}
		}
		if want := norm.NFC.String(string(valid)); got != want {
			t.Fatalf("%q: %q, norm has %q", text, got, want)
		}
	})
}
