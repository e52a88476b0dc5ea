package trainers

import (
	"context"
	"fmt"
	"io"
	"maps"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// Batch is what a training step eats: sequences in the canonical order and,
// for distillation, the teacher's outputs for them.
type Batch struct {
	gpu.Batch
	IDs     []int64      // sequence id of each row
	Targets []gpu.Target // by ascending layer; none from a source of tokens
}

// Position is where a source goes on. The zero value is its beginning.
type Position struct {
	Epoch, Index int64                    // of the next sequence in the canonical order
	Offsets      map[string]map[int]int64 // next offset of each partition, by topic
}

func (p Position) clone() Position {
	p.Offsets = maps.Clone(p.Offsets)
	for topic, offsets := range p.Offsets {
		p.Offsets[topic] = maps.Clone(offsets)
	}
	return p
}

// Source hands out a token set's training sequences, batch after batch, in the
// canonical order of epoch 0, 1, …, which is a function of the token set and
// the seed alone: every source gives the same batches. A batch may reach into
// the next epoch. Sources prepare the next batch while a step runs.
type Source interface {
	// Next is the next batch. Its errors say which sequence was wanted; after
	// one the source only closes. It ends with io.EOF.
	Next(ctx context.Context) (*Batch, error)
	// Position is that after the last batch that Next gave.
	Position() Position
	Close() error
}

// Tokens is what sources read of a token set; *tokenset.Set is one.
type Tokens interface {
	Order(split tokenset.Split, seed, epoch int64) []int64
	Sequence(split tokenset.Split, id int64) ([]int32, error)
}

// Plan is which sequences a source hands out.
type Plan struct {
	Tokens Tokens
	Length int   // tokens of a sequence
	Seed   int64 // of the canonical order
	Batch  int   // sequences a batch; the last one may be smaller
	Total  int64 // sequences in all, over the epochs
	Start  Position
}

// place is one position of the canonical order.
type place struct {
	epoch, index, id int64
}

func (p place) String() string {
	return fmt.Sprintf("epoch %d, sequence %d (number %d of its epoch)", p.epoch, p.id, p.index)
}

// order walks the canonical order.
type order struct {
	tokens      Tokens
	seed        int64
	epoch       int64 // of the next place
	index       int64
	ids         []int64 // of this epoch; nil until needed
	left        int64   // places before the plan's end
	ranked      int64   // epoch that ranks is of
	ranks       map[int64]int64
	epochLength int64
}

func newOrder(p Plan) (*order, error) {
	o := &order{tokens: p.Tokens, seed: p.Seed, epoch: p.Start.Epoch, index: p.Start.Index, left: p.Total, ranked: -1}
	o.ids = o.tokens.Order(tokenset.Train, o.seed, o.epoch)
	o.epochLength = int64(len(o.ids))
	if o.epochLength == 0 {
		return nil, fmt.Errorf("the token set has no training sequences")
	}
	if o.index > o.epochLength || o.epoch < 0 || o.index < 0 {
		return nil, fmt.Errorf("position %d of epoch %d is outside the token set's %d training sequences", o.index, o.epoch, o.epochLength)
	}
	o.left -= o.epoch*o.epochLength + o.index
	return o, nil
}

// take gives the next n places, fewer at the plan's end.
func (o *order) take(n int) []place {
	list := make([]place, 0, n)
	for ; len(list) < n && o.left > 0; o.left-- {
		if o.index == o.epochLength {
			o.epoch, o.index = o.epoch+1, 0
			o.ids = o.tokens.Order(tokenset.Train, o.seed, o.epoch)
		}
		list = append(list, place{o.epoch, o.index, o.ids[o.index]})
		o.index++
	}
	return list
}

// find is a sequence's index in the order of an epoch.
func (o *order) find(epoch, id int64) (int64, bool) {
	if o.ranked != epoch {
		o.ranks, o.ranked = make(map[int64]int64, o.epochLength), epoch
		for i, id := range o.tokens.Order(tokenset.Train, o.seed, epoch) {
			o.ranks[id] = int64(i)
		}
	}
	index, ok := o.ranks[id]
	return index, ok
}

// prepared is a batch and the position after it, or why there is none.
type prepared struct {
	batch *Batch
	after Position
	err   error
}

// ahead runs a producer of batches in the background, one batch ahead of the
// one waiting to be fetched.
type ahead struct {
	ready    chan prepared
	cancel   context.CancelFunc
	stopped  <-chan struct{} // closed by cancel
	position Position
	err      error
}

// readAhead starts produce, which is called until it fails. produce runs on
// one goroutine and ends with its context.
func readAhead(start Position, produce func(ctx context.Context) (*Batch, Position, error)) *ahead {
	ctx, cancel := context.WithCancel(context.Background())
	a := &ahead{ready: make(chan prepared, 1), cancel: cancel, stopped: ctx.Done(), position: start.clone()}
	go func() {
		defer close(a.ready)
		for {
			b, after, err := produce(ctx)
			select {
			case a.ready <- prepared{b, after, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return a
}

// Next waits for the batch that the producer makes.
func (a *ahead) Next(ctx context.Context) (*Batch, error) {
	if a.err != nil {
		return nil, a.err
	}
	if err := ctx.Err(); err != nil { // even when a batch is ready
		return nil, err
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case p, ok := <-a.ready:
		if !ok {
			p.err = io.ErrClosedPipe
		}
		if a.err = p.err; a.err != nil {
			return nil, a.err
		}
		a.position = p.after
		return p.batch, nil
	}
}

// Position is that after the last batch handed out, whatever was read ahead.
func (a *ahead) Position() Position { return a.position.clone() }

// Close stops the producer and waits for it.
func (a *ahead) Close() error {
	a.cancel()
	for range a.ready { // drained until the producer closes it
	}
	return nil
}
