package transforms

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/schemas/activation"
)

// follower is a trainer that has told what it has read of the sink's topics.
type follower struct {
	name   string
	layers []int // of the topics
}

// followers lists the trainers that are registered on the sink's topics.
func (s *sink) followers(ctx context.Context) ([]follower, error) {
	var groups []kafka.ListGroupsResponseGroup
	err := s.ask(ctx, func(ctx context.Context, c *kafka.Client) error {
		r, err := c.ListGroups(ctx, &kafka.ListGroupsRequest{})
		if err != nil {
			return err
		}
		groups = r.Groups
		return r.Error
	})
	if err != nil {
		return nil, err
	}
	var list []follower
	at := map[string]int{}
	for _, layer := range s.Layers {
		for _, g := range groups {
			name, ok := strings.CutPrefix(g.GroupID, activation.ProgressGroup(activation.Topic(s.Run, layer), ""))
			if !ok || name == "" {
				continue
			}
			if _, known := at[name]; !known {
				at[name] = len(list)
				list = append(list, follower{name: name})
			}
			list[at[name]].layers = append(list[at[name]].layers, layer)
		}
	}
	return list, nil
}

// heard is what a trainer told last, and when it was first seen so.
type heard struct {
	what string
	at   time.Time
}

// lead is how many records of the partitions the slowest trainer has not read
// yet, over all topics that it is registered on, and its name. Control records
// do not count: a trainer reads them when it wants what comes behind them. With no trainer
// registered it is all records, and no name. A trainer that has told nothing
// new for TrainerTimeout is passed over: it was killed, and is not coming back.
func (t *teacher) lead(ctx context.Context) (records int64, name string, err error) {
	list, err := t.sink.followers(ctx)
	if err != nil {
		return 0, "", err
	}
	if len(list) == 0 {
		list = []follower{{layers: t.Sink.Layers}}
	}
	limits := map[string]map[int][2]int64{}
	for _, f := range list {
		var lag int64
		what := ""
		for _, layer := range f.layers {
			topic := activation.Topic(t.Sink.Run, layer)
			if limits[topic] == nil {
				if limits[topic], err = t.sink.allBounds(ctx, topic, t.partitions); err != nil {
					return 0, "", err
				}
			}
			read := map[int]int64{}
			if f.name != "" {
				var words string
				if read, words, err = t.sink.read(ctx, topic, f.name, t.partitions); err != nil {
					return 0, "", err
				}
				what += words
			}
			for p, b := range limits[topic] {
				from := max(b[0], read[p])
				lag += max(0, b[1]-from-t.controls.in(lane{layer, p}, from, b[1]))
			}
		}
		if f.name != "" && t.silent(f.name, what) {
			continue
		}
		if lag >= records {
			records, name = lag, f.name
		}
	}
	return records, name, nil
}

// silent tells whether a trainer has told the same for too long. Only this
// process's clock counts, and that cannot be set.
func (t *teacher) silent(name, what string) bool {
	if t.heard == nil {
		t.heard = map[string]heard{}
	}
	last, known := t.heard[name]
	if !known || last.what != what {
		t.heard[name] = heard{what, time.Now()}
		return false
	}
	return t.TrainerTimeout > 0 && time.Since(last.at) > t.TrainerTimeout
}

// read is how far a trainer has told to have read each partition, and all that
// it told: beside the offsets a number that changes while it lives.
func (s *sink) read(ctx context.Context, topic, trainer string, partitions []int) (read map[int]int64, words string, err error) {
	err = s.ask(ctx, func(ctx context.Context, c *kafka.Client) error {
		read, words = map[int]int64{}, ""
		r, err := c.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: activation.ProgressGroup(topic, trainer), Topics: map[string][]int{topic: partitions}})
		if err != nil {
			return err
		}
		list := r.Topics[topic]
		slices.SortFunc(list, func(a, b kafka.OffsetFetchPartition) int { return a.Partition - b.Partition })
		for _, p := range list {
			read[p.Partition] = max(0, p.CommittedOffset)
			words += fmt.Sprint(p.CommittedOffset, p.Metadata, ";")
		}
		if errors.Is(r.Error, kafka.GroupIdNotFound) { // it has just ended
			return nil
		}
		return r.Error
	})
	if err != nil {
		return nil, "", fmt.Errorf("topic %s: %w", topic, err)
	}
	return read, words, nil
}

// allBounds are the first offset and the one after the last of partitions.
// They are asked for in two calls: brokers answer one question a partition.
func (s *sink) allBounds(ctx context.Context, topic string, partitions []int) (map[int][2]int64, error) {
	bounds := map[int][2]int64{}
	for i, question := range []func(int) kafka.OffsetRequest{kafka.FirstOffsetOf, kafka.LastOffsetOf} {
		var asked []kafka.OffsetRequest
		for _, p := range partitions {
			asked = append(asked, question(p))
		}
		err := s.ask(ctx, func(ctx context.Context, c *kafka.Client) error {
			r, err := c.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: asked}})
			if err != nil {
				return err
			}
			answers := r.Topics[topic]
			if len(answers) != len(partitions) {
				return kafka.UnknownTopicOrPartition
			}
			for _, a := range answers {
				if a.Error != nil {
					return a.Error
				}
				b := bounds[a.Partition]
				b[i] = []int64{a.FirstOffset, a.LastOffset}[i]
				bounds[a.Partition] = b
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("topic %s: %w", topic, err)
		}
	}
	return bounds, nil
}

// batchSize is what a batch of all layers takes on the wire at most, bytes.
func (l Lesson) batchSize() int64 {
	return int64(l.Batch) * int64(l.Sink.recordBytes()) * int64(len(l.Sink.Layers))
}

// CheckLead says what of MaxLead cannot be: each worker has one batch on its
// way while it makes the next.
func (l Lesson) CheckLead() error {
	if least := 2 * int64(l.Workers) * l.batchSize(); l.MaxLead > 0 && l.MaxLead < least {
		return fmt.Errorf("--max-lead %d: want at least %d: %d worker(s) each have two batches of %d sequences × %d layers on their way", l.MaxLead, least, l.Workers, l.Batch, len(l.Sink.Layers))
	}
	return nil
}

const (
	// leadEvery is how often the lead is measured while the teacher waits.
	leadEvery = 100 * time.Millisecond
	// leadNotice is how long it waits before it says so.
	leadNotice = 5 * time.Second
)

// wait returns once the slowest trainer is close enough behind for another
// batch. What was measured holds until as much has been sent, as trainers only
// come closer.
func (t *teacher) wait(ctx context.Context, task *Task) error {
	if t.MaxLead == 0 {
		return nil
	}
	size := t.batchSize()
	if t.room >= size {
		t.room -= size
		return nil
	}
	for began, told := time.Now(), false; ; {
		turn := time.Now()
		records, name, err := t.lead(ctx)
		if err != nil {
			return err
		}
		lead := records * int64(t.Sink.recordBytes())
		// the batch before this one may be on its way, not in the topic yet
		if t.room = t.MaxLead/int64(t.Workers) - lead - size; t.room >= size {
			t.room -= size
			return nil
		}
		if !told && time.Since(began) > leadNotice {
			told = true
			if name == "" {
				task.Say(fmt.Sprintf("waiting: %d bytes are sent and no trainer reads them yet (--max-lead %d)", lead, t.MaxLead))
			} else {
				task.Say(fmt.Sprintf("waiting: trainer %s is %d bytes behind (--max-lead %d); it is passed over when it is silent for %v (--trainer-timeout)", name, lead, t.MaxLead, t.TrainerTimeout))
			}
		}
		timer := time.NewTimer(leadEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		since(&t.taught.waiting, turn)
	}
}
