package trainers

import (
	"errors"
	"fmt"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// Evaluation is of a run on sequences that it is not trained on: the first of
// the token set's validation split (of a growing one, that of its first part).
type Evaluation struct {
	Every     int64 // steps; 0: never
	Sequences int   // 0: 32
}

const defaultHeldOut = 32

func (e Evaluation) sequences() int {
	if e.Sequences == 0 {
		return defaultHeldOut
	}
	return e.Sequences
}

// Validate says which option no evaluation can have.
func (e Evaluation) Validate() error {
	if e.Every < 0 || e.Sequences < 0 {
		return fmt.Errorf("--eval-every %d, --eval-sequences %d: want positive numbers", e.Every, e.Sequences)
	}
	return nil
}

// check says that a token set has nothing to evaluate on.
func (e Evaluation) check(set *tokenset.Set) error {
	if e.Every > 0 && set.Rows(tokenset.Validation) == 0 {
		return errors.New("--eval-every: the token set has no validation sequences: make it with a larger pipelines/tokenize --validation")
	}
	return nil
}

// batches are the held-out sequences, rows of them at a time.
func (e Evaluation) batches(set *tokenset.Set, rows int) ([]gpu.Batch, error) {
	ids := set.IDs(tokenset.Validation)
	ids = ids[:min(len(ids), e.sequences())]
	var list []gpu.Batch
	for i, id := range ids {
		if i%rows == 0 {
			list = append(list, gpu.Batch{Length: set.Manifest.SeqLen})
		}
		tokens, err := set.Sequence(tokenset.Validation, id)
		if err != nil {
			return nil, fmt.Errorf("--dataset: %w", err)
		}
		b := &list[len(list)-1]
		b.Rows++
		b.Tokens = append(b.Tokens, tokens...)
	}
	return list, nil
}

// evaluator is a model's loss on held-out sequences.
type evaluator func(m gpu.Model) (float64, error)

// entropy evaluates next-token cross entropy, in nats a token.
func (e Evaluation) entropy(set *tokenset.Set, rows int) (evaluator, error) {
	if e.Every == 0 {
		return nil, nil
	}
	list, err := e.batches(set, rows)
	if err != nil {
		return nil, err
	}
	return func(m gpu.Model) (float64, error) {
		var sum float64
		n := 0
		for _, b := range list {
			scores, err := m.Score(b)
			if err != nil {
				return 0, err
			}
			for _, v := range scores {
				sum += float64(v)
			}
			n += len(scores)
		}
		return sum / float64(n), nil
	}, nil
}

// distance evaluates the mean squared error of some layers' outputs to a
// teacher's, summed over the layers. The teacher is opened on the engine, asked
// and closed again; what it said stays in host memory: Sequences · SeqLen · Dim
// values of four bytes a layer.
func (e Evaluation) distance(engine gpu.Engine, teacher *checkpoint.Model, precision gpu.Precision, set *tokenset.Set, rows int, layers []int) (_ evaluator, err error) {
	if e.Every == 0 {
		return nil, nil
	}
	list, err := e.batches(set, rows)
	if err != nil {
		return nil, err
	}
	t, err := engine.Open(teacher, gpu.Options{Precision: precision})
	if err != nil {
		return nil, fmt.Errorf("--teacher: %w", err)
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	targets := make([][][]float32, len(list))
	for i, b := range list {
		if targets[i], err = t.Hidden(b, layers); err != nil {
			return nil, fmt.Errorf("--teacher: %w", err)
		}
	}
	return func(m gpu.Model) (float64, error) {
		var sum float64
		n := 0
		for i, b := range list {
			hidden, err := m.Hidden(b, layers)
			if err != nil {
				return 0, err
			}
			for k := range layers {
				for j, v := range hidden[k] {
					d := float64(v) - float64(targets[i][k][j])
					sum += d * d
				}
			}
			n += len(hidden[0])
		}
		return sum / float64(n), nil
	}, nil
}
