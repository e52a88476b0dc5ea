package trainers

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/activation"
)

// part is one layer's part of a batch, in the making: the records as they came,
// whose values stay in their messages' memory.
type part struct {
	stream   *stream
	topic    *topic
	tokens   []int32 // of the rows so far
	target   gpu.Target
	messages []message // of the same rows
	lost     []int     // rows whose record was rejected: they are in none of these
	done     int       // rows
}

// append adds the next row; a message without a record is one that is lost.
func (p *part) append(at place, m message) error {
	p.done++
	r := m.record
	if r == nil {
		p.lost = append(p.lost, p.done-1)
		return nil
	}
	p.tokens, p.messages = append(p.tokens, r.Tokens...), append(p.messages, m)
	if p.topic.layer == activation.Tokens {
		return nil
	}
	if p.target.Type == "" {
		if p.target.Type = p.stream.dtype; p.target.Type == "" {
			p.target.Type = r.Type
		}
		p.target.Layer = p.topic.layer
	}
	if r.Type != p.target.Type {
		return fmt.Errorf("topic %s: %v: the record's values are %s, those before it %s", p.topic.name, at, r.Type, p.target.Type)
	}
	p.target.Rows = append(p.target.Rows, r.Values)
	p.target.Scales = append(p.target.Scales, r.Scales...)
	return nil
}

// take takes one of the rows that are there out.
func (p *part) take(row int) {
	there := len(p.messages)
	p.stream.memory.give(p.messages[row].value)
	p.tokens, p.messages = cut(p.tokens, row, there), cut(p.messages, row, there)
	p.target.Rows, p.target.Scales = cut(p.target.Rows, row, there), cut(p.target.Scales, row, there)
}

// truncate takes out all but the first rows.
func (p *part) truncate(rows int) {
	for p.done > rows {
		p.done--
		if n := len(p.lost); n > 0 && p.lost[n-1] == p.done {
			p.lost = p.lost[:n-1]
			continue
		}
		p.take(len(p.messages) - 1)
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
		p.take(row)
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
	b.release = func() {
		for _, p := range parts {
			for _, m := range p.messages {
				s.memory.give(m.value)
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
