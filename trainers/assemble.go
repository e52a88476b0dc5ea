package trainers

import (
	"fmt"
	"slices"
	"sync"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/activation"
)

// assemble copies records into one batch.
func (s *stream) assemble(places []place, rows [][]*activation.Record) (*Batch, error) {
	b := newBatch(places, s.plan.Length)
	for i, t := range s.topics {
		if t.layer == activation.Tokens { // alone, or before the layers
			for _, r := range rows[i] {
				b.Tokens = append(b.Tokens, r.Tokens...)
			}
			continue
		}
		target := gpu.Target{Layer: t.layer}
		for row, r := range rows[i] {
			if s.dtype == "" {
				s.dtype = r.Type
			}
			if r.Type != s.dtype {
				return nil, fmt.Errorf("topic %s: %v: the record's values are %s, those before it %s", t.name, places[row], r.Type, s.dtype)
			}
			if i == 0 {
				b.Tokens = append(b.Tokens, r.Tokens...)
			} else if k := differ(b.Tokens[row*s.plan.Length:], r.Tokens); k >= 0 {
				return nil, fmt.Errorf("topic %s: %v: token %d is not that of layer %d", t.name, places[row], k, s.topics[0].layer)
			}
			if target.Values == nil {
				target.Type, target.Values = r.Type, s.spare.take(len(rows[i])*len(r.Values))
			}
			target.Values = append(target.Values, r.Values...)
			target.Scales = append(target.Scales, r.Scales...)
		}
		b.Targets = append(b.Targets, target)
	}
	if targets := b.Targets; len(targets) > 0 {
		b.release = func() {
			for _, t := range targets {
				s.spare.give(t.Values)
			}
		}
	}
	return b, nil
}

// spares are buffers that were used. A batch's targets take tens of megabytes:
// made anew each time, they would be cleared before they are overwritten.
type spares struct {
	mu   sync.Mutex
	list [][]byte
}

// take is an empty buffer of some capacity.
func (s *spares) take(size int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, b := range s.list {
		if cap(b) >= size {
			s.list = slices.Delete(s.list, i, i+1)
			return b[:0]
		}
	}
	return make([]byte, 0, size)
}

// give keeps a buffer for take, up to so many as can be of use: those of the
// batches that are read ahead.
func (s *spares) give(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) < maxSpares {
		s.list = append(s.list, b)
	}
}

// maxSpares is enough for three batches of six layers.
const maxSpares = 18

// differ is the first index at which b is not a's beginning; −1 if it is.
func differ(a, b []int32) int {
	for i, v := range b {
		if i >= len(a) || a[i] != v {
			return i
		}
	}
	return -1
}
