package trainers

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/dtype"
)

func orderHash(list []*Batch) string {
	h := sha256.New()
	for _, b := range list {
		fmt.Fprintln(h, b.IDs)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func TestStreamGivesWhatInlineGivesForAnyNumberOfPartitions(t *testing.T) {
	dir := testSet(t, 5, 3)
	b := startBroker(t)
	plan := testPlan(t, dir, 3, 16)
	for _, c := range []struct {
		partitions int
		kind       dtype.Type
		layers     []int
	}{{1, dtype.Float16, []int{0, 1}}, {2, dtype.Int8, []int{1}}, {4, dtype.BFloat16, []int{0, 1}}, {3, dtype.Float32, []int{0}}} {
		p := newProducer(t, b, dir)
		p.partitions, p.kind, p.run = c.partitions, c.kind, fmt.Sprintf("%s-%d", p.run, c.partitions)
		p.write(t)
		s, err := NewStreamSource(context.Background(), p.stream(c.layers...), plan)
		got, _ := drain(t, s, err)
		want := teachersBatches(t, plan, c.layers, c.kind)
		if orderHash(got) != orderHash(want) {
			t.Errorf("%d partitions: another order", c.partitions)
		}
		sameBatches(t, fmt.Sprintf("%d partitions", c.partitions), got, want)
	}
}

func TestDuplicatesAreDropped(t *testing.T) {
	dir := testSet(t, 8)
	p := newProducer(t, startBroker(t), dir)
	p.change = func(layer, partition int, list []*activation.Record) (out []*activation.Record) {
		for i, r := range list {
			out = append(out, r, r) // a retry of one
			if i == 2 || i == len(list)-1 {
				out = append(out, list[:i+1]...) // of all so far
			}
		}
		return out
	}
	p.write(t)
	plan := testPlan(t, dir, 3, 16)
	s, err := NewStreamSource(context.Background(), p.stream(0, 1), plan)
	got, _ := drain(t, s, err)
	sameBatches(t, "with duplicates", got, teachersBatches(t, plan, []int{0, 1}, dtype.Float16))
}

func TestStreamGoesOnFromItsOffsetsOrWithoutThem(t *testing.T) {
	dir := testSet(t, 8)
	p := newProducer(t, startBroker(t), dir)
	p.write(t)
	plan := testPlan(t, dir, 3, 16)
	s, err := NewStreamSource(context.Background(), p.stream(1), plan)
	all, positions := drain(t, s, err)
	for _, i := range []int{0, 3} {
		rest := plan
		rest.Start = positions[i]
		if n := len(rest.Start.Offsets[activation.Topic(p.run, 1)]); n != 2 {
			t.Fatalf("position has offsets of %d partitions", n)
		}
		s, err := NewStreamSource(context.Background(), p.stream(1), rest)
		got, _ := drain(t, s, err)
		sameBatches(t, "from offsets", got, all[i+1:])
		rest.Start.Offsets = nil // a run that was inline so far
		s, err = NewStreamSource(context.Background(), p.stream(1), rest)
		got, _ = drain(t, s, err)
		sameBatches(t, "without offsets", got, all[i+1:])
	}
}

func TestStreamRefusesByName(t *testing.T) {
	dir := testSet(t, 8)
	b := startBroker(t)
	last := func(change func(*activation.Record)) func(int, int, []*activation.Record) []*activation.Record {
		return func(_, partition int, list []*activation.Record) []*activation.Record {
			if partition == 1 {
				r := *list[3]
				change(&r)
				list[3] = &r
			}
			return list
		}
	}
	for name, c := range map[string]struct {
		change func(int, int, []*activation.Record) []*activation.Record
		stream func(*Stream)
		plan   func(*Plan)
		want   []string
	}{
		"gap": {change: func(_, partition int, list []*activation.Record) []*activation.Record {
			if partition == 1 {
				list = slices.Delete(list, 2, 3)
			}
			return list
		}, want: []string{"partition 1: offset 2", "it holds epoch 0, sequence", "where epoch 0, sequence", "records are missing"}},
		"seed":         {plan: func(p *Plan) { p.Seed = 5 }, want: []string{"partition", "the producer's --seed is not this run's 5"}},
		"teacher":      {change: last(func(r *activation.Record) { r.Teacher = strings.Repeat("0", 64) }), want: []string{"partition 1: offset 3", "of teacher 000000000000, want"}},
		"token-set":    {change: last(func(r *activation.Record) { r.TokenSet = strings.Repeat("0", 64) }), want: []string{"partition 1: offset 3", "of token set 000000000000, want"}},
		"layer":        {change: last(func(r *activation.Record) { r.Layer = 1 }), want: []string{"partition 1: offset 3", "of layer 1, want 0"}},
		"shape":        {change: last(func(r *activation.Record) { r.Dim, r.Values = 8, r.Values[:8*testLength*2] }), want: []string{"12 tokens × 8, want 12 × 16"}},
		"corrupt":      {want: []string{"partition", "offset 4", "damaged", ".rejected now; --on-bad-record skip"}},
		"stranger":     {change: last(func(r *activation.Record) { r.SequenceID = 99 }), want: []string{"sequence 99 is none of the token set's"}},
		"dtype":        {change: last(func(r *activation.Record) { r.Type, r.Values = dtype.Float32, make([]byte, 4*16*testLength) }), want: []string{"the record's values are F32, those before it F16"}},
		"past the end": {plan: func(p *Plan) { p.Start = Position{Index: 4, Offsets: offsets(2, 99)} }, want: []string{"partition 1: offset 99 is past the log's end at 8"}},
		"repartition":  {plan: func(p *Plan) { p.Start = Position{Index: 4, Offsets: offsets(2)} }, want: []string{"it has 2 partitions now, 1 when the checkpoint was written"}},
		"short": {plan: func(p *Plan) { p.Total = 30 }, stream: func(s *Stream) { s.Stall = 300 * time.Millisecond },
			want: []string{"partition", "offset 8", "no record for 0s", "epoch 2, sequence", "number 0 of its epoch", "--stall-timeout"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProducer(t, b, dir)
			p.change, p.flip = c.change, name == "corrupt"
			p.write(t)
			s, plan := p.stream(0), testPlan(t, dir, 3, 16)
			if c.stream != nil {
				c.stream(&s)
			}
			if c.plan != nil {
				c.plan(&plan)
				for _, parts := range plan.Start.Offsets { // under the right topic
					plan.Start.Offsets = map[string]map[int]int64{activation.Topic(p.run, 0): parts}
				}
			}
			source, err := NewStreamSource(context.Background(), s, plan)
			for err == nil {
				if _, err = source.Next(context.Background()); err != nil {
					source.Close()
				}
			}
			for _, want := range append(c.want, "topic "+activation.Topic(p.run, 0)) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\nwant %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than a line: %v", err)
			}
		})
	}
}

// offsets are those of partitions 0, 1, …, under any topic.
func offsets(list ...int64) map[string]map[int]int64 {
	parts := map[int]int64{}
	for i, o := range list {
		parts[i] = o
	}
	return map[string]map[int]int64{"": parts}
}

func TestRecordsThatRetentionDeletedAreNamed(t *testing.T) {
	dir := testSet(t, 8)
	b := embeddedBroker(t)
	p := newProducer(t, b, dir)
	p.write(t)
	topic := activation.Topic(p.run, 0)
	plan := testPlan(t, dir, 3, 16)
	plan.Start = Position{Index: 2, Offsets: map[string]map[int]int64{topic: {0: 1, 1: 1}}}
	deleteRecords(t, b, topic, 1, 5)
	_, err := NewStreamSource(context.Background(), p.stream(0), plan)
	if want := "topic " + topic + ": partition 1: offset 1 was deleted: the log begins at 5 now (retention?)"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	plan.Start = Position{} // the beginning is gone too
	s, err := NewStreamSource(context.Background(), p.stream(0), plan)
	for err == nil {
		if _, err = s.Next(context.Background()); err != nil {
			s.Close()
		}
	}
	if !strings.Contains(err.Error(), "partition 1: offset 5") || !strings.Contains(err.Error(), "records are missing") {
		t.Error(err)
	}
}

func TestStreamedDistillationIsTheInlineOneAndResumes(t *testing.T) {
	dir := testSet(t, 8)
	p := newProducer(t, startBroker(t), dir)
	p.write(t)
	streamed, inline := p.distill(t, dir), trainers(t, dir)[0]
	want := t.TempDir()
	if _, err := inline.train(context.Background(), "cpu", want, func(r *Run) { r.Steps = 5 }); err != nil {
		t.Fatal(err)
	}
	got := t.TempDir()
	if _, err := streamed.train(context.Background(), "cpu", got, nil); err != nil {
		t.Fatal(err)
	}
	endOf(t, got).compare(t, endOf(t, want), "stream against inline")
	_, _, state, err := checkpoint.LoadTraining(filepath.Join(got, "latest"))
	if err != nil || len(state.Offsets[activation.Topic(p.run, 1)]) != 2 {
		t.Fatalf("offsets in the checkpoint: %v %v", state.Offsets, err)
	}
	for _, at := range []int64{4, 8} {
		dir := t.TempDir()
		w := &wrapped{before: func(n int64) error {
			if n == at {
				return errKilled
			}
			return nil
		}}
		if _, err := streamed.train(context.Background(), w.register(t), dir, nil); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		if _, err := streamed.train(context.Background(), "cpu", dir, nil); err != nil {
			t.Fatal(err)
		}
		endOf(t, dir).compare(t, endOf(t, want), fmt.Sprintf("killed in step %d", at))
	}
	// a trainer that has read all it wants is forgotten, one that was killed is not
	topic := activation.Topic(p.run, 1)
	if told := p.told(t, topic, got); len(told) > 0 {
		t.Errorf("a trainer at its end is still registered: %v", told)
	}
	killed := t.TempDir()
	w := &wrapped{before: func(n int64) error {
		if n == 7 {
			return errKilled
		}
		return nil
	}}
	if _, err := streamed.train(context.Background(), w.register(t), killed, nil); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	read := int64(0)
	for _, offset := range p.told(t, topic, killed) {
		read += offset
	}
	if read < 6 || read >= 15 { // in step 2 of the layer, of 3 sequences each, and 5 steps in all
		t.Errorf("a trainer killed in its second step told to have read %d records", read)
	}
	if told := p.told(t, activation.Topic(p.run, 0), killed); len(told) > 0 {
		t.Errorf("a trainer beyond layer 0 is still registered there: %v", told)
	}
	// nor is one after it was killed between the two layers: a producer would wait
	// for it for ever
	client, err := newBroker(p.broker.access)
	if err != nil {
		t.Fatal(err)
	}
	defer client.transport.CloseIdleConnections()
	name, err := trainerName(killed)
	if err != nil || !client.publish(context.Background(), name, 1, map[string]map[int]int64{activation.Topic(p.run, 0): {0: 1, 1: 1}}) {
		t.Fatal(err)
	}
	if _, err := streamed.train(context.Background(), "cpu", killed, nil); err != nil {
		t.Fatal(err)
	}
	if told := p.told(t, activation.Topic(p.run, 0), killed); len(told) > 0 {
		t.Errorf("a trainer killed between two layers is still registered on the first: %v", told)
	}
}
