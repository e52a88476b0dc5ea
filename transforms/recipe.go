package transforms

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"strings"

	"github.com/scavenge/scavenge/schemas/store"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// Recipe says how text becomes a token set. Its paths are absolute and seen by
// every worker.
type Recipe struct {
	Dir         string // of the token set; it exists
	Tokenizer   string // path of tokenizer.json
	Fingerprint string // of that file
	Vocab       int    // largest id + 1

	Rules       Rules
	SeqLen      int
	Seed        int64   // of all draws
	Documents   float64 // share of the documents that is taken, above 0 to 1
	Validation  float64 // share of those that goes to the validation split
	Deduplicate bool    // of equal documents, take one
	Sequences   int64   // of the train split, drawn at random; 0: all
	Subsets     []Subset
	ShardTokens int64 // about how many go into a shard

	// What the token set does not depend on.
	Groups     int    // that the input is read in
	RunTokens  int    // of a run; 0: DefaultRunTokens
	InputBytes int64  // in all
	InputName  string // as the user named it
}

// Subset asks for a random part of the train split, of at least so many tokens.
type Subset struct {
	Name   string
	Tokens int64
}

// Setting is one of the options that decide what a token set holds.
type Setting struct{ Name, Value string }

// Settings lists them. Where files lie is not among them, nor how bad
// documents are met with: that shows in what was omitted.
func (r Recipe) Settings() []Setting {
	subsets := ""
	for _, s := range r.Subsets {
		subsets += fmt.Sprintf(" %s=%d", s.Name, s.Tokens)
	}
	return []Setting{
		{"tokenizer", r.Fingerprint}, {"--seq-len", fmt.Sprint(r.SeqLen)}, {"--seed", fmt.Sprint(r.Seed)}, {"--documents", fmt.Sprint(r.Documents)},
		{"--validation", fmt.Sprint(r.Validation)}, {"--deduplicate", fmt.Sprint(r.Deduplicate)}, {"--sample", fmt.Sprint(r.Sequences)},
		{"--subset", strings.TrimSpace(subsets)}, {"--shard-tokens", fmt.Sprint(r.ShardTokens)}, {"--clean", fmt.Sprintf("%q", r.Rules.Clean)},
		{"--max-document", fmt.Sprint(r.Rules.maxDocument())},
	}
}

// RecipeOf is the recipe of a finished set, without its paths.
func RecipeOf(m *tokenset.Manifest) Recipe {
	r := Recipe{Fingerprint: m.Tokenizer.SHA256, SeqLen: m.SeqLen, Seed: m.Seed, Documents: m.Sample, Validation: m.Validation, Deduplicate: m.Deduplicated,
		Sequences: m.Sequences, ShardTokens: m.ShardTokens, Rules: Rules{Clean: m.Clean, MaxDocument: int(m.MaxDocument), Skip: m.OnBad == OnBadSkip}}
	for _, s := range m.Subsets {
		r.Subsets = append(r.Subsets, Subset{s.Name, s.Tokens})
	}
	return r
}

// What may happen to a bad document.
const (
	OnBadSkip = "skip"
	OnBadFail = "fail"
)

// hash identifies all that a shard depends on beside its place: the settings
// and the documents.
func (r Recipe) hash(corpus string) string {
	data, err := json.Marshal(r.Settings())
	if err != nil {
		panic(err) // strings only
	}
	h := sha256.New()
	fmt.Fprintf(h, "%d %s %s", tokenset.Version, data, corpus)
	return hex.EncodeToString(h.Sum(nil))
}

// WorkFolder is what a token set's folder holds until it is whole.
const WorkFolder = ".work"

func (r Recipe) work(name string) string { return store.Join(r.Dir, WorkFolder, name) }

// A document's id is the first half of its text's sha256: equal texts are one
// document, wherever they came from.
type docID = [16]byte

func idOf(text []byte) docID {
	h := sha256.Sum256(text)
	return docID(h[:16])
}

// What the draws are for.
const (
	forOrder      = "order"
	forSample     = "sample"
	forValidation = "validation"
)

// draw is uniform in 64 bits, a function of seed, purpose and document: and so
// not of the order, the file or the worker.
func draw(seed int64, what string, id docID) uint64 {
	var b [8 + 16 + 16]byte
	binary.LittleEndian.PutUint64(b[:], uint64(seed))
	copy(b[8:24], id[:])
	n := copy(b[24:], what)
	h := sha256.Sum256(b[:24+n])
	return binary.LittleEndian.Uint64(h[:])
}

// chosen draws with the given chance.
func chosen(seed int64, what string, id docID, chance float64) bool {
	if chance <= 0 || chance >= 1 {
		return chance >= 1
	}
	return float64(draw(seed, what, id)>>11)/(1<<53) < chance
}

// splitOf is the split that a document goes to; ok is false for one that the
// sample of documents leaves out.
func (r Recipe) splitOf(id docID) (split tokenset.Split, ok bool) {
	switch {
	case !chosen(r.Seed, forSample, id, r.Documents):
		return "", false
	case chosen(r.Seed, forValidation, id, r.Validation):
		return tokenset.Validation, true
	}
	return tokenset.Train, true
}

// ranks puts the numbers below n into a random order: rank is a permutation of
// [0, n), computed for one number at a time and so in no memory. It is a
// Feistel network over the next power of four, walked until it is back in
// range (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
type ranks struct {
	n    uint64
	half uint // bits
	keys [6]uint64
}

func newRanks(n, seed int64) *ranks {
	r := &ranks{n: uint64(n), half: 1}
	for r.half < 31 && uint64(1)<<(2*r.half) < r.n {
		r.half++
	}
	for i := range r.keys {
		r.keys[i] = draw(seed, "sequence", docID{byte(i)})
	}
	return r
}

func (r *ranks) rank(i int64) int64 {
	mask := uint64(1)<<r.half - 1
	x := uint64(i)
	for {
		a, b := x>>r.half, x&mask
		for _, k := range r.keys {
			a, b = b, a^mix(b^k)&mask
		}
		if x = a<<r.half | b; x < r.n {
			return int64(x)
		}
	}
}

// mix is the finaliser of SplitMix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return x ^ x>>31
}

// sequencesFor is how many sequences hold at least so many tokens.
func sequencesFor(tokens int64, seqLen int) int64 {
	return int64(math.Ceil(float64(tokens) / float64(seqLen)))
}
