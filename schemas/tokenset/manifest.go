package tokenset

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/scavenge/scavenge/schemas/durable"
)

// ManifestFile is written last: a folder that has it is whole.
const ManifestFile = "manifest.json"

// Version is the format version of this package.
const Version = 1

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

// Input is a file that was read.
type Input struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256,omitempty"`
}

// Shard is one Parquet file.
type Shard struct {
	Name   string `json:"name"` // in the set's folder
	Rows   int64  `json:"rows"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
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
	Replaced   int64             `json:"replaced,omitempty"` // invalid parts of UTF-8 in the inputs, each read as U+FFFD
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
	if m.Version != Version {
		return fmt.Errorf("version %d: this program reads version %d", m.Version, Version)
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
			rows += s.Rows
		}
		if rows != c.Rows || c.Tokens != rows*int64(m.SeqLen) {
			return fmt.Errorf("split %s: %d rows and %d tokens, its shards have %d and %d", split, c.Rows, c.Tokens, rows, rows*int64(m.SeqLen))
		}
	}
	if len(names) == 0 {
		return errors.New("no shards")
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
	return durable.WriteFile(filepath.Join(dir, ManifestFile), func(w io.Writer) error {
		_, err := w.Write(append(data, '\n'))
		return err
	})
}

// sizes tells a shard that is missing or cut short, without reading it.
func sizes(dir string, m *Manifest) error {
	for _, split := range []Split{Train, Validation} {
		c := m.Splits[split]
		if c == nil {
			continue
		}
		for _, s := range c.Shards {
			st, err := os.Stat(filepath.Join(dir, s.Name))
			if errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("shard %s is missing", s.Name)
			} else if err != nil {
				return fmt.Errorf("shard %s: %w", s.Name, err)
			}
			if st.Size() != s.Bytes {
				return fmt.Errorf("shard %s: %d bytes, the manifest says %d: truncated, or of another run", s.Name, st.Size(), s.Bytes)
			}
		}
	}
	return nil
}
