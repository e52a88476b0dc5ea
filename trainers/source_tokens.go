package trainers

import (
	"context"
	"fmt"
	"io"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// NewTokenSource is a source of tokens alone, for cross entropy.
func NewTokenSource(p Plan) (Source, error) {
	o, err := newOrder(p)
	if err != nil {
		return nil, err
	}
	return readAhead(p.Start, func(ctx context.Context) (*Batch, Position, error) {
		if err := ctx.Err(); err != nil {
			return nil, Position{}, err
		}
		places := o.take(p.Batch)
		if len(places) == 0 {
			return nil, Position{}, io.EOF
		}
		b := newBatch(places, p.Length)
		for _, at := range places {
			before := len(b.Tokens)
			if b.Tokens, err = p.Tokens.AppendSequence(b.Tokens, tokenset.Train, at.id); err != nil {
				return nil, Position{}, fmt.Errorf("%v: %w", at, err)
			}
			if n := len(b.Tokens) - before; n != p.Length {
				return nil, Position{}, fmt.Errorf("%v: it has %d tokens, want %d", at, n, p.Length)
			}
		}
		return b, Position{Epoch: o.epoch, Index: o.index}, nil
	}), nil
}

// newBatch is a batch of the named sequences whose tokens are to be appended.
func newBatch(places []place, length int) *Batch {
	b := &Batch{Batch: gpu.Batch{Rows: len(places), Length: length, Tokens: make([]int32, 0, len(places)*length)}}
	for _, at := range places {
		b.IDs = append(b.IDs, at.id)
	}
	return b
}
