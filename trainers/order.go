package trainers

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/scavenge/scavenge/schemas/tokenset"
)

// Shuffle changes the canonical order for one trainer, so that several learn
// from one topic in different orders. The canonical order is cut into windows
// and each is permuted, by the seed and the epoch alone. A reader of a stream
// holds at most a window's records; the state of the shuffle is the position.
type Shuffle struct {
	Window int // sequences; 0 or 1: the canonical order
	Seed   int64
}

// place is one sequence in an order of an epoch.
type place struct {
	epoch, index, id int64
}

func (p place) String() string {
	return fmt.Sprintf("epoch %d, sequence %d (number %d of its epoch)", p.epoch, p.id, p.index)
}

// order walks the order in which a source hands sequences out, and knows the
// canonical one behind it, in which topics hold them. Only take may not be
// called by several goroutines.
type order struct {
	tokens  Tokens
	seed    int64
	shuffle Shuffle
	epoch   int64 // of the next place
	index   int64
	ids     []int64 // of this epoch, shuffled
	left    int64   // places before the plan's end; where that is open, more than there will be
	length  int64   // of this epoch

	mu     sync.Mutex
	epochs []canonical // the latest ones used, newest at the end
}

// canonical is an epoch's canonical order.
type canonical struct {
	epoch int64
	ids   []int64
	ranks map[int64]int64 // index by id; nil until needed
}

func newOrder(p Plan) (*order, error) {
	o := &order{tokens: p.Tokens, seed: p.Seed, shuffle: p.Shuffle, epoch: p.Start.Epoch, index: p.Start.Index, left: p.Total}
	if o.epoch < 0 || o.index < 0 {
		return nil, fmt.Errorf("position %d of epoch %d", o.index, o.epoch)
	}
	o.enter(o.epoch)
	if o.length == 0 && !p.Follow {
		return nil, fmt.Errorf("the token set has no training sequences")
	}
	if o.index > o.length {
		return nil, fmt.Errorf("position %d of epoch %d is outside the token set's %d training sequences", o.index, o.epoch, o.length)
	}
	if p.Follow {
		o.left = math.MaxInt64
	} else {
		o.left -= o.epoch*o.length + o.index
	}
	return o, nil
}

func (o *order) enter(epoch int64) {
	o.epoch, o.ids = epoch, o.shuffled(epoch)
	o.length = int64(len(o.ids))
}

// ended tells whether no place of this epoch is left.
func (o *order) ended() bool { return o.index == o.length }

// take gives the next n places, fewer at the plan's end.
func (o *order) take(n int) []place {
	list := make([]place, 0, n)
	for ; len(list) < n && o.left > 0; o.left-- {
		if o.ended() {
			o.enter(o.epoch + 1)
			o.index = 0
		}
		list = append(list, place{o.epoch, o.index, o.ids[o.index]})
		o.index++
	}
	return list
}

// back takes the last n places of this epoch back.
func (o *order) back(n int) { o.index, o.left = o.index-int64(n), o.left+int64(n) }

// window is the first index of the window that holds an index of this epoch,
// whose end is that of its last window.
func (o *order) window(index int64) int64 {
	if index == o.length {
		return index
	}
	return o.shuffle.start(index)
}

// start is the first index of the window that holds a place's.
func (s Shuffle) start(index int64) int64 { return index - index%int64(max(1, s.Window)) }

// shuffled is the order of an epoch as it is handed out.
func (o *order) shuffled(epoch int64) []int64 {
	ids := o.canonical(epoch)
	if o.shuffle.Window <= 1 {
		return ids
	}
	key := []byte("shuffle")
	key = binary.LittleEndian.AppendUint64(key, uint64(o.shuffle.Seed))
	key = binary.LittleEndian.AppendUint64(key, uint64(epoch))
	h := sha256.Sum256(key)
	r := rand.NewPCG(binary.LittleEndian.Uint64(h[:8]), binary.LittleEndian.Uint64(h[8:]))
	ids = slices.Clone(ids)
	for window := range slices.Chunk(ids, o.shuffle.Window) {
		for i := len(window) - 1; i > 0; i-- {
			j, _ := bits.Mul64(r.Uint64(), uint64(i+1))
			window[i], window[j] = window[j], window[i]
		}
	}
	return ids
}

// canonical is an epoch's canonical order; it must not be changed.
func (o *order) canonical(epoch int64) []int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.of(epoch).ids
}

// find is a sequence's index in the canonical order of an epoch.
func (o *order) find(epoch, id int64) (int64, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := o.of(epoch)
	if c.ranks == nil {
		c.ranks = make(map[int64]int64, len(c.ids))
		for i, id := range c.ids {
			c.ranks[id] = int64(i)
		}
	}
	index, ok := c.ranks[id]
	return index, ok
}

// of is what is kept of an epoch: partitions may be in one while others are
// still in the one before, and a repeated record of an older one may come.
func (o *order) of(epoch int64) *canonical {
	for i := range o.epochs {
		if o.epochs[i].epoch == epoch {
			return &o.epochs[i]
		}
	}
	if len(o.epochs) == 3 {
		o.epochs = slices.Delete(o.epochs, 0, 1)
	}
	o.epochs = append(o.epochs, canonical{epoch: epoch, ids: o.tokens.Order(tokenset.Train, o.seed, epoch)})
	return &o.epochs[len(o.epochs)-1]
}

// cursor walks a partition's part of the canonical order.
type cursor struct {
	order         *order
	partition, of int64 // this one, of so many
	epoch, index  int64 // where to look on
}

// next is the place that the partition's next record is of.
func (c *cursor) next() place {
	for {
		ids := c.order.canonical(c.epoch)
		for ; c.index < int64(len(ids)); c.index++ {
			if id := ids[c.index]; id%c.of == c.partition {
				return place{c.epoch, c.index, id}
			}
		}
		c.epoch, c.index = c.epoch+1, 0
	}
}

// pass moves behind the place that next gave.
func (c *cursor) pass() { c.index++ }
