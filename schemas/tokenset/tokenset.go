// Package tokenset holds tokenised text on disk, ready to train on: a folder
// of Parquet files and a manifest.
//
//	train-00000-of-00004.parquet …  one row a sequence of exactly seq_len tokens
//	validation-00000-of-00001.parquet …
//	manifest.json                   what is in them; written last, so a folder with it is whole
//
// The columns of a shard are sequence_id (int64: the shard's index · 2³² + the
// row) and tokens (list of int32). Both are required, the list's elements too.
// pandas, DuckDB and Hugging Face datasets read the files with no help. The
// same rows give the same bytes.
//
// Tokens lie in a shard as they are, two bytes each where the vocabulary
// allows: twice what zstd would leave of them, and any sequence is read from
// its place in the file, at the speed of the page cache, in whatever order. A
// shard's index is verified when it is opened and a page the first time that
// something in it is read, so that no damage goes into a batch; Verify checks
// whole files.
//
// The documents of a split come in a random order, each ended by the end of
// text, one after the other. A subset of the train split is its first shards:
// `FOLDER#name` opens it as a set of its own.
//
// Everything that trains on a token set visits its sequences in the order that
// Set.Order gives, a pure function of manifest, seed and epoch.
package tokenset

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/scavenge/scavenge/schemas/store"
)

// Set is a whole token set, open for reading. Its methods may be called from
// several goroutines.
type Set struct {
	Manifest *Manifest

	dir         string
	fingerprint string
	base        int64 // the number of its first shard, in a Series

	mu     sync.Mutex
	open   map[place]*paged
	recent []place   // of those, the one opened last at the end
	cache  []*loaded // of version 1; newest first
}

// place names a shard of a set.
type place struct {
	split Split
	shard int
}

// maxOpen is how many shards a Set keeps open: of each a file, and 32 bytes
// for each of its pages.
const maxOpen = 256

// cached is how many decoded shards of version 1 a Set keeps: the canonical
// order leaves a shard only when it has used it up, and two shards overlap in
// a batch.
const cached = 2

type loaded struct {
	place
	tokens []int32 // rows · seq_len
}

// Open opens the token set in a folder, local or in a bucket, or a subset of
// one, FOLDER#name. Shards are opened when Sequence first needs them.
func Open(dir string) (*Set, error) {
	if i := strings.LastIndexByte(dir, '#'); i >= 0 {
		if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) || store.Remote(dir) {
			return openSubset(dir[:i], dir[i+1:])
		}
	}
	data, err := store.ReadFile(context.Background(), store.Join(dir, ManifestFile))
	if errors.Is(err, os.ErrNotExist) {
		if !folderExists(dir) {
			return nil, fmt.Errorf("token set %s: no such folder", dir)
		}
		if first := store.Join(dir, PartName(0)); folderExists(first) {
			return nil, fmt.Errorf("token set %s: %w, %s for instance", dir, ErrGrowing, first)
		}
		return nil, fmt.Errorf("token set %s: not a whole token set: it has no %s", dir, ManifestFile)
	} else if err != nil {
		return nil, fmt.Errorf("token set: %w", err)
	}
	m, err := ParseManifest(data)
	if err != nil {
		return nil, fmt.Errorf("token set %s: %w", dir, err)
	}
	if err := sizes(dir, m); err != nil {
		return nil, fmt.Errorf("token set %s: %w", dir, err)
	}
	return &Set{Manifest: m, dir: dir, fingerprint: m.Fingerprint()}, nil
}

// folderExists says whether there is anything where a token set was looked for.
func folderExists(dir string) bool {
	if !store.Remote(dir) {
		_, err := os.Stat(dir)
		return !errors.Is(err, os.ErrNotExist)
	}
	for _, err := range store.List(context.Background(), dir) {
		return err == nil
	}
	return false
}

// openSubset opens a part of the train split, with the whole validation split.
func openSubset(dir, name string) (*Set, error) {
	s, err := Open(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for i, sub := range s.Manifest.Subsets {
		if sub.Name != name {
			names = append(names, sub.Name)
			continue
		}
		m := *s.Manifest
		c := *m.Splits[Train]
		c.Shards, c.Rows, c.Tokens = c.Shards[:sub.Shards], sub.Rows, sub.Rows*int64(m.SeqLen)
		m.Splits, m.Subsets = map[Split]*Counts{Train: &c}, m.Subsets[:i+1]
		if v := s.Manifest.Splits[Validation]; v != nil {
			m.Splits[Validation] = v
		}
		return &Set{Manifest: &m, dir: dir, fingerprint: m.Fingerprint()}, nil
	}
	return nil, fmt.Errorf("token set %s: no subset %q; it has: %s", dir, name, cmp.Or(strings.Join(names, ", "), "none"))
}

// Fingerprint is the manifest's.
func (s *Set) Fingerprint() string { return s.fingerprint }

// Rows is the number of sequences of a split.
func (s *Set) Rows(split Split) int64 {
	if c := s.Manifest.Splits[split]; c != nil {
		return c.Rows
	}
	return 0
}

// ID is the sequence_id of a row of a shard.
func ID(shard int, row int64) int64 { return int64(shard)<<32 | row }

// id is the sequence id of a row of a shard of this set.
func (s *Set) id(shard int, row int64) int64 { return ID(int(s.base)+shard, row) }

// IDs lists a split's sequences as the shards hold them.
func (s *Set) IDs(split Split) []int64 {
	ids := make([]int64, 0, s.Rows(split))
	if c := s.Manifest.Splits[split]; c != nil {
		for i, shard := range c.Shards {
			for row := range shard.Rows {
				ids = append(ids, s.id(i, row))
			}
		}
	}
	return ids
}

// Order is the canonical order of an epoch over a split: the shards in a
// random order and, within each, its rows in a random order, so that a reader
// needs one shard at a time. Equal manifests, seeds and epochs give equal
// orders on every machine and version.
func (s *Set) Order(split Split, seed, epoch int64) []int64 {
	c := s.Manifest.Splits[split]
	if c == nil {
		return nil
	}
	var key [16]byte
	binary.LittleEndian.PutUint64(key[:8], uint64(seed))
	binary.LittleEndian.PutUint64(key[8:], uint64(epoch))
	h := sha256.Sum256(key[:]) // neighbouring seeds and epochs must have nothing in common
	r := rand.NewPCG(binary.LittleEndian.Uint64(h[:8]), binary.LittleEndian.Uint64(h[8:]))

	shards := make([]int64, len(c.Shards))
	for i := range shards {
		shards[i] = int64(i)
	}
	shuffle(r, shards)
	ids := make([]int64, 0, c.Rows)
	for _, i := range shards {
		start := len(ids)
		for row := range c.Shards[i].Rows {
			ids = append(ids, s.id(int(i), row))
		}
		shuffle(r, ids[start:])
	}
	return ids
}

// shuffle is Fisher and Yates's. It is written out because math/rand's own may
// use its source differently in another version of Go.
func shuffle(r *rand.PCG, v []int64) {
	for i := len(v) - 1; i > 0; i-- {
		j, _ := bits.Mul64(r.Uint64(), uint64(i+1)) // uniform in [0, i] but for 2⁻³²
		v[i], v[j] = v[j], v[i]
	}
}

// Sequence is one sequence's SeqLen tokens; the caller's own. It reads
// no more than a page, in any order of the ids. An error names the shard and,
// where the file is damaged, the page.
func (s *Set) Sequence(split Split, id int64) ([]int32, error) {
	return s.AppendSequence(nil, split, id)
}

// AppendSequence is Sequence into memory that is there.
func (s *Set) AppendSequence(dst []int32, split Split, id int64) ([]int32, error) {
	c := s.Manifest.Splits[split]
	shard, row := id>>32-s.base, id&(1<<32-1)
	if c == nil || id < 0 || shard < 0 || shard >= int64(len(c.Shards)) || row >= c.Shards[shard].Rows {
		return dst, fmt.Errorf("token set %s: the %s split has no sequence %d", s.dir, split, id)
	}
	at := place{split, int(shard)}
	n := s.Manifest.SeqLen
	if s.Manifest.Version == 1 {
		l, err := s.load(at)
		if err != nil {
			return dst, err
		}
		return append(dst, l.tokens[int(row)*n:(int(row)+1)*n]...), nil
	}
	p, err := s.paged(at)
	if err != nil {
		return dst, err
	}
	dst = slices.Grow(dst, n)
	if err := p.read(dst[len(dst):len(dst)+n], row); err != nil {
		return dst, s.wrap(at, err)
	}
	return dst[:len(dst)+n], nil
}

func (s *Set) info(p place) Shard { return s.Manifest.Splits[p.split].Shards[p.shard] }

func (s *Set) path(p place) string { return store.Join(s.dir, s.info(p).Name) }

func (s *Set) wrap(p place, err error) error {
	return fmt.Errorf("token set %s: shard %s: %w", s.dir, s.info(p).Name, err)
}

// paged is a shard that is open, or is opened now.
func (s *Set) paged(at place) (*paged, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.open[at]; p != nil {
		return p, nil
	}
	p, err := openPaged(s.path(at), s.info(at), s.Manifest.SeqLen, s.Manifest.Tokenizer.Vocab)
	if err != nil {
		return nil, s.wrap(at, err)
	}
	if len(s.recent) == maxOpen { // someone may be reading it: the file is closed when it is garbage
		delete(s.open, s.recent[0])
		s.recent = append(s.recent[:0], s.recent[1:]...)
	}
	if s.open == nil {
		s.open = map[place]*paged{}
	}
	s.open[at], s.recent = p, append(s.recent, at)
	return p, nil
}

// load is a decoded shard of version 1.
func (s *Set) load(at place) (*loaded, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, l := range s.cache {
		if l.place == at {
			copy(s.cache[1:i+1], s.cache[:i])
			s.cache[0] = l
			return l, nil
		}
	}
	if len(s.cache) == cached { // let go of the oldest before the next one is made
		s.cache[cached-1] = nil
		s.cache = s.cache[:cached-1]
	}
	tokens, err := s.decode(at)
	if err != nil {
		return nil, err
	}
	l := &loaded{at, tokens}
	s.cache = append([]*loaded{l}, s.cache...)
	return l, nil
}

// decode reads a whole shard.
func (s *Set) decode(at place) ([]int32, error) {
	tokens, err := readShard(s.path(at), s.info(at), at.shard, s.Manifest.SeqLen, s.Manifest.Tokenizer.Vocab)
	if err != nil {
		return nil, s.wrap(at, err)
	}
	return tokens, nil
}

// Verify reads a split's shard of index i from end to end, as a Parquet file of
// anybody's, and checks the sha256 of all of it and what is in it.
func (s *Set) Verify(split Split, i int) error {
	if c := s.Manifest.Splits[split]; c == nil || i < 0 || i >= len(c.Shards) {
		return fmt.Errorf("token set %s: the %s split has no shard %d", s.dir, split, i)
	}
	_, err := s.decode(place{split, i})
	return err
}
