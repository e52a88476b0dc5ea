package trainers

import (
	"context"
	"fmt"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/dtype"
)

// Inline is a teacher that runs beside the student.
type Inline struct {
	Teacher gpu.Model  // used from the goroutine that calls Next, closed by its owner
	Layers  []int      // ascending
	Type    dtype.Type // the targets are rounded to, as records in a stream would be
}

type inline struct {
	Source
	Inline
}

// NewInlineSource is a source of tokens with the targets that the teacher
// gives for them.
func NewInlineSource(t Inline, p Plan) (Source, error) {
	tokens, err := NewTokenSource(p)
	if err != nil {
		return nil, err
	}
	return &inline{tokens, t}, nil
}

func (s *inline) Next(ctx context.Context) (*Batch, error) {
	b, err := s.Source.Next(ctx)
	if err != nil {
		return nil, err
	}
	hidden, err := s.Teacher.Hidden(b.Batch, s.Layers)
	if err != nil {
		return nil, fmt.Errorf("teacher: %w", err)
	}
	for i, layer := range s.Layers {
		t := gpu.Target{Layer: layer, Type: s.Type}
		t.Values, t.Scales, err = activation.Encode(s.Type, hidden[i], s.Teacher.Config().Dim)
		if err != nil {
			return nil, fmt.Errorf("teacher: layer %d: %w", layer, err)
		}
		b.Targets = append(b.Targets, t)
	}
	return b, nil
}
