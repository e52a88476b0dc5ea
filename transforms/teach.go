package transforms

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
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
	Dataset string // folder of a token set, or of a growing one (see OpenCourse); its train split is taught
	Seed    int64  // of the canonical order
	Epochs  int64  // how many; of a growing set, how many parts
	Last    int64  // how many sequences of the last epoch's canonical order; 0: all
	// Follow goes on with each part that a growing set gets, until it is
	// cancelled; Epochs and Last are not looked at.
	Follow    bool
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
	t.taught = task.taught()
	t.sink.taught = t.taught
	return t.teach(ctx, task)
}

// teacher is a worker at its lesson.
type teacher struct {
	Lesson
	taught      *taught
	worker      int
	course      tokenset.Course
	engine      gpu.Engine
	model       gpu.Model
	fingerprint string
	sink        *sink
	partitions  []int
	// next is where each topic's partition goes on: the first place that it
	// may lack. ended is what its last record says, if that ends the stream.
	next  map[lane]place
	ended map[lane]ending
	// controls are the control records that are known to lie in the topics.
	controls controls
	// room is how many bytes may be sent before the lead is measured again.
	room int64
	// heard is what each registered trainer told last, and when.
	heard map[string]heard
}

// lane is a partition of a layer's topic. Records of a lane are written one
// batch after the other; lanes are written side by side.
type lane struct{ layer, partition int }

func (l Lesson) open(ctx context.Context, worker int) (_ *teacher, err error) {
	t := &teacher{Lesson: l, taught: &taught{}, worker: worker, next: map[lane]place{}, ended: map[lane]ending{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	for p := worker; p < l.Sink.Partitions; p += l.Workers {
		t.partitions = append(t.partitions, p)
	}
	if t.course, _, err = OpenCourse(l.Dataset, l.Follow); err != nil {
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

// pupil is a sequence that some lane lacks.
type pupil struct {
	place
	id        int64
	partition int
}

// portion is what goes to the topics at once: sequences of one epoch, or a
// control record of it for each lane that lacks it.
type portion struct {
	epoch   int64
	set     *tokenset.Set // of the epoch
	rows    []pupil
	skipped int64 // sequences before them that no lane lacks

	control activation.Control
	at      place         // of the control record; behind an epoch's end it is the next one's beginning
	counts  map[int]int64 // by partition: how many sequences of the epoch it is to hold
}

// teach walks the canonical order. While one batch is encoded and sent, the
// next goes through the teacher: two batches are in memory at most.
func (t *teacher) teach(ctx context.Context, task *Task) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sent := make(chan error, 1)
	sent <- nil
	// handOver begins to send a portion when the one before has been sent.
	handOver := func(send func() error) error {
		if err := <-sent; err != nil {
			sent <- err
			return err
		}
		go func() {
			err := send()
			if err != nil {
				cancel()
			}
			sent <- err
		}()
		return nil
	}
	err := t.walk(ctx, task, func(p portion) error {
		task.Advance(p.skipped, p.skipped*int64(t.Sink.Length))
		if p.control != 0 {
			t.sayUnended(p, task)
			lanes := t.lackControl(p)
			if len(lanes) == 0 {
				return ctx.Err()
			}
			return handOver(func() error { return t.sendControl(ctx, p, lanes) })
		}
		if len(p.rows) == 0 {
			return ctx.Err()
		}
		if err := t.wait(ctx, task); err != nil {
			return err
		}
		b, layers, hidden, err := t.timed(ctx, p)
		if err != nil {
			return err
		}
		return handOver(func() error {
			err := t.send(ctx, p, b, layers, hidden)
			if err == nil {
				task.Advance(int64(len(p.rows)), int64(len(p.rows)*t.Sink.Length))
			}
			return err
		})
	})
	if e := <-sent; e != nil { // a failed write is the cause of what came after it
		return e
	}
	return err
}

// walk calls use with batches of the worker's sequences that some lane lacks,
// and with the control records behind them.
func (t *teacher) walk(ctx context.Context, task *Task, use func(portion) error) error {
	mine := map[int]bool{}
	for _, p := range t.partitions {
		mine[p] = true
	}
	for epoch := int64(0); t.Follow || epoch < t.Epochs; epoch++ {
		set, err := t.epoch(ctx, task, epoch)
		if err != nil {
			return err
		}
		ids := set.Order(tokenset.Train, t.Seed, epoch)
		last, end := !t.Follow && epoch == t.Epochs-1, int64(len(ids))
		if last && t.Last > 0 {
			end = min(end, t.Last)
		}
		blank, counts := portion{epoch: epoch, set: set}, map[int]int64{}
		batch := blank
		for i, id := range ids[:end] {
			p := activation.Partition(id, t.Sink.Partitions)
			if !mine[p] {
				continue
			}
			counts[p]++
			x := pupil{place{epoch, int64(i)}, id, p}
			if len(t.lacking(x)) == 0 {
				batch.skipped++
				continue
			}
			if batch.rows = append(batch.rows, x); len(batch.rows) == t.Batch {
				if err := use(batch); err != nil {
					return err
				}
				batch = blank
			}
		}
		if err := use(batch); err != nil {
			return err
		}
		tail := portion{epoch: epoch, set: set, control: activation.EndOfEpoch, at: place{epoch, end}, counts: counts}
		if end == int64(len(ids)) {
			if err := use(tail); err != nil {
				return err
			}
			tail.at = place{epoch + 1, 0}
		}
		if last {
			tail.control = activation.EndOfStream
			return use(tail)
		}
	}
	return nil
}

// lacking is the layers that do not have a sequence yet.
func (t *teacher) lacking(x pupil) []int {
	var layers []int
	for _, l := range t.Sink.Layers {
		if !x.before(t.next[lane{l, x.partition}]) {
			layers = append(layers, l)
		}
	}
	return layers
}

// compute is the residual stream of a batch after the layers that any of its
// sequences lacks: for each, rows · Length · Dim values, and none for Tokens.
func (t *teacher) compute(ctx context.Context, p portion) (gpu.Batch, []int, [][]float32, error) {
	b := gpu.Batch{Rows: len(p.rows), Length: t.Sink.Length}
	needed := map[int]bool{}
	for _, x := range p.rows {
		if ctx.Err() != nil {
			return b, nil, nil, ctx.Err()
		}
		var err error
		if b.Tokens, err = p.set.AppendSequence(b.Tokens, tokenset.Train, x.id); err != nil {
			return b, nil, nil, err
		}
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

// send encodes a batch's records and writes them, lane by lane.
func (t *teacher) send(ctx context.Context, p portion, b gpu.Batch, layers []int, hidden [][]float32) error {
	return t.sideBySide(ctx, t.lanes(layers), func(ctx context.Context, l lane) error {
		return t.sendLane(ctx, l, p, b, hidden[slices.Index(layers, l.layer)])
	})
}

// lanes are the worker's of some layers.
func (t *teacher) lanes(layers []int) []lane {
	var list []lane
	for _, layer := range layers {
		for _, p := range t.partitions {
			list = append(list, lane{layer, p})
		}
	}
	return list
}

// sending bounds the lanes that are encoded and written at once.
const sending = 8

// sideBySide does something to several lanes at once. It gives the first error,
// which ends the others.
func (t *teacher) sideBySide(ctx context.Context, lanes []lane, do func(context.Context, lane) error) error {
	var work sync.WaitGroup
	var mu sync.Mutex
	var first error
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	slots := make(chan struct{}, sending)
	for _, l := range lanes {
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			if err := do(ctx, l); err != nil {
				mu.Lock()
				if first == nil {
					first = err
				}
				mu.Unlock()
				cancel()
			}
		})
	}
	work.Wait()
	return first
}

func (t *teacher) sendLane(ctx context.Context, l lane, p portion, b gpu.Batch, hidden []float32) error {
	var values, keys [][]byte
	width := b.Length * t.Sink.Dim
	began := time.Now()
	for i, x := range p.rows {
		if x.partition != l.partition || x.before(t.next[l]) {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r := t.blank(l.layer, p.set)
		r.Epoch, r.SequenceID, r.Tokens = int(x.epoch), x.id, b.Tokens[i*b.Length:(i+1)*b.Length]
		value, err := t.marshal(&r, l, hidden, i*width)
		if err != nil {
			return err
		}
		values, keys = append(values, value), append(keys, activation.Key(x.id))
	}
	since(&t.taught.encoding, began)
	defer since(&t.taught.writing, time.Now())
	if err := t.sink.write(ctx, activation.Topic(t.Sink.Run, l.layer), l.partition, values, keys); err != nil {
		return err // a request that was given up may still be read from
	}
	t.taught.sent(values, b.Length)
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
