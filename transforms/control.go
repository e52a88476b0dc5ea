package transforms

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/scavenge/scavenge/schemas/activation"
)

// ending is what a record says that ends the stream: the last epoch, and how
// many sequences of it are in the record's partition.
type ending struct{ epoch, records int64 }

// lackControl is the lanes that lack a portion's control record. A lane that
// goes on beyond it, as another command told it to, needs none.
func (t *teacher) lackControl(p portion) []lane {
	var lanes []lane
	for _, l := range t.lanes(t.Sink.Layers) {
		if p.at.before(t.next[l]) {
			continue
		}
		// The end of the stream is there already if nothing has been sent behind
		// it, neither sequences, which would change the count, nor the epoch's end.
		e, ended := t.ended[l]
		if p.control == activation.EndOfStream && ended && e == (ending{p.epoch, p.counts[l.partition]}) && (p.at.epoch == p.epoch || t.next[l] == p.at) {
			continue
		}
		lanes = append(lanes, l)
	}
	return lanes
}

// sayUnended tells of a lane that holds more than this command was to send, and
// whose stream has not ended: a trainer that waits for its end waits in vain.
func (t *teacher) sayUnended(p portion, task *Task) {
	for _, l := range t.lanes(t.Sink.Layers) {
		if _, ended := t.ended[l]; !ended && p.control == activation.EndOfStream && p.at.before(t.next[l]) {
			task.Say(fmt.Sprintf("topic %s: partition %d holds more than is to be sent, and its stream has not ended: the command that went so far ends it (more --epochs or --sequences)",
				activation.Topic(t.Sink.Run, l.layer), l.partition))
			return
		}
	}
}

// sendControl writes a portion's control record to lanes.
func (t *teacher) sendControl(ctx context.Context, p portion, lanes []lane) error {
	return t.sideBySide(ctx, lanes, func(ctx context.Context, l lane) error {
		r := t.blank(l.layer, p.set)
		r.Control, r.Epoch, r.Records = p.control, int(p.epoch), p.counts[l.partition]
		value, err := activation.Marshal(&r)
		if err != nil {
			return err
		}
		offset, err := t.sink.writeBatch(ctx, activation.Topic(t.Sink.Run, l.layer), l.partition, [][]byte{value}, [][]byte{nil})
		if err == nil {
			t.controls.add(l, offset)
		}
		return err
	})
}

// controls are offsets of control records. A trainer reads them when it wants
// what comes behind: it is not waited for to do so.
type controls struct {
	mu      sync.Mutex
	offsets map[lane][]int64 // ascending
}

// add notes a control record.
func (c *controls) add(l lane, offset int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.offsets == nil {
		c.offsets = map[lane][]int64{}
	}
	list := c.offsets[l]
	i, _ := slices.BinarySearch(list, offset)
	c.offsets[l] = slices.Insert(list, i, offset)
}

// in counts those known of a lane from one offset to before another.
func (c *controls) in(l lane, from, end int64) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, _ := slices.BinarySearch(c.offsets[l], from)
	b, _ := slices.BinarySearch(c.offsets[l], end)
	return int64(b - a)
}
