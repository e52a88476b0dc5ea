package trainers

import (
	"context"
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

	release func() // gives the targets' memory back to the source; may be nil
}

// Release tells the source that the batch is done with: its targets' memory is
// used again. Batches that are not released are left to the garbage collector.
func (b *Batch) Release() {
	if b.release != nil {
		b.release()
	}
	b.release, b.Targets = nil, nil
}

// Position is where a source goes on. The zero value is its beginning.
type Position struct {
	Epoch, Index int64 // of the next sequence in the order that is handed out; Epoch may be Earliest or Latest
	// Offsets is where to read each partition from, by topic: all records of
	// the window that Index lies in (see Shuffle) are from there on.
	Offsets map[string]map[int]int64
}

func (p Position) clone() Position {
	p.Offsets = maps.Clone(p.Offsets)
	for topic, offsets := range p.Offsets {
		p.Offsets[topic] = maps.Clone(offsets)
	}
	return p
}

// Source hands out a token set's training sequences, batch after batch, in the
// order of epoch 0, 1, …, which is a function of the token set, the seed and the
// shuffle alone: every source gives the same batches. A batch may reach into
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
	AppendSequence(dst []int32, split tokenset.Split, id int64) ([]int32, error)
}

// Plan is which sequences a source hands out.
type Plan struct {
	Tokens  Tokens
	Length  int   // tokens of a sequence
	Seed    int64 // of the canonical order
	Shuffle Shuffle
	Batch   int   // sequences a batch; the last one may be smaller
	Total   int64 // sequences in all, over the epochs; not looked at with Follow
	Start   Position
	// Follow goes on from epoch to epoch until the producer ends the stream; the
	// token set may grow meanwhile. Only for streams.
	Follow bool
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
