package trainers

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/dtype"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// leaveOut removes rows from batches; gone tells which, by the number of the
// batch's epoch and the sequence.
func leaveOut(list []*Batch, perEpoch int, gone func(epoch int, id int64) bool) (out []*Batch) {
	n := 0
	for _, b := range list {
		c := &Batch{Batch: gpu.Batch{Length: b.Length, Tokens: []int32{}}}
		for _, t := range b.Targets {
			c.Targets = append(c.Targets, gpu.Target{Layer: t.Layer, Type: t.Type})
		}
		for row, id := range b.IDs {
			epoch := n / perEpoch
			if n++; gone(epoch, id) {
				continue
			}
			c.Rows++
			c.IDs = append(c.IDs, id)
			c.Tokens = append(c.Tokens, b.Tokens[row*b.Length:(row+1)*b.Length]...)
			for i, t := range b.Targets {
				values := bytes.Join(t.Pieces(), nil)
				width := len(values) / b.Rows
				c.Targets[i].Values = append(c.Targets[i].Values, values[row*width:(row+1)*width]...)
			}
		}
		out = append(out, c)
	}
	return out
}

// messages reads partition 0 of a topic.
func messages(t *testing.T, b *testBroker, topic string) (list []kafka.Record, values []string) {
	t.Helper()
	for end := int64(1); int64(len(list)) < end; {
		r, err := b.client(t).Fetch(t.Context(), &kafka.FetchRequest{Topic: topic, Offset: int64(len(list)), MinBytes: 1, MaxBytes: 8 << 20, MaxWait: time.Second})
		if err == nil {
			err = r.Error
		}
		if err != nil {
			t.Fatal(err)
		}
		for end = r.HighWatermark; ; {
			m, err := r.Records.ReadRecord()
			if err != nil {
				break
			}
			if m.Offset < int64(len(list)) {
				continue
			}
			value, err := io.ReadAll(m.Value)
			if err != nil {
				t.Fatal(err)
			}
			list, values = append(list, *m), append(values, string(value))
		}
	}
	return list, values
}

func TestDamagedRecordsAreLeftOutAndKept(t *testing.T) {
	dir := testSet(t, 8)
	b := startBroker(t)
	for _, c := range []struct {
		source  string
		shuffle Shuffle
	}{{FromStream, Shuffle{}}, {FromStream, Shuffle{Window: 5, Seed: 1}}, {FromReplay, Shuffle{}}, {FromReplay, Shuffle{Window: 5, Seed: 1}}} {
		p := newProducer(t, b, dir)
		if p.to = 3; c.source == FromReplay {
			p.to = 1
		}
		order := p.set.Order(tokenset.Train, 4, 0)
		flipped, cut, twice := order[2], order[5], order[0]
		again := map[int64]int{}
		p.change = func(layer, partition int, list []*activation.Record) (out []*activation.Record) {
			for _, r := range list {
				if out = append(out, r); r.SequenceID == twice && r.Epoch == 0 {
					out = append(out, r) // a retry, which is damaged
				}
			}
			return out
		}
		var bad []string // messages of layer 0
		p.damage = func(r *activation.Record, v []byte) []byte {
			if r.Epoch > 0 {
				return v
			}
			switch {
			case r.SequenceID == flipped && r.Layer == 0:
				v[len(v)/2]++
			case r.SequenceID == cut && r.Layer == 1:
				return v[:len(v)-7]
			case r.SequenceID == twice && r.Layer == 0:
				if again[twice]++; again[twice] < 2 {
					return v
				}
				v = []byte("not a record at all")
			default:
				return v
			}
			if r.Layer == 0 {
				bad = append(bad, string(v))
			}
			return v
		}
		p.write(t)
		plan := testPlan(t, dir, 4, 24)
		plan.Shuffle = c.shuffle
		what := fmt.Sprintf("%s, window %d", c.source, c.shuffle.Window)
		want := leaveOut(teachersBatches(t, plan, []int{0, 1}, dtype.Float16), 8, func(epoch int, id int64) bool {
			return (id == flipped || id == cut) && (epoch == 0 || c.source == FromReplay)
		})
		open := func(start Position, cache string) (Source, error) {
			at, s := plan, p.stream(0, 1)
			at.Start, s.OnBadRecord = start, BadRecordSkip
			if c.source == FromReplay {
				return NewReplaySource(context.Background(), s, Replay{Dir: cache}, at)
			}
			return NewStreamSource(context.Background(), s, at)
		}
		s, err := open(Position{}, t.TempDir())
		got, positions := drain(t, s, err)
		sameBatches(t, what, got, want)

		topic := activation.Topic(p.run, 0)
		list, values := messages(t, b, activation.RejectedTopic(topic))
		slices.Sort(bad)
		if slices.Sort(values); !slices.Equal(values, bad) {
			t.Errorf("%s: %d messages are in the topic for damaged ones, want the %d of this layer", what, len(values), len(bad))
		}
		for _, m := range list {
			head := map[string]string{}
			for _, h := range m.Headers {
				head[h.Key] = string(h.Value)
			}
			if head["topic"] != topic || !strings.Contains(head["reason"], fmt.Sprintf("partition %s: offset %s: activation record: damaged: ", head["partition"], head["offset"])) {
				t.Errorf("%s: headers %v", what, head)
			}
		}
		for i, at := range positions { // what was left out stays out after a restart
			s, err := open(at, t.TempDir())
			got, _ := drain(t, s, err)
			sameBatches(t, fmt.Sprintf("%s, after batch %d", what, i), got, want[i+1:])
		}
	}
}

func TestDamagedRecordThatCannotBeSkippedStops(t *testing.T) {
	dir := testSet(t, 8)
	b := startBroker(t)
	for want, damage := range map[string]func(r *activation.Record, v []byte) []byte{
		"every record of the batch from epoch 1, sequence": func(r *activation.Record, v []byte) []byte {
			if r.Epoch == 1 {
				v[len(v)-1]++
			}
			return v
		},
		"version 3: this program reads version 1": func(r *activation.Record, v []byte) []byte {
			if v[0] == 8 { // the field's tag; its value follows
				v[1] = 3
			}
			return v
		},
	} {
		p := newProducer(t, b, dir)
		p.damage = damage
		p.write(t)
		s := p.stream(0)
		s.OnBadRecord = BadRecordSkip
		source, err := NewStreamSource(context.Background(), s, testPlan(t, dir, 4, 16))
		for err == nil {
			if _, err = source.Next(context.Background()); err != nil {
				source.Close()
			}
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for want, key := range map[string][]byte{"its key does not tell which sequence it was": []byte("?"), "records are missing": nil} {
		p := newProducer(t, b, dir)
		p.partitions = 1
		order := p.set.Order(tokenset.Train, 4, 0)
		topic := activation.Topic(p.run, 0)
		p.change = func(int, int, []*activation.Record) []*activation.Record { return nil } // the topic alone
		p.write(t)
		if key == nil {
			key = activation.Key(order[1]) // where the first should be
		}
		produce(t, b.client(t), topic, 0, [][]byte{key}, [][]byte{[]byte("not a record")})
		s := p.stream(0)
		s.OnBadRecord = BadRecordSkip
		source, err := NewStreamSource(context.Background(), s, testPlan(t, dir, 4, 16))
		if err != nil {
			t.Fatal(err)
		}
		if _, err = source.Next(context.Background()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		source.Close()
	}
}
