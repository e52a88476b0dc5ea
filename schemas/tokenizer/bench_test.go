package tokenizer

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func BenchmarkEncode(b *testing.B) {
	tok := neox(b)
	for _, name := range []string{"wikitext/wiki.test.raw", "owt/openwebtext_train_rows_0-99.txt"} {
		text, err := os.ReadFile(filepath.Join(shared, name))
		if err != nil {
			b.Fatal(err)
		}
		b.Run(filepath.Base(name), func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			var ids []int32
			for b.Loop() {
				ids = tok.AppendEncode(ids[:0], text)
			}
		})
	}
}

// BenchmarkFirstEncode has an empty cache each time.
func BenchmarkFirstEncode(b *testing.B) {
	tok := neox(b)
	text, err := os.ReadFile(filepath.Join(shared, "wikitext/wiki.test.raw"))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		e := &encoder{t: tok, cache: newCache(), merger: merger{merges: tok.merges}}
		e.raw(nil, text)
	}
}

// BenchmarkQuadraticTraps encodes a megabyte that is one pre-token.
func BenchmarkQuadraticTraps(b *testing.B) {
	tok := neox(b)
	for _, s := range []string{"a", "^", " ", "ab", "\n", "的", "e\u0301", "\u0301"} {
		text := bytes.Repeat([]byte(s), (1<<20)/len(s))
		b.Run(fmt.Sprintf("%+q", s), func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				tok.AppendEncode(nil, text)
			}
		})
	}
}
