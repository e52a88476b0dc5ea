package pipelines

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/dtype"
	"github.com/scavenge/scavenge/schemas/durable"
	"github.com/scavenge/scavenge/schemas/store"
	"github.com/scavenge/scavenge/schemas/tokenset"
	"github.com/scavenge/scavenge/transforms"
)

// lesson checks that token set, teacher and options belong together.
func (o TeachOptions) lesson() (l transforms.Lesson, w extent, err error) {
	course, first, err := transforms.OpenCourse(o.Dataset, o.Follow)
	if err != nil {
		return l, w, err
	}
	if w, err = o.extent(course, first); err != nil {
		return l, w, err
	}
	m := first.Manifest
	l = transforms.Lesson{Seed: o.Seed, Epochs: w.epochs, Last: w.last, Follow: o.Follow, Device: o.Device, Precision: gpu.Precision(o.Precision), Batch: o.Batch, MaxLead: o.MaxLead, TrainerTimeout: o.TrainerTimeout, Workers: o.Workers,
		Sink: transforms.Sink{Access: o.Access, Run: o.Topic, Layers: o.Layers, Partitions: o.Partitions, Length: m.SeqLen, Patience: o.Patience, AllowRetention: o.AllowRetention}}
	// Beam's workers may have another working directory.
	if l.Sink.Access, err = o.Absolute(); err != nil {
		return l, w, err
	}
	if l.Dataset, err = store.Abs(o.Dataset); err != nil || o.tokensAlone() {
		return l, w, err
	}
	if l.Teacher, err = filepath.Abs(o.Teacher); err != nil {
		return l, w, err
	}
	c, err := checkpoint.LoadConfig(o.Teacher)
	if err != nil {
		return l, w, err
	}
	switch {
	case c.Architecture != checkpoint.GPTNeoX:
		return l, w, fmt.Errorf("teacher %s: it is a %s, want a %s", o.Teacher, c.Architecture, checkpoint.GPTNeoX)
	case c.Vocab < m.Tokenizer.Vocab:
		return l, w, fmt.Errorf("teacher %s: its vocabulary of %d is smaller than the %d of the tokenizer that made token set %s", o.Teacher, c.Vocab, m.Tokenizer.Vocab, o.Dataset)
	case c.Context < m.SeqLen:
		return l, w, fmt.Errorf("teacher %s: its context of %d is shorter than the sequences of %d tokens in token set %s", o.Teacher, c.Context, m.SeqLen, o.Dataset)
	}
	if len(o.Layers) == 0 {
		for i := range c.Layers {
			l.Sink.Layers = append(l.Sink.Layers, i)
		}
	}
	for _, i := range l.Sink.Layers {
		if i < activation.Tokens || i >= c.Layers {
			return l, w, fmt.Errorf("--layers: %d is none of the teacher's layers 0 to %d", i, c.Layers-1)
		}
	}
	l.Sink.Dim = c.Dim
	l.Sink.Type, err = dtype.Parse(o.DType)
	return l, w, err
}

// extent is how much there is to teach.
type extent struct {
	epochs    int64 // of a growing token set: parts, so far
	last      int64 // sequences of the last epoch; 0: all
	sequences int64 // in all

	series *tokenset.Series // nil where the token set does not grow
	broken bool             // its last part is: no other counts
}

// extent counts what the options ask for of a token set, or of the parts that a
// growing one has.
func (o TeachOptions) extent(course tokenset.Course, first *tokenset.Set) (w extent, err error) {
	series, grows := course.(*tokenset.Series)
	if !grows {
		rows := first.Rows(tokenset.Train)
		if rows == 0 {
			return w, fmt.Errorf("token set %s: its %s split is empty", o.Dataset, tokenset.Train)
		}
		w.epochs, w.sequences = o.Epochs, o.Epochs*rows
		if o.Sequences > 0 {
			w.epochs, w.last, w.sequences = (o.Sequences+rows-1)/rows, o.Sequences%rows, o.Sequences
		}
		return w, nil
	}
	if o.Epochs != 1 {
		return w, fmt.Errorf("--epochs %d: token set %s grows by parts, and each is taught once: leave --epochs out", o.Epochs, o.Dataset)
	}
	w.series = series
	for before := int64(0); w.grow(); before = w.sequences {
		if o.Sequences > 0 && o.Sequences <= w.sequences {
			w.last, w.sequences = o.Sequences-before, o.Sequences
			return w, nil
		}
	}
	if o.Sequences > w.sequences && !w.broken {
		return w, fmt.Errorf("--sequences %d: the %d parts of token set %s have %d: ask for fewer, or leave it out for all", o.Sequences, w.epochs, o.Dataset, w.sequences)
	}
	return w, nil
}

// grow counts one more part of a growing token set, if it is there. One that is
// damaged counts, so that the teacher comes to it and says what is wrong.
func (w *extent) grow() bool {
	if w.broken {
		return false
	}
	set, err := w.series.Epoch(w.epochs)
	if errors.Is(err, tokenset.ErrNoPart) {
		return false
	}
	w.epochs++
	if w.broken = err != nil; !w.broken {
		w.sequences += set.Rows(tokenset.Train)
	}
	return !w.broken
}

// diskHolds refuses an embedded broker's log that the disk has no room for.
func (o TeachOptions) diskHolds(bytes int64) error {
	if err := os.MkdirAll(o.Data, 0o777); err != nil {
		return fmt.Errorf("--data: %w", err)
	}
	free, ok := durable.Free(o.Data)
	if !ok || bytes <= free {
		return nil
	}
	err := filepath.WalkDir(o.Data, func(_ string, e os.DirEntry, err error) error { // what is there already
		if info, bad := e.Info(); err == nil && bad == nil && info.Mode().IsRegular() {
			bytes -= info.Size()
		}
		return err
	})
	if err == nil && bytes > free {
		err = fmt.Errorf("%s: its disk has %d bytes left, and the records take up to %d more: name another --data, or fewer --layers, --epochs or --sequences", o.Data, free, bytes)
	}
	return err
}
