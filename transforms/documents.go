package transforms

import (
	"context"
	"errors"

	"github.com/scavenge/scavenge/schemas/tokenset"
)

// errEnough ends the reading of a piece of which no more is wanted.
var errEnough = errors.New("enough")

// Documents yields the documents of the text files that match globs, file by
// file, until about limit bytes of text were
// yielded or yield says stop. One document at a time is in memory.
func Documents(ctx context.Context, globs []string, limit int64, yield func(text string) bool) error {
	l, err := List(ctx, globs, 0)
	if err != nil {
		return err
	}
	defer l.Close()
	for p, err := range Pieces(l.Groups()) {
		if err == nil {
			_, err = p.read(ctx, &yielding{limit: &limit, yield: yield}, Rules{}, new(tokenset.Omitted))
		}
		if errors.Is(err, errEnough) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// yielding hands documents on.
type yielding struct {
	limit *int64 // bytes still wanted
	yield func(text string) bool
}

func (y *yielding) document(text []byte) error {
	*y.limit -= int64(len(text))
	if !y.yield(string(text)) || *y.limit <= 0 {
		return errEnough
	}
	return nil
}

func (y *yielding) read(int64) {}
