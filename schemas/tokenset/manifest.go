package tokenset

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/scavenge/scavenge/schemas/store"
)

// ManifestFile is written last: a folder that has it is whole.
const ManifestFile = "manifest.json"

// Version is the format version that this package writes. It reads version 1
// too, whose shards were compressed and have to be decoded whole.
const Version = 2

// Limits of a token set: sequence ids carry the shard in their upper half, the
// row in their lower 32 bits.
const (
	maxShards = 1 << 20
	maxRows   = 1 << 32
	maxSeqLen = 1 << 20
)

// Split is one of the two parts of a corpus.
type Split string

// The splits. A split without sequences has no shards.
const (
	Train      Split = "train"
	Validation Split = "validation"
)

// Tokenizer says which tokenizer made the ids.
type Tokenizer struct {
	SHA256    string `json:"sha256"` // of tokenizer.json
	Vocab     int    `json:"vocab"`  // largest id + 1
	EndOfText int32  `json:"end_of_text"`
}

// Input is a file that was read or, where they were many, all of them.
type Input struct {
	Name    string `json:"name"`
	Bytes   int64  `json:"bytes"`
	SHA256  string `json:"sha256,omitempty"`  // of its content; of many files, over a line each: name, bytes, version or sha256
	Version string `json:"version,omitempty"` // of an object: its ETag or generation
	Files   int64  `json:"files,omitempty"`   // 0: this is one
	Names   string `json:"names,omitempty"`   // of many files: sha256 over a line each: name, bytes
}

// Shard is one Parquet file.
type Shard struct {
	Name   string `json:"name"` // in the set's folder
	Rows   int64  `json:"rows"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`

	// Of the end of the file: what has to be read before any of its pages,
	// and says where they are and what their checksums are. Since version 2.
	IndexBytes  int64  `json:"index_bytes,omitempty"`
	IndexSHA256 string `json:"index_sha256,omitempty"`
}

// Counts is what a split holds.
type Counts struct {
	Documents     int64   `json:"documents"`
	Rows          int64   `json:"rows"`           // sequences
	Tokens        int64   `json:"tokens"`         // in the sequences: Rows · SeqLen
	TokensDropped int64   `json:"tokens_dropped"` // left over when documents were cut into sequences
	Shards        []Shard `json:"shards"`         // by index
}

// Manifest says what is in a token set and where it came from.
type Manifest struct {
	Version    int               `json:"version"`
	Tokenizer  Tokenizer         `json:"tokenizer"`
	SeqLen     int               `json:"seq_len"`
	Seed       int64             `json:"seed"`
	Sample     float64           `json:"sample"`     // share of the documents that was taken
	Validation float64           `json:"validation"` // share of those that went to the validation split
	Splits     map[Split]*Counts `json:"splits"`
	Inputs     []Input           `json:"inputs"`
	Replaced   int64             `json:"replaced,omitempty"` // invalid parts of UTF-8 in the inputs, each read as U+FFFD; by older versions only

	// Corpus identifies the documents that were read, whatever files they came
	// in: hex sha256, "" where an older version made the set.
	Corpus string `json:"corpus,omitempty"`
	// Sequences is how many sequences of the train split were asked for, drawn
	// at random; 0: all.
	Sequences int64 `json:"sequences,omitempty"`
	// Subsets of the train split, each inside the next: the first shards.
	Subsets []Subset `json:"subsets,omitempty"`
	// Deduplicated says that of equal documents one was taken.
	Deduplicated bool   `json:"deduplicated,omitempty"`
	Duplicates   int64  `json:"duplicates,omitempty"` // documents left out for that
	Clean        string `json:"clean,omitempty"`      // what was done to the text
	// OnBad is what was to happen to a bad document, and Omitted what did.
	OnBad       string   `json:"on_bad_document,omitempty"`
	MaxDocument int64    `json:"max_document,omitempty"` // bytes of the longest one that was let in
	ShardTokens int64    `json:"shard_tokens,omitempty"` // aimed at
	Omitted     *Omitted `json:"omitted,omitempty"`
}

// Subset is a named part of the train split, drawn at random: its first shards.
type Subset struct {
	Name   string `json:"name"`
	Tokens int64  `json:"tokens"` // that were asked for
	Rows   int64  `json:"rows"`
	Shards int    `json:"shards"`
}

// maxNamed is how many documents an Omitted names; it counts all.
const maxNamed = 1000

// Omitted is what of the input was not taken.
type Omitted struct {
	Empty int64            `json:"empty,omitempty"` // documents without text
	Bad   map[string]int64 `json:"bad,omitempty"`   // by kind
	Named []string         `json:"named,omitempty"` // the first of the bad ones: where, and what is wrong
}

// Add counts a bad document.
func (o *Omitted) Add(kind, named string) {
	if o.Bad == nil {
		o.Bad = map[string]int64{}
	}
	o.Bad[kind]++
	if len(o.Named) < maxNamed {
		o.Named = append(o.Named, named)
	}
}

// Merge adds what another part of the input counted.
func (o *Omitted) Merge(p *Omitted) {
	o.Empty += p.Empty
	for kind, n := range p.Bad {
		if o.Bad == nil {
			o.Bad = map[string]int64{}
		}
		o.Bad[kind] += n
	}
	o.Named = append(o.Named, p.Named[:min(len(p.Named), maxNamed-len(o.Named))]...)
}

// Total is how many bad documents there were.
func (o *Omitted) Total() (n int64) {
	for _, k := range o.Bad {
		n += k
	}
	return n
}

// ParseManifest reads and checks a manifest.json.
func ParseManifest(data []byte) (*Manifest, error) {
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", ManifestFile, err)
	}
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", ManifestFile, err)
	}
	return &m, nil
}

// Validate says what of a manifest contradicts itself or the format.
func (m *Manifest) Validate() error {
	if m.Version < 1 || m.Version > Version {
		return fmt.Errorf("version %d: this program reads versions 1 to %d", m.Version, Version)
	}
	if m.SeqLen < 1 || m.SeqLen > maxSeqLen {
		return fmt.Errorf("seq_len is %d", m.SeqLen)
	}
	if t := m.Tokenizer; t.Vocab < 1 || t.Vocab > 1<<31-1 || t.EndOfText < 0 || int(t.EndOfText) >= t.Vocab {
		return fmt.Errorf("tokenizer with a vocabulary of %d and end of text %d", t.Vocab, t.EndOfText)
	}
	names := map[string]bool{}
	for split, c := range m.Splits {
		if split != Train && split != Validation {
			return fmt.Errorf("split %q: want %s or %s", split, Train, Validation)
		}
		if c == nil || c.Documents < 0 || c.TokensDropped < 0 || len(c.Shards) > maxShards {
			return fmt.Errorf("split %s: bad counts", split)
		}
		var rows int64
		for i, s := range c.Shards {
			if s.Name == "" || s.Name != filepath.Base(s.Name) || filepath.Ext(s.Name) != ".parquet" || names[s.Name] {
				return fmt.Errorf("split %s: shard %d: name %q", split, i, s.Name)
			}
			names[s.Name] = true
			if s.Rows < 0 || s.Rows > maxRows || s.Bytes < 0 {
				return fmt.Errorf("split %s: shard %s: %d rows in %d bytes", split, s.Name, s.Rows, s.Bytes)
			}
			if b, err := hex.DecodeString(s.SHA256); err != nil || len(b) != sha256.Size {
				return fmt.Errorf("split %s: shard %s: sha256 %q", split, s.Name, s.SHA256)
			}
			if b, err := hex.DecodeString(s.IndexSHA256); m.Version > 1 && (err != nil || len(b) != sha256.Size || s.IndexBytes < 1 || s.IndexBytes > s.Bytes) {
				return fmt.Errorf("split %s: shard %s: an index of %d bytes, sha256 %q", split, s.Name, s.IndexBytes, s.IndexSHA256)
			}
			rows += s.Rows
		}
		if rows != c.Rows || c.Tokens != rows*int64(m.SeqLen) {
			return fmt.Errorf("split %s: %d rows and %d tokens, its shards have %d and %d", split, c.Rows, c.Tokens, rows, rows*int64(m.SeqLen))
		}
	}
	if len(names) == 0 {
		return errors.New("no shards")
	}
	return m.validateSubsets()
}

// validateSubsets checks that each subset is whole shards and inside the next.
func (m *Manifest) validateSubsets() error {
	var rows int64
	shards, seen := 0, map[string]bool{}
	for _, s := range m.Subsets {
		c := m.Splits[Train]
		if c == nil || s.Name == "" || seen[s.Name] || s.Shards < shards || s.Shards > len(c.Shards) {
			return fmt.Errorf("subset %q of %d shards", s.Name, s.Shards)
		}
		seen[s.Name] = true
		for ; shards < s.Shards; shards++ {
			rows += c.Shards[shards].Rows
		}
		if rows != s.Rows {
			return fmt.Errorf("subset %q: %d rows, its shards have %d", s.Name, s.Rows, rows)
		}
	}
	return nil
}

// Fingerprint identifies a token set by its content: hex sha256 over the
// tokenizer, the sequence length and each shard's name, rows and sha256. Where
// the text lay and how much of it was dropped does not matter.
func (m *Manifest) Fingerprint() string {
	h := sha256.New()
	fmt.Fprintf(h, "token set %d %s %d %d\n", m.Version, m.Tokenizer.SHA256, m.Tokenizer.Vocab, m.SeqLen)
	for _, split := range []Split{Train, Validation} {
		if c := m.Splits[split]; c != nil {
			for _, s := range c.Shards {
				fmt.Fprintf(h, "%s %s %d %s\n", split, s.Name, s.Rows, s.SHA256)
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// WriteManifest completes a token set: every shard that it names must be in
// the folder already.
func WriteManifest(dir string, m *Manifest) error {
	m.Version = Version
	if err := m.Validate(); err != nil {
		return fmt.Errorf("token set %s: %w", dir, err)
	}
	if err := sizes(dir, m); err != nil {
		return fmt.Errorf("token set %s: %w", dir, err)
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("token set %s: %w", dir, err)
	}
	return store.WriteFile(context.Background(), store.Join(dir, ManifestFile), func(w io.Writer) error {
		_, err := w.Write(append(data, '\n'))
		return err
	})
}

// sizes tells a shard that is missing or cut short, without reading it.
func sizes(dir string, m *Manifest) error {
	size := func(name string) (int64, error) {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return 0, err
		}
		return st.Size(), nil
	}
	if store.Remote(dir) { // one list, and not a question for each
		there := map[string]int64{}
		for i, err := range store.List(context.Background(), dir) {
			if err != nil {
				return err
			}
			there[store.Base(i.Path)] = i.Size
		}
		size = func(name string) (int64, error) {
			if n, ok := there[name]; ok {
				return n, nil
			}
			return 0, os.ErrNotExist
		}
	}
	for _, split := range []Split{Train, Validation} {
		c := m.Splits[split]
		if c == nil {
			continue
		}
		for _, s := range c.Shards {
			bytes, err := size(s.Name)
			if errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("shard %s is missing", s.Name)
			} else if err != nil {
				return fmt.Errorf("shard %s: %w", s.Name, err)
			}
			if bytes != s.Bytes {
				return fmt.Errorf("shard %s: %d bytes, the manifest says %d: truncated, or of another run", s.Name, bytes, s.Bytes)
			}
		}
	}
	return nil
}
