package transforms

import (
	"context"
	"fmt"
	"slices"

	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// resume finds where each lane goes on: after its last record.
func (t *teacher) resume(ctx context.Context) error {
	o := orders{t, map[int64][]int64{}}
	for _, l := range t.lanes(t.Sink.Layers) {
		if err := t.resumeLane(ctx, l, o); err != nil {
			return err
		}
	}
	return nil
}

func (t *teacher) resumeLane(ctx context.Context, l lane, o orders) error {
	topic := activation.Topic(t.Sink.Run, l.layer)
	begin, end, err := t.sink.bounds(ctx, topic, l.partition)
	if err != nil || end == 0 {
		return err
	}
	where := fmt.Sprintf("topic %s: partition %d", topic, l.partition)
	if begin == end {
		return fmt.Errorf("%s: its %d records have been deleted, so it cannot be gone on with: take another --topic", where, end)
	}
	at := func(offset int64) (*activation.Record, error) { return t.sink.at(ctx, topic, l.partition, offset) }
	last, err := at(end - 1)
	if err != nil {
		return err
	}
	set, err := t.course.Epoch(int64(last.Epoch))
	if err != nil {
		return fmt.Errorf("%s: it goes as far as epoch %d: %w", where, last.Epoch, err)
	}
	if err := t.same(last, l.layer, set); err != nil {
		return fmt.Errorf("%s: %w: take another --topic", where, err)
	}
	if begin == 0 { // the order of another seed would show
		if err := o.begins(l.partition, end, at); err != nil {
			return fmt.Errorf("%s: %w", where, err)
		}
	}
	next, whole, err := o.behind(last, l.partition)
	if err != nil {
		return fmt.Errorf("%s: %w: take another --topic", where, err)
	}
	if last.Control != 0 && (whole || t.MaxLead > 0) {
		closed, err := t.tail(l, last, begin, end, at)
		if err != nil {
			return err
		}
		if whole && closed {
			next = place{next.epoch + 1, 0}
		}
	}
	t.next[l] = next
	if last.Control == activation.EndOfStream {
		t.ended[l] = ending{int64(last.Epoch), last.Records}
	}
	return nil
}

// tail looks at the control records at a lane's end, of which last is the last.
// It notes where they are, and tells whether one of them ends last's epoch.
func (t *teacher) tail(l lane, last *activation.Record, begin, end int64, at func(int64) (*activation.Record, error)) (closed bool, err error) {
	r := last
	for offset := end - 1; r.Control != 0; {
		t.controls.add(l, offset)
		closed = closed || r.Control == activation.EndOfEpoch && r.Epoch == last.Epoch
		if offset--; offset < begin || closed && t.MaxLead == 0 {
			break
		}
		if r, err = at(offset); err != nil {
			return false, err
		}
	}
	return closed, nil
}

// blank is a record of a layer and an epoch's token set with all but its
// sequence filled in.
func (t *teacher) blank(layer int, set *tokenset.Set) activation.Record {
	r := activation.Record{TokenSet: set.Fingerprint(), Layer: layer, Length: t.Sink.Length}
	if layer != activation.Tokens {
		r.Teacher, r.Dim, r.Type = t.fingerprint, t.Sink.Dim, t.Sink.Type
	}
	return r
}

// same refuses to go on after the records of another lesson.
func (t *teacher) same(r *activation.Record, layer int, set *tokenset.Set) error {
	want := t.blank(layer, set)
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

// orders are the canonical orders that resume has looked at, by epoch.
type orders struct {
	teacher *teacher
	known   map[int64][]int64
}

func (o orders) of(epoch int64) ([]int64, error) {
	if _, known := o.known[epoch]; !known {
		set, err := o.teacher.course.Epoch(epoch)
		if err != nil {
			return nil, err
		}
		o.known[epoch] = set.Order(tokenset.Train, o.teacher.Seed, epoch)
	}
	return o.known[epoch], nil
}

// behind is the place behind a record in its partition: that of its next
// record, at the earliest. A record that ends the stream has it behind so many
// sequences of its epoch as it counts; whole tells that these are all, so that
// the record which ends the epoch may be there before it.
func (o orders) behind(r *activation.Record, partition int) (p place, whole bool, err error) {
	epoch := int64(r.Epoch)
	ids, err := o.of(epoch)
	if err != nil {
		return p, false, err
	}
	if r.Control == 0 {
		i := slices.Index(ids, r.SequenceID)
		if i < 0 {
			return p, false, fmt.Errorf("it holds sequence %d, which is not in the token set", r.SequenceID)
		}
		return place{epoch, int64(i) + 1}, false, nil
	}
	count := int64(0)
	for i, id := range ids {
		if activation.Partition(id, o.teacher.Sink.Partitions) != partition {
			continue
		}
		if r.Control == activation.EndOfStream && count == r.Records {
			return place{epoch, int64(i)}, false, nil
		}
		count++
	}
	switch {
	case count != r.Records:
		return p, false, fmt.Errorf("its %v record counts %d sequences of epoch %d, and the token set has %d there", r.Control, r.Records, epoch, count)
	case r.Control == activation.EndOfEpoch:
		return place{epoch + 1, 0}, false, nil
	}
	return place{epoch, int64(len(ids))}, true, nil
}

// begins refuses a partition whose first sequence is not its first in the
// canonical order. Epochs of which it has none are passed over.
func (o orders) begins(partition int, end int64, at func(int64) (*activation.Record, error)) error {
	for offset := int64(0); offset < end; offset++ {
		r, err := at(offset)
		if err != nil {
			return err
		}
		if r.Control != 0 {
			continue
		}
		for epoch := int64(0); epoch <= int64(r.Epoch); epoch++ {
			ids, err := o.of(epoch)
			if err != nil {
				return fmt.Errorf("it begins with epoch %d: %w", r.Epoch, err)
			}
			i := slices.IndexFunc(ids, func(id int64) bool { return activation.Partition(id, o.teacher.Sink.Partitions) == partition })
			switch {
			case i < 0:
				continue
			case epoch != int64(r.Epoch) || r.SequenceID != ids[i]:
				return fmt.Errorf("it begins with sequence %d of epoch %d, not with %d of epoch %d: it was taught with another --seed: take that, or another --topic", r.SequenceID, r.Epoch, ids[i], epoch)
			}
			return nil
		}
		return fmt.Errorf("it begins with sequence %d of epoch %d, of which it has none in the token set: take another --topic", r.SequenceID, r.Epoch)
	}
	return nil
}
