package trainers

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/activation"
)

// part is one layer's part of a batch. Records are copied into it as they come,
// so that their own memory is free again at once.
type part struct {
	stream *stream
	topic  *topic
	rows   int     // in the end, those that are lost among them
	tokens []int32 // of the rows so far
	target gpu.Target
	lost   []int // rows whose record was rejected: they are not in tokens and target
	done   int   // rows
}

// append adds the next row; nil is one that is lost.
func (p *part) append(at place, r *activation.Record) error {
	p.done++
	if r == nil {
		p.lost = append(p.lost, p.done-1)
		return nil
	}
	p.tokens = append(p.tokens, r.Tokens...)
	if p.topic.layer == activation.Tokens {
		return nil
	}
	if p.target.Type == "" {
		if p.target.Type = p.stream.dtype; p.target.Type == "" {
			p.target.Type = r.Type
		}
		p.target.Layer, p.target.Values = p.topic.layer, p.stream.spare.take(p.rows*len(r.Values))
	}
	if r.Type != p.target.Type {
		return fmt.Errorf("topic %s: %v: the record's values are %s, those before it %s", p.topic.name, at, r.Type, p.target.Type)
	}
	p.target.Values = append(p.target.Values, r.Values...)
	p.target.Scales = append(p.target.Scales, r.Scales...)
	return nil
}

// truncate takes out all but the first rows.
func (p *part) truncate(rows int) {
	there := p.done - len(p.lost)
	for p.done > rows {
		p.done--
		if n := len(p.lost); n > 0 && p.lost[n-1] == p.done {
			p.lost = p.lost[:n-1]
			continue
		}
		there--
		p.tokens = p.tokens[:there*p.stream.plan.Length]
		p.target.Values, p.target.Scales = cut(p.target.Values, there, there+1), cut(p.target.Scales, there, there+1)
	}
}

// drop takes rows out that other layers have lost.
func (p *part) drop(lost []int) {
	for k := len(lost) - 1; k >= 0; k-- { // from the end: rows before stay where they are
		if slices.Contains(p.lost, lost[k]) {
			continue
		}
		row := lost[k]
		for _, mine := range p.lost {
			if mine < lost[k] {
				row--
			}
		}
		there := p.done - len(p.lost)
		p.tokens = cut(p.tokens, row, there)
		p.target.Values, p.target.Scales = cut(p.target.Values, row, there), cut(p.target.Scales, row, there)
		p.lost = append(p.lost, lost[k])
	}
}

// cut takes one of so many rows out.
func cut[T any](list []T, row, rows int) []T {
	width := len(list) / rows
	return slices.Delete(list, row*width, (row+1)*width)
}

// assemble makes one batch of the layers' parts.
func (s *stream) assemble(places []place, parts []*part) (*Batch, error) {
	var lost []int
	for _, p := range parts {
		lost = append(lost, p.lost...)
	}
	slices.Sort(lost)
	lost = slices.Compact(lost)
	if len(lost) == len(places) {
		return nil, fmt.Errorf("topic %s: every record of the batch from %v on was rejected: there is nothing left to train on", s.topics[0].name, places[0])
	}
	if len(lost) > 0 {
		var left []place
		for i, at := range places {
			if !slices.Contains(lost, i) {
				left = append(left, at)
			}
		}
		places = left
		for _, p := range parts {
			p.drop(lost)
		}
	}
	b := newBatch(places, s.plan.Length)
	b.Tokens = parts[0].tokens
	var errs []error
	for i, p := range parts {
		if k := differ(b.Tokens, p.tokens); i > 0 && k >= 0 {
			errs = append(errs, fmt.Errorf("topic %s: %v: token %d is not that of layer %d", p.topic.name, places[k/s.plan.Length], k%s.plan.Length, s.topics[0].layer))
		}
		if p.topic.layer == activation.Tokens { // alone, or before the layers
			continue
		}
		if s.dtype == "" {
			s.dtype = p.target.Type
		}
		if p.target.Type != s.dtype {
			errs = append(errs, fmt.Errorf("topic %s: %v: the record's values are %s, those of topic %s %s", p.topic.name, places[0], p.target.Type, s.topics[i-1].name, s.dtype))
		}
		b.Targets = append(b.Targets, p.target)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
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

// spares are buffers that were used. What is made anew each time would be
// cleared before it is overwritten, and be in no cache.
type spares struct {
	most int // buffers that are kept
	mu   sync.Mutex
	list [][]byte
}

// take is an empty buffer of some capacity, the one that was given last if it
// is large enough.
func (s *spares) take(size int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.list) - 1; i >= 0; i-- {
		if b := s.list[i]; cap(b) >= size {
			s.list = slices.Delete(s.list, i, i+1)
			return b[:0]
		}
	}
	return make([]byte, 0, size)
}

// give keeps a buffer for take.
func (s *spares) give(b []byte) {
	if cap(b) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) == s.most { // the one that has lain longest goes: it may be too small for what comes
		s.list = slices.Delete(s.list, 0, 1)
	}
	s.list = append(s.list, b)
}

// differ is the first index at which b is not a; −1 if it is.
func differ(a, b []int32) int {
	for i, v := range b {
		if i >= len(a) || a[i] != v {
			return i
		}
	}
	return -1
}
