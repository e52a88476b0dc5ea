// Package tokenizer turns text into token ids and back: byte-level BPE as a
// Hugging Face tokenizer.json describes it (GPT-2's, GPT-NeoX's, Pythia's),
// id for id what Hugging Face tokenizers gives. It also trains a small
// vocabulary from text and writes it as such a file.
//
// Text flows through five steps: added tokens that match raw text are cut out;
// the rest is brought to Unicode's NFC form; added tokens that match
// normalized text are cut out; the rest is split into pre-tokens (words with
// their leading space, numbers, punctuation, white space); and the bytes of
// each pre-token are merged, pair by pair, in the order that training found.
package tokenizer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/scavenge/scavenge/schemas/durable"
	"github.com/scavenge/scavenge/schemas/store"
)

// EndOfText is the content of the token between documents.
const EndOfText = "<|endoftext|>"

// A Tokenizer is safe for concurrent use.
type Tokenizer struct {
	file        []byte   // the tokenizer.json it was parsed from
	fingerprint string   // hex sha256 of file
	tokens      [][]byte // bytes by id; nil where no token has the id
	merges      *merges
	nfc         bool
	raw         *matcher      // added tokens in raw text
	normalized  *matcher      // added tokens in normalized text
	prefixSpace bool          // add_prefix_space
	split       bool          // use_regex
	endOfText   int32         // -1: none
	encoders    chan *encoder // at rest
}

// Load reads a tokenizer.json.
func Load(path string) (*Tokenizer, error) {
	data, err := store.ReadFile(context.Background(), path)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	t, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("tokenizer %s: %w", path, err)
	}
	return t, nil
}

// Save writes the tokenizer.json, byte for byte the one it was parsed from.
func (t *Tokenizer) Save(path string) error {
	err := durable.WriteFile(path, func(w io.Writer) error {
		_, err := w.Write(t.file)
		return err
	})
	if err != nil {
		return fmt.Errorf("tokenizer: %w", err)
	}
	return nil
}

// Vocab is the largest id plus one: the least number of rows that a model's
// embedding must have.
func (t *Tokenizer) Vocab() int { return len(t.tokens) }

// EndOfText is the id of <|endoftext|>, if the vocabulary has it.
func (t *Tokenizer) EndOfText() (int32, bool) { return t.endOfText, t.endOfText >= 0 }

// Fingerprint is the hex sha256 of the tokenizer.json.
func (t *Tokenizer) Fingerprint() string { return t.fingerprint }

// Encode gives the ids of text. Bytes that are no UTF-8 are read as U+FFFD
// (AppendEncode says how).
func (t *Tokenizer) Encode(text string) []int32 { return t.AppendEncode(nil, []byte(text)) }

// AppendEncode appends the ids of text to dst. In text that is not valid
// UTF-8, each longest run of bytes that begins a character but does not finish
// it, and each byte that cannot begin one, is read as U+FFFD, as Python's
// decode(errors="replace") does.
func (t *Tokenizer) AppendEncode(dst []int32, text []byte) []int32 {
	if !utf8.Valid(text) {
		text, _ = ReplaceInvalid(text)
	}
	var e *encoder
	select {
	case e = <-t.encoders:
	default:
		e = &encoder{t: t, cache: newCache(), merger: merger{merges: t.merges}}
	}
	dst = e.raw(dst, text)
	select {
	case t.encoders <- e:
	default: // more were at work at once than there are cores
	}
	return dst
}

// Decode gives the text of ids: for any valid text in NFC form, Decode of
// Encode is that text. A part of an encoding can end inside a character, and
// then so does the result.
func (t *Tokenizer) Decode(ids []int32) (string, error) {
	var out bytes.Buffer
	for i, id := range ids {
		if id < 0 || int(id) >= len(t.tokens) || t.tokens[id] == nil {
			return "", fmt.Errorf("tokenizer: decode: id %d at position %d is not in the vocabulary of %d tokens", id, i, len(t.tokens))
		}
		out.Write(t.tokens[id])
	}
	return out.String(), nil
}

// ReplaceInvalid returns text with U+FFFD for each maximal part that is no
// UTF-8, and how many those were; valid text is returned as it is.
func ReplaceInvalid(text []byte) ([]byte, int) {
	if utf8.Valid(text) {
		return text, 0
	}
	out := make([]byte, 0, len(text)+16)
	replaced := 0
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		if r == utf8.RuneError && n == 1 {
			n = partialRune(text)
			replaced++
		}
		out = utf8.AppendRune(out, r)
		text = text[n:]
	}
	return out, replaced
}

// partialRune is how many bytes at the start of s begin a character that they
// do not finish, at least 1 (Unicode Standard, table 3-7).
func partialRune(s []byte) int {
	low, high := byte(0x80), byte(0xBF) // of the second byte
	var size int
	switch c := s[0]; {
	case c >= 0xC2 && c <= 0xDF:
		size = 2
	case c >= 0xE0 && c <= 0xEF:
		size = 3
		if c == 0xE0 {
			low = 0xA0
		} else if c == 0xED {
			high = 0x9F
		}
	case c >= 0xF0 && c <= 0xF4:
		size = 4
		if c == 0xF0 {
			low = 0x90
		} else if c == 0xF4 {
			high = 0x8F
		}
	default:
		return 1
	}
	n := 1
	for n < min(size, len(s)) && low <= s[n] && s[n] <= high {
		low, high = 0x80, 0xBF
		n++
	}
	return n
}

// An encoder is the working memory of one encoding at a time.
type encoder struct {
	t      *Tokenizer
	cache  *cache
	merger merger
	text   []byte // normalized
	spaced []byte // with its prefix space
}

// raw encodes text that nothing was done to.
func (e *encoder) raw(dst []int32, text []byte) []int32 {
	for at := 0; at < len(text); {
		if e.t.raw == nil {
			return e.unnormalized(dst, text[at:])
		}
		start, end, id, ok := e.t.raw.find(text, at)
		if !ok {
			return e.unnormalized(dst, text[at:])
		}
		dst = append(e.unnormalized(dst, text[at:start]), id)
		at = end
	}
	return dst
}

// unnormalized encodes text without raw added tokens.
func (e *encoder) unnormalized(dst []int32, text []byte) []int32 {
	if e.t.nfc && !isNFC(text) {
		e.text = appendNFC(e.text[:0], text)
		text = e.text
		if cap(e.text) > keptText {
			e.text = nil
		}
	}
	for at := 0; at < len(text); {
		if e.t.normalized == nil {
			return e.plain(dst, text[at:])
		}
		start, end, id, ok := e.t.normalized.find(text, at)
		if !ok {
			return e.plain(dst, text[at:])
		}
		dst = append(e.plain(dst, text[at:start]), id)
		at = end
	}
	return dst
}

// keptText is the size, in bytes, up to which a text buffer is kept.
const keptText = 1 << 20

// plain encodes normalized text without added tokens.
func (e *encoder) plain(dst []int32, s []byte) []int32 {
	if len(s) == 0 {
		return dst
	}
	if e.t.prefixSpace && s[0] != ' ' {
		e.spaced = append(append(e.spaced[:0], ' '), s...)
		s = e.spaced
		if cap(e.spaced) > keptText {
			e.spaced = nil
		}
	}
	if !e.t.split {
		return e.word(dst, s, 0, len(s))
	}
	for i := 0; i < len(s); {
		end := nextSplit(s, i)
		dst = e.word(dst, s, i, end)
		i = end
	}
	return dst
}

// word encodes the pre-token s[i:end].
func (e *encoder) word(dst []int32, s []byte, i, end int) []int32 {
	n := end - i
	if n > shortBytes {
		return e.longWord(dst, s[i:end])
	}
	lo, hi := shortKey(s, i, n)
	set := e.cache.slot(lo, hi)
	if set[0].lo == lo && set[0].hi == hi {
		return set[0].appendTo(dst)
	}
	if set[1].lo == lo && set[1].hi == hi {
		return set[1].appendTo(dst)
	}
	ids := e.merger.merge(s[i:end])
	if len(ids) <= shortIDs {
		set[1] = set[0]
		set[0].set(lo, hi, ids)
	}
	return append(dst, ids...)
}

func (e *encoder) longWord(dst []int32, word []byte) []int32 {
	if len(word) > longBytes {
		return append(dst, e.merger.merge(word)...)
	}
	if ids, ok := e.cache.long[string(word)]; ok {
		return append(dst, ids...)
	}
	ids := e.merger.merge(word)
	e.cache.setLong(word, ids)
	return append(dst, ids...)
}
