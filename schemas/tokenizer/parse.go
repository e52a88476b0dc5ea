package tokenizer

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"sort"
	"strings"
)

// maxID bounds ids, so that a damaged file cannot ask for a huge table.
const maxID = 1 << 20

// The parts of a tokenizer.json. A key that is missing here is one that this
// package does not understand: the file is refused.
type (
	document struct {
		Version       string          `json:"version"`
		Truncation    json.RawMessage `json:"truncation"`
		Padding       json.RawMessage `json:"padding"`
		AddedTokens   []addedToken    `json:"added_tokens"`
		Normalizer    *part           `json:"normalizer"`
		PreTokenizer  *part           `json:"pre_tokenizer"`
		PostProcessor *part           `json:"post_processor"`
		Decoder       *part           `json:"decoder"`
		Model         json.RawMessage `json:"model"`
	}
	addedToken struct {
		ID         int32  `json:"id"`
		Content    string `json:"content"`
		SingleWord bool   `json:"single_word"`
		LStrip     bool   `json:"lstrip"`
		RStrip     bool   `json:"rstrip"`
		Normalized bool   `json:"normalized"`
		Special    bool   `json:"special"`
	}
	// part is a normalizer, pre-tokenizer, post-processor or decoder.
	part struct {
		Type string
		raw  json.RawMessage
	}
	byteLevel struct {
		Type           string `json:"type"`
		AddPrefixSpace *bool  `json:"add_prefix_space,omitempty"`
		TrimOffsets    *bool  `json:"trim_offsets,omitempty"` // of no effect on ids
		UseRegex       *bool  `json:"use_regex,omitempty"`
	}
	model struct {
		Type         string           `json:"type"`
		Dropout      *float64         `json:"dropout"`
		Unknown      *string          `json:"unk_token"`
		Prefix       *string          `json:"continuing_subword_prefix"`
		Suffix       *string          `json:"end_of_word_suffix"`
		FuseUnk      bool             `json:"fuse_unk"` // of no effect: every byte is a token
		ByteFallback bool             `json:"byte_fallback"`
		IgnoreMerges bool             `json:"ignore_merges"`
		Vocab        map[string]int32 `json:"vocab"`
		Merges       []mergeRule      `json:"merges"`
	}
	mergeRule [2]string
)

func (p *part) UnmarshalJSON(data []byte) error {
	var t struct{ Type string }
	if err := json.Unmarshal(data, &t); err != nil {
		return err
	}
	p.Type, p.raw = t.Type, bytes.Clone(data)
	return nil
}

// UnmarshalJSON reads both spellings: "a b" and ["a", "b"].
func (m *mergeRule) UnmarshalJSON(data []byte) error {
	if data[0] == '[' {
		var pair []string
		if err := json.Unmarshal(data, &pair); err != nil {
			return err
		}
		if len(pair) != 2 {
			return fmt.Errorf("a merge of %d tokens: %.80s", len(pair), data)
		}
		*m = mergeRule(pair)
		return nil
	}
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	a, b, ok := strings.Cut(s, " ")
	if !ok || a == "" || b == "" || strings.Contains(b, " ") {
		return fmt.Errorf("a merge that is not two tokens with a space between: %.80q", s)
	}
	*m = mergeRule{a, b}
	return nil
}

// strict unmarshals and refuses unknown keys.
func strict(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return errors.New("more than one JSON value")
	}
	return nil
}

// Parse reads a tokenizer.json. What it does not understand it refuses by the
// name of the part, because ids that are nearly right are worse than none.
func Parse(data []byte) (*Tokenizer, error) {
	var d document
	if err := strict(data, &d); err != nil {
		return nil, err
	}
	for _, f := range []struct {
		name string
		raw  json.RawMessage
	}{{"truncation", d.Truncation}, {"padding", d.Padding}} {
		if len(f.raw) > 0 && string(f.raw) != "null" {
			return nil, fmt.Errorf("%s is set: only tokenizers without it are understood", f.name)
		}
	}
	sum := sha256.Sum256(data)
	t := &Tokenizer{file: bytes.Clone(data), fingerprint: hex.EncodeToString(sum[:]), merges: new(merges), endOfText: -1,
		encoders: make(chan *encoder, runtime.GOMAXPROCS(0))}
	if n := d.Normalizer; n != nil {
		if err := n.only("normalizer", "NFC", &struct{ Type string }{}); err != nil {
			return nil, err
		}
		t.nfc = true
	}
	if err := t.setPreTokenizer(d.PreTokenizer); err != nil {
		return nil, err
	}
	for _, f := range []struct {
		name string
		part *part
	}{{"post_processor", d.PostProcessor}, {"decoder", d.Decoder}} {
		if f.part == nil {
			continue
		}
		if err := f.part.only(f.name, "ByteLevel", new(byteLevel)); err != nil {
			return nil, err
		}
	}
	vocab, err := t.setModel(d.Model)
	if err != nil {
		return nil, err
	}
	if err := t.setAdded(d.AddedTokens, vocab); err != nil {
		return nil, err
	}
	if id, ok := vocab[EndOfText]; ok {
		t.endOfText = id
	}
	return t, nil
}

// only reads a part that has to be of one type.
func (p *part) only(name, want string, into any) error {
	if p.Type != want {
		return fmt.Errorf("%s of type %q: only %s is understood", name, p.Type, want)
	}
	if err := strict(p.raw, into); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (t *Tokenizer) setPreTokenizer(p *part) error {
	if p == nil {
		return errors.New("pre_tokenizer is null: only ByteLevel is understood")
	}
	var b byteLevel
	if err := p.only("pre_tokenizer", "ByteLevel", &b); err != nil {
		return err
	}
	t.prefixSpace = b.AddPrefixSpace == nil || *b.AddPrefixSpace
	t.split = b.UseRegex == nil || *b.UseRegex
	return nil
}

// setModel reads the vocabulary and the merges. It returns the ids by the
// file's spelling of the tokens.
func (t *Tokenizer) setModel(raw json.RawMessage) (map[string]int32, error) {
	var kind struct{ Type string }
	if len(raw) == 0 || string(raw) == "null" {
		return nil, errors.New("no model")
	}
	if err := json.Unmarshal(raw, &kind); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if kind.Type != "BPE" && kind.Type != "" { // files of the first versions do not name it
		return nil, fmt.Errorf("model of type %q: only BPE is understood", kind.Type)
	}
	var m model
	if err := strict(raw, &m); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	switch {
	case m.Dropout != nil && *m.Dropout != 0:
		return nil, fmt.Errorf("model.dropout is %g: only merges without chance are understood", *m.Dropout)
	case m.Prefix != nil && *m.Prefix != "":
		return nil, fmt.Errorf("model.continuing_subword_prefix is %q: only none is understood", *m.Prefix)
	case m.Suffix != nil && *m.Suffix != "":
		return nil, fmt.Errorf("model.end_of_word_suffix is %q: only none is understood", *m.Suffix)
	case m.ByteFallback:
		return nil, errors.New("model.byte_fallback is set: only byte-level BPE is understood")
	case m.IgnoreMerges:
		return nil, errors.New("model.ignore_merges is set: only merges in order are understood")
	}
	for _, token := range sortedByID(m.Vocab) {
		if err := t.setToken(m.Vocab[token], tokenBytes(token)); err != nil {
			return nil, fmt.Errorf("model.vocab: %q: %w", token, err)
		}
	}
	for b := range 256 {
		id, ok := m.Vocab[string(byteRune[b])]
		if !ok {
			if neverInUTF8(byte(b)) {
				continue
			}
			return nil, fmt.Errorf("model.vocab: no token for byte 0x%02X", b)
		}
		t.merges.byteID[b] = id
	}
	t.merges.pairs = newPairTable(len(m.Merges))
	for rank, rule := range m.Merges {
		var ids [3]int32
		for i, token := range []string{rule[0], rule[1], rule[0] + rule[1]} {
			id, ok := m.Vocab[token]
			if !ok {
				return nil, fmt.Errorf("model.merges: %d, %q with %q: %q is not in the vocabulary", rank, rule[0], rule[1], token)
			}
			ids[i] = id
		}
		t.merges.pairs.set(ids[0], ids[1], uint32(rank), ids[2])
	}
	t.merges.setBytes()
	return m.Vocab, nil
}

// sortedByID makes what is reported of a bad vocabulary the same every time.
func sortedByID(vocab map[string]int32) []string {
	tokens := make([]string, 0, len(vocab))
	for token := range vocab {
		tokens = append(tokens, token)
	}
	sort.Slice(tokens, func(i, j int) bool {
		a, b := tokens[i], tokens[j]
		return vocab[a] < vocab[b] || vocab[a] == vocab[b] && a < b
	})
	return tokens
}

func (t *Tokenizer) setToken(id int32, content []byte) error {
	switch {
	case id < 0 || id >= maxID:
		return fmt.Errorf("id %d is not in 0 to %d", id, maxID-1)
	case len(content) == 0:
		return fmt.Errorf("id %d is empty", id)
	case int(id) < len(t.tokens) && t.tokens[id] != nil:
		return fmt.Errorf("id %d is also that of %q", id, t.tokens[id])
	}
	if n := int(id) + 1; n > len(t.tokens) {
		t.tokens = append(t.tokens, make([][]byte, n-len(t.tokens))...)
	}
	t.tokens[id] = content
	return nil
}

// setAdded reads the added tokens; it puts those that the vocabulary lacks
// into it.
func (t *Tokenizer) setAdded(tokens []addedToken, vocab map[string]int32) error {
	var raw, normalized []added
	seen := map[string]bool{}
	for _, a := range tokens {
		for _, f := range []struct {
			name string
			set  bool
		}{{"single_word", a.SingleWord}, {"lstrip", a.LStrip}, {"rstrip", a.RStrip}} {
			if f.set {
				return fmt.Errorf("added_tokens: %q has %s: only tokens without it are understood", a.Content, f.name)
			}
		}
		if seen[a.Content] {
			return fmt.Errorf("added_tokens: %q is there twice", a.Content)
		}
		seen[a.Content] = true
		if id, ok := vocab[a.Content]; !ok {
			if err := t.setToken(a.ID, []byte(a.Content)); err != nil {
				return fmt.Errorf("added_tokens: %q: %w", a.Content, err)
			}
			vocab[a.Content] = a.ID
		} else if id != a.ID {
			return fmt.Errorf("added_tokens: %q has id %d, in the vocabulary it has %d", a.Content, a.ID, id)
		} else {
			t.tokens[id] = []byte(a.Content) // as text, not in the spelling of bytes
		}
		switch content := []byte(a.Content); {
		case !a.Normalized:
			raw = append(raw, added{content, a.ID})
		case t.nfc:
			normalized = append(normalized, added{appendNFC(nil, content), a.ID})
		default:
			normalized = append(normalized, added{content, a.ID})
		}
	}
	t.raw, t.normalized = newMatcher(raw), newMatcher(normalized)
	return nil
}

// byteRune is GPT-2's spelling of bytes as visible characters: printable
// Latin-1 stands for itself, the rest follow from U+0100 on in order.
var byteRune, runeByte = func() (to [256]rune, from map[rune]byte) {
	from = map[rune]byte{}
	next := rune(256)
	for b := range rune(256) {
		to[b] = b
		if b <= ' ' || 0x7F <= b && b <= 0xA0 || b == 0xAD {
			to[b] = next
			next++
		}
		from[to[b]] = byte(b)
	}
	return to, from
}()

// tokenBytes is the text of a token of the vocabulary: the bytes that its
// characters stand for, or the token itself where it is not so spelled.
func tokenBytes(token string) []byte {
	out := make([]byte, 0, len(token))
	for _, r := range token {
		b, ok := runeByte[r]
		if !ok {
			return []byte(token)
		}
		out = append(out, b)
	}
	return out
}

// neverInUTF8 says of a byte that no text has it, so that a vocabulary may lack it.
func neverInUTF8(b byte) bool { return b == 0xC0 || b == 0xC1 || b >= 0xF5 }
