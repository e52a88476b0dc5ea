//go:build cuda

package cuda

import (
	"errors"
	"fmt"

	"gorgonia.org/cu"

	"github.com/scavenge/scavenge/gpu"
)

// prefix keeps, by sequence, the residual stream in front of a block whose
// prefix is frozen: [slots, length, D] of the stored activations' type. A
// sequence met again starts there; in float32 also where it was kept for a block
// further down, once a layer above is trained. (In bf16 that would round the
// stream once more than a run from the tokens does.)
type prefix struct {
	cache  ptr
	length int
	limit  int             // slots that there is memory for
	slot   map[int64]int32 // by sequence id
	layer  []int           // of each slot: the block that it is in front of
	top    int             // highest of them
}

// forget empties the cache and keeps its memory.
func (c *prefix) forget() { c.slot, c.layer, c.top = map[int64]int32{}, nil, 0 }

// reuse says where a step behind a frozen prefix starts, and in which slots its
// sequences are kept from now on, −1: in none.
func (p *pass) reuse(s gpu.Step, move bool) {
	m, c := p.model, &p.prefix
	if move && (s.Objective != gpu.LayerMSE || c.top > s.Layer) { // what was kept is out of date
		c.forget()
	}
	p.b.lowest, p.b.rowSlots = 0, make([]int32, p.b.rows)
	for i := range p.b.rowSlots {
		p.b.rowSlots[i] = -1
	}
	if len(s.IDs) == 0 || p.b.from == 0 || p.b.from > p.b.top || p.err != nil {
		return
	}
	if p.note(m.reserve(p.b.length)); c.limit == 0 {
		return
	}
	start := p.b.from
	for i, id := range s.IDs {
		slot, ok := c.slot[id]
		switch {
		case ok:
			p.b.rowSlots[i] = slot
			if i == 0 {
				start = c.layer[slot]
			}
			if c.layer[slot] != start || start > p.b.from {
				start = 0
			}
		case len(c.layer) < c.limit:
			slot = int32(len(c.layer))
			c.slot[id], c.layer, p.b.rowSlots[i] = slot, append(c.layer, 0), slot
			start = 0
		default:
			start = 0
		}
	}
	if start < p.b.from && m.element == bf16s {
		start = 0
	}
	p.b.lowest = start
	for _, slot := range p.b.rowSlots {
		if slot >= 0 {
			c.layer[slot], c.top = p.b.from, max(c.top, p.b.from)
		}
	}
}

// reserve has the cache ready for sequences of a length.
func (m *model) reserve(length int) error {
	c := &m.prefix
	if c.length == length || m.options.PrefixCache == 0 {
		return nil
	}
	if err := m.dropPrefix(); err != nil {
		return err
	}
	c.length = length
	free, _, err := cu.MemInfo()
	if err != nil {
		return err
	}
	bytes, most := m.options.PrefixCache, free-free/10-1<<30
	if bytes < 0 || bytes > most {
		bytes = most
	}
	each := m.element.size() * int64(length) * int64(m.config.Dim)
	c.limit = int(max(0, bytes) / each)
	if c.limit == 0 {
		return nil
	}
	c.cache, err = m.engine.device.alloc(each*int64(c.limit), fmt.Sprintf("the frozen prefix's output for %d sequences", c.limit))
	return err
}

// dropPrefix gives the cache's memory back; graphs that use it go with it.
func (m *model) dropPrefix() error {
	c := &m.prefix
	c.forget()
	c.length, c.limit = 0, 0
	if c.cache == 0 {
		return nil
	}
	return errors.Join(m.forget(), m.engine.device.free(&c.cache))
}

// behindFrozen is the residual stream in front of block k behind a frozen prefix, from
// the cache or of x + m + f, which then goes there.
func (p *pass) behindFrozen(k *block, fromCache bool, x ptr) {
	b, d := p.b, p.config.Dim
	from := 0
	if fromCache {
		from = 1
	}
	p.kernel(fmt.Sprintf("residual_prefix_%d", chunks(d)), [3]int{ceil(b.n, 8), 1, 1}, [2]int{256, 1}, 0,
		x, b.mixed, b.fed, b.slots, p.prefix.cache, from, k.x, k.h, k.rstd, b.n, b.length, d, float32(p.config.Eps))
}
