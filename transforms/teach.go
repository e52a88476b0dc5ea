package transforms

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/apache/beam/sdks/v2/go/pkg/beam"
	"github.com/apache/beam/sdks/v2/go/pkg/beam/register"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// Lesson is what is taught: which sequences of a token set go through which
// teacher, and where the activations go.
type Lesson struct {
	Dataset   string // folder of a token set; its train split is taught
	Seed      int64  // of the canonical order
	Sequences int64  // how many of the canonical order, epoch after epoch
	Teacher   string // folder of a checkpoint; "" where tokens alone are sent
	Device    string // that it runs on; see gpu.Open
	Precision gpu.Precision
	Batch     int // sequences that go through it at once
	Sink      Sink
	// MaxLead holds the teacher back so that no more than so many bytes are in
	// the topics that the slowest trainer has not read. 0: never.
	MaxLead int64
	// TrainerTimeout is how long a registered trainer may be silent before
	// MaxLead does without it.
	TrainerTimeout time.Duration
	// Workers is how many teachers run side by side. Worker w has the
	// partitions p with p mod Workers = w.
	Workers int
}

// Teach adds the transform to a pipeline: a branch of its own for each worker,
// which teaches the whole of its partitions inside one DoFn. A worker walks the
// canonical order across all its partitions, and runners start all branches at
// once where they would put several elements of one collection in a row: so a
// trainer, which reads in that order, never waits for one partition behind
// another.
func Teach(s beam.Scope, launch LaunchID, l Lesson) {
	s = s.Scope("Teach")
	for w := range l.Workers {
		beam.ParDo0(s.Scope(fmt.Sprint("worker ", w)), &teachFn{l, launch}, beam.Create(s, w))
	}
}

func init() { register.DoFn2x1[context.Context, int, error](&teachFn{}) }

// teachFn does one worker's lesson.
type teachFn struct {
	Lesson Lesson
	Launch LaunchID
}

func (fn *teachFn) ProcessElement(ctx context.Context, worker int) (err error) {
	ctx, task := fn.Launch.Begin(ctx)
	defer task.End(&err)
	t, err := fn.Lesson.open(ctx, worker)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	return t.teach(ctx, task)
}

// teacher is a worker at its lesson.
type teacher struct {
	Lesson
	set         *tokenset.Set
	engine      gpu.Engine
	model       gpu.Model
	fingerprint string
	sink        *sink
	partitions  []int
	// done is where each topic's partition goes on: the first place in the
	// canonical order, counted across epochs, that it may lack.
	done map[lane]int64
	// room is how many bytes may be sent before the lead is measured again.
	room int64
	// heard is what each registered trainer told last, and when.
	heard map[string]heard
}

// lane is a partition of a layer's topic. Records of a lane are written one
// batch after the other; lanes are written side by side.
type lane struct{ layer, partition int }

func (l Lesson) open(ctx context.Context, worker int) (_ *teacher, err error) {
	t := &teacher{Lesson: l, done: map[lane]int64{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	for p := worker; p < l.Sink.Partitions; p += l.Workers {
		t.partitions = append(t.partitions, p)
	}
	if t.set, err = tokenset.Open(l.Dataset); err != nil {
		return nil, err
	}
	if t.sink, err = l.Sink.open(ctx, false, nil); err != nil {
		return nil, err
	}
	var m *checkpoint.Model
	if l.Teacher != "" {
		if m, err = checkpoint.Load(l.Teacher); err != nil {
			return nil, err
		}
		t.fingerprint = m.Fingerprint()
	}
	if err := t.resume(ctx); err != nil || m == nil {
		return t, err
	}
	if t.engine, err = gpu.Open(l.Device); err != nil {
		return nil, err
	}
	if t.model, err = t.engine.Open(m, gpu.Options{Precision: l.Precision}); err != nil {
		return nil, fmt.Errorf("teacher %s: %w", l.Teacher, err)
	}
	return t, nil
}

func (t *teacher) close() error {
	var errs []error
	for _, c := range []io.Closer{t.model, t.engine} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	if t.sink != nil {
		t.sink.close()
	}
	return errors.Join(errs...)
}

// resume finds where each lane goes on: after its last record.
func (t *teacher) resume(ctx context.Context) error {
	orders := map[int64]map[int64]int64{} // by epoch: sequence → place in the canonical order
	place := func(r *activation.Record) (int64, error) {
		epoch, rows := int64(r.Epoch), t.set.Rows(tokenset.Train)
		if orders[epoch] == nil {
			orders[epoch] = make(map[int64]int64, rows)
			for i, id := range t.set.Order(tokenset.Train, t.Seed, epoch) {
				orders[epoch][id] = epoch*rows + int64(i)
			}
		}
		k, ok := orders[epoch][r.SequenceID]
		if !ok {
			return 0, fmt.Errorf("it holds sequence %d, which is not in the token set", r.SequenceID)
		}
		return k, nil
	}
	first := t.firsts()
	for _, layer := range t.Sink.Layers {
		topic := activation.Topic(t.Sink.Run, layer)
		for _, p := range t.partitions {
			begin, end, err := t.sink.bounds(ctx, topic, p)
			if err != nil {
				return err
			}
			if end == 0 {
				continue
			}
			where := fmt.Sprintf("topic %s: partition %d", topic, p)
			if begin == end {
				return fmt.Errorf("%s: its %d records have been deleted, so it cannot be gone on with: take another --topic", where, end)
			}
			last, err := t.sink.at(ctx, topic, p, end-1)
			if err != nil {
				return err
			}
			if err := t.same(last, layer); err != nil {
				return fmt.Errorf("%s: %w: take another --topic", where, err)
			}
			if begin == 0 { // the order of another seed would show
				r, err := t.sink.at(ctx, topic, p, 0)
				if err != nil {
					return err
				}
				if r.Epoch != 0 || r.SequenceID != first[p] {
					return fmt.Errorf("%s: it begins with sequence %d of epoch %d, not with %d: it was taught with another --seed: take that, or another --topic", where, r.SequenceID, r.Epoch, first[p])
				}
			}
			k, err := place(last)
			if err != nil {
				return fmt.Errorf("%s: %w: take another --topic", where, err)
			}
			t.done[lane{layer, p}] = k + 1
		}
	}
	return nil
}

// firsts is the first sequence of each partition in the canonical order.
func (t *teacher) firsts() map[int]int64 {
	first := map[int]int64{}
	for _, id := range t.set.Order(tokenset.Train, t.Seed, 0) {
		p := activation.Partition(id, t.Sink.Partitions)
		if _, ok := first[p]; !ok {
			first[p] = id
		}
	}
	return first
}

// blank is a record of a layer with all but its sequence filled in.
func (t *teacher) blank(layer int) activation.Record {
	r := activation.Record{TokenSet: t.set.Fingerprint(), Layer: layer, Length: t.Sink.Length}
	if layer != activation.Tokens {
		r.Teacher, r.Dim, r.Type = t.fingerprint, t.Sink.Dim, t.Sink.Type
	}
	return r
}

// same refuses to go on after the records of another lesson.
func (t *teacher) same(r *activation.Record, layer int) error {
	want := t.blank(layer)
	switch {
	case r.Teacher != want.Teacher:
		return fmt.Errorf("it holds activations of another teacher (%.12s, this one is %.12s)", r.Teacher, want.Teacher)
	case r.TokenSet != want.TokenSet:
		return fmt.Errorf("it holds records of another token set (%.12s, this one is %.12s)", r.TokenSet, want.TokenSet)
	case r.Layer != layer || r.Length != want.Length || r.Dim != want.Dim:
		return fmt.Errorf("it holds layer %d of %d × %d, want layer %d of %d × %d", r.Layer, r.Length, r.Dim, layer, want.Length, want.Dim)
	case r.Type != want.Type:
		return fmt.Errorf("it holds values of type %s, want %s", r.Type, want.Type)
	}
	return nil
}

// pupil is a sequence and the layers that still need it.
type pupil struct {
	epoch, id int64
	partition int
	place     int64
}

// teach walks the canonical order. While one batch is encoded and sent, the
// next goes through the teacher: two batches are in memory at most.
func (t *teacher) teach(ctx context.Context, task *Task) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sent := make(chan error, 1)
	sent <- nil
	err := t.walk(func(rows []pupil, skipped int64) error {
		task.Advance(skipped, skipped*int64(t.Sink.Length))
		if len(rows) == 0 {
			return ctx.Err()
		}
		if err := t.wait(ctx, task); err != nil {
			return err
		}
		b, layers, hidden, err := t.compute(ctx, rows)
		if e := <-sent; e != nil { // a failed write is the cause of what came after it
			sent <- nil
			return e
		}
		if err != nil {
			sent <- nil
			return err
		}
		go func() {
			err := t.send(ctx, rows, b, layers, hidden)
			if err == nil {
				task.Advance(int64(len(rows)), int64(len(rows)*t.Sink.Length))
			} else {
				cancel()
			}
			sent <- err
		}()
		return nil
	})
	if e := <-sent; e != nil {
		return e
	}
	return err
}

// walk calls use with batches of the worker's sequences that some lane lacks,
// and the number of those before them that none lacks.
func (t *teacher) walk(use func(rows []pupil, skipped int64) error) error {
	mine := map[int]bool{}
	for _, p := range t.partitions {
		mine[p] = true
	}
	rows := t.set.Rows(tokenset.Train)
	var batch []pupil
	var skipped int64
	for epoch := int64(0); epoch*rows < t.Sequences; epoch++ {
		for i, id := range t.set.Order(tokenset.Train, t.Seed, epoch) {
			place, p := epoch*rows+int64(i), activation.Partition(id, t.Sink.Partitions)
			if place >= t.Sequences {
				break
			}
			if !mine[p] {
				continue
			}
			x := pupil{epoch, id, p, place}
			if len(t.lacking(x)) == 0 {
				skipped++
				continue
			}
			if batch = append(batch, x); len(batch) == t.Batch {
				if err := use(batch, skipped); err != nil {
					return err
				}
				batch, skipped = nil, 0
			}
		}
	}
	return use(batch, skipped)
}

// lacking is the layers that do not have a sequence yet.
func (t *teacher) lacking(x pupil) []int {
	var layers []int
	for _, l := range t.Sink.Layers {
		if t.done[lane{l, x.partition}] <= x.place {
			layers = append(layers, l)
		}
	}
	return layers
}

// compute is the residual stream of a batch after the layers that any of its
// sequences lacks: for each, rows · Length · Dim values, and none for Tokens.
func (t *teacher) compute(ctx context.Context, rows []pupil) (gpu.Batch, []int, [][]float32, error) {
	b := gpu.Batch{Rows: len(rows), Length: t.Sink.Length}
	needed := map[int]bool{}
	for _, x := range rows {
		if ctx.Err() != nil {
			return b, nil, nil, ctx.Err()
		}
		tokens, err := t.set.Sequence(tokenset.Train, x.id)
		if err != nil {
			return b, nil, nil, err
		}
		b.Tokens = append(b.Tokens, tokens...)
		for _, l := range t.lacking(x) {
			needed[l] = true
		}
	}
	var layers []int
	for _, l := range t.Sink.Layers {
		if needed[l] {
			layers = append(layers, l)
		}
	}
	hidden := make([][]float32, len(layers))
	from := 0
	if needed[activation.Tokens] { // the first, as layers ascend
		from = 1
	}
	if from == len(layers) {
		return b, layers, hidden, nil
	}
	values, err := t.model.Hidden(b, layers[from:])
	if err != nil {
		return b, nil, nil, fmt.Errorf("teacher %s: %w", t.Teacher, err)
	}
	copy(hidden[from:], values)
	return b, layers, hidden, nil
}

// sending bounds the lanes that are encoded and written at once.
const sending = 8

// send encodes a batch's records and writes them, lane by lane.
func (t *teacher) send(ctx context.Context, rows []pupil, b gpu.Batch, layers []int, hidden [][]float32) error {
	var work sync.WaitGroup
	var mu sync.Mutex
	var first error
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	slots := make(chan struct{}, sending)
	for i, layer := range layers {
		for _, p := range t.partitions {
			slots <- struct{}{}
			work.Go(func() {
				defer func() { <-slots }()
				if err := t.sendLane(ctx, lane{layer, p}, rows, b, hidden[i]); err != nil {
					mu.Lock()
					if first == nil {
						first = err
					}
					mu.Unlock()
					cancel()
				}
			})
		}
	}
	work.Wait()
	return first
}

func (t *teacher) sendLane(ctx context.Context, l lane, rows []pupil, b gpu.Batch, hidden []float32) error {
	var values, keys [][]byte
	width := b.Length * t.Sink.Dim
	for i, x := range rows {
		if x.partition != l.partition || t.done[l] > x.place {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r := t.blank(l.layer)
		r.Epoch, r.SequenceID, r.Tokens = int(x.epoch), x.id, b.Tokens[i*b.Length:(i+1)*b.Length]
		value, err := t.marshal(&r, l, hidden, i*width)
		if err != nil {
			return err
		}
		values, keys = append(values, value), append(keys, activation.Key(x.id))
	}
	if err := t.sink.write(ctx, activation.Topic(t.Sink.Run, l.layer), l.partition, values, keys); err != nil {
		return err // a request that was given up may still be read from
	}
	for _, v := range values {
		spare.Put(&v)
	}
	return nil
}

// spare is the memory of messages that were written, *[]byte.
var spare sync.Pool

// marshal is the message of a record whose activations begin at a place in
// hidden.
func (t *teacher) marshal(r *activation.Record, l lane, hidden []float32, at int) ([]byte, error) {
	if l.layer == activation.Tokens {
		return activation.Marshal(r)
	}
	var value []byte
	if used, ok := spare.Get().(*[]byte); ok {
		value = (*used)[:0]
	}
	value, err := activation.AppendMarshal(value, r, hidden[at:at+r.Length*r.Dim])
	if err != nil {
		return nil, fmt.Errorf("teacher %s: layer %d: sequence %d: %w: choose another --dtype", t.Teacher, l.layer, r.SequenceID, err)
	}
	return value, nil
}
