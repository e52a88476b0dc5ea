package tokenset

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"
	"sync"

	"github.com/scavenge/scavenge/schemas/store"
)

// Course is what is visited epoch after epoch: one token set again and again,
// or the parts of a growing one, each once.
type Course interface {
	// Epoch is the token set of an epoch, from 0. The error is ErrNoPart where a
	// growing set has not grown so far.
	Epoch(n int64) (*Set, error)
}

// Epoch is the set itself: it is the same in every epoch.
func (s *Set) Epoch(int64) (*Set, error) { return s, nil }

// ErrNoPart says that a growing token set does not have a part yet.
var ErrNoPart = errors.New("not there yet")

// ErrGrowing says that a folder is a growing token set, where a whole one is
// needed.
var ErrGrowing = errors.New("it is a growing token set: name one of its parts")

// Series is a token set that grows: a folder of token sets
//
//	part-00000/ part-00001/ part-00002/ …
//
// of one tokenizer and sequence length. A part belongs to it from the moment
// that it has its manifest, and never changes. The sequence ids of a part go on
// after those of the parts before it: its shards are counted on. Epoch n is part
// n. Its methods may be called from several goroutines.
type Series struct {
	dir string

	mu     sync.Mutex
	shards []int64 // in all parts before part i; one more than there are known parts
	open   []opened
	first  *Set
}

type opened struct {
	part int64
	set  *Set
}

// opened parts are kept while readers are on both sides of a part's end, and
// some of them late.
const keptParts = 3

// PartName is the folder of a part.
func PartName(n int64) string { return fmt.Sprintf("part-%05d", n) }

// OpenSeries opens a growing token set, which has a first part at least.
func OpenSeries(dir string) (*Series, error) {
	if whole, err := isWhole(dir); err != nil {
		return nil, fmt.Errorf("token set %s: %w", dir, err)
	} else if whole {
		return nil, fmt.Errorf("token set %s: it is whole and does not grow: name a folder whose token sets are %s, %s, …", dir, PartName(0), PartName(1))
	}
	if !folderExists(dir) {
		return nil, fmt.Errorf("token set %s: no such folder", dir)
	}
	s := &Series{dir: dir, shards: []int64{0}}
	first, err := s.Epoch(0)
	if errors.Is(err, ErrNoPart) {
		return nil, fmt.Errorf("token set %s: it has no %s yet: make it with pipelines/tokenize --output %s", dir, PartName(0), store.Join(dir, PartName(0)))
	}
	s.first = first
	return s, err
}

// First is the first part: what holds for all, and the held-out sequences.
func (s *Series) First() *Set { return s.first }

// Epoch is a part. The error is ErrNoPart where it, or one before it, is not
// whole yet.
func (s *Series) Epoch(n int64) (*Set, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for known := int64(len(s.shards)) - 1; known <= n; known++ {
		set, err := s.load(known)
		if err != nil {
			return nil, err
		}
		shards := s.shards[known]
		for _, split := range []Split{Train, Validation} {
			if c := set.Manifest.Splits[split]; c != nil {
				shards = max(shards, s.shards[known]+int64(len(c.Shards)))
			}
		}
		if shards > maxShards {
			return nil, fmt.Errorf("token set %s: %s is its shard number %d: want at most %d in all: make larger shards (pipelines/tokenize --shard-tokens)", s.dir, PartName(known), shards, maxShards)
		}
		s.shards = append(s.shards, shards)
	}
	return s.load(n)
}

// load opens a part, all before which are known.
func (s *Series) load(n int64) (*Set, error) {
	for i, o := range s.open {
		if o.part == n {
			s.open = append(slices.Delete(s.open, i, i+1), o)
			return o.set, nil
		}
	}
	dir := store.Join(s.dir, PartName(n))
	if whole, err := isWhole(dir); err != nil {
		return nil, fmt.Errorf("token set %s: %w", dir, err)
	} else if !whole {
		return nil, fmt.Errorf("token set %s: %w", dir, ErrNoPart)
	}
	set, err := Open(dir)
	if err != nil {
		return nil, err
	}
	if f := s.first; f != nil {
		switch a, b := set.Manifest, f.Manifest; {
		case a.Tokenizer != b.Tokenizer:
			return nil, fmt.Errorf("token set %s: it was made with another tokenizer than %s (%.12s, want %.12s): move it away and make it again", dir, PartName(0), a.Tokenizer.SHA256, b.Tokenizer.SHA256)
		case a.SeqLen != b.SeqLen:
			return nil, fmt.Errorf("token set %s: its sequences have %d tokens, those of %s %d: move it away and make it again", dir, a.SeqLen, PartName(0), b.SeqLen)
		}
	}
	set.base = s.shards[n]
	if len(s.open) == keptParts {
		s.open = slices.Delete(s.open, 0, 1)
	}
	s.open = append(s.open, opened{n, set})
	return set, nil
}

// isWhole tells whether a folder has a manifest.
func isWhole(dir string) (bool, error) {
	_, err := store.Stat(context.Background(), store.Join(dir, ManifestFile))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Order is the canonical order of a part, which has to be there.
func (s *Series) Order(split Split, seed, epoch int64) []int64 {
	set, err := s.Epoch(epoch)
	if err != nil {
		return nil
	}
	return set.Order(split, seed, epoch)
}

// Sequence is one sequence of a part that is known.
func (s *Series) Sequence(split Split, id int64) ([]int32, error) {
	return s.AppendSequence(nil, split, id)
}

// AppendSequence is Sequence into memory that is there.
func (s *Series) AppendSequence(dst []int32, split Split, id int64) ([]int32, error) {
	s.mu.Lock()
	n := sort.Search(len(s.shards)-1, func(i int) bool { return s.shards[i+1] > id>>32 })
	known := id >= 0 && n < len(s.shards)-1
	var set *Set
	var err error
	if known {
		set, err = s.load(int64(n))
	}
	s.mu.Unlock()
	switch {
	case !known:
		return dst, fmt.Errorf("token set %s: none of its %d parts has sequence %d", s.dir, len(s.shards)-1, id)
	case err != nil:
		return dst, err
	}
	return set.AppendSequence(dst, split, id)
}
