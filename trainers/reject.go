package trainers

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/schemas/activation"
)

// What to do about a record that is damaged.
const (
	BadRecordStop = "stop" // end the run; its state is saved
	BadRecordSkip = "skip" // leave its sequence out of its batch
)

// reject sends a damaged message to the topic for such and tells whether the
// wanted record is lost with it: by its key it may also be a repeated one. (A
// repetition of an epoch's last record, damaged, cannot be told from the next
// epoch's first one if that is the same sequence: it is taken for that.)
// Without OnBadRecord skip the run ends.
func (s *stream) reject(ctx context.Context, t *topic, partition int, m message, key []byte, want place) (lost bool, err error) {
	why := fmt.Errorf("topic %s: partition %d: offset %d: %w", t.name, partition, m.offset, m.bad)
	if err := s.sendRejected(ctx, t, partition, m, key, why); err != nil {
		return false, errors.Join(why, err)
	}
	s.rejected.Add(1)
	to := activation.RejectedTopic(t.name)
	if s.OnBadRecord != BadRecordSkip {
		return false, fmt.Errorf("%w: the message is in topic %s now; --on-bad-record skip goes on without its sequence", why, to)
	}
	id, ok := activation.SequenceOf(key)
	if !ok {
		return false, fmt.Errorf("%w: its key does not tell which sequence it was, so it cannot be skipped", why)
	}
	if id == want.id {
		s.notice("%v: the message is in topic %s now, and %v is left out", why, to, want)
		return true, nil
	}
	if index, known := s.order.find(want.epoch, id); known && index > want.index {
		return false, fmt.Errorf("%w: its key is of sequence %d where %v should be: records are missing", why, id, want)
	}
	s.duplicates.Add(1)
	return false, nil
}

// sendRejected writes a message to the topic for damaged ones, with its origin
// and the reason as headers. It does so again where that may help, for as long
// as a record is waited for.
func (s *stream) sendRejected(ctx context.Context, t *topic, partition int, m message, key []byte, why error) error {
	to := activation.RejectedTopic(t.name)
	made := false
	for began := time.Now(); ; {
		var err error
		if !made {
			if err = s.broker.create(ctx, to, max(8<<20, 2*len(m.value)+1024)); err == nil {
				made = true
			}
		}
		if made {
			if err = s.broker.produce(ctx, to, kafka.Record{Key: kafka.NewBytes(key), Value: kafka.NewBytes(m.value), Headers: []kafka.Header{
				{Key: "reason", Value: []byte(why.Error())}, {Key: "topic", Value: []byte(t.name)},
				{Key: "partition", Value: []byte(strconv.Itoa(partition))}, {Key: "offset", Value: []byte(strconv.FormatInt(m.offset, 10))}}}); err == nil {
				return nil
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if final(err) || time.Since(began) > s.Stall {
			return fmt.Errorf("topic %s: the damaged message cannot be kept there: %w", to, err)
		}
		sleep(ctx, 100*time.Millisecond)
	}
}

// create makes a topic of one partition, if it is not there.
func (b *broker) create(ctx context.Context, topic string, maxMessage int) error {
	r, err := b.client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: topic, NumPartitions: 1, ReplicationFactor: -1,
		ConfigEntries: []kafka.ConfigEntry{{ConfigName: "max.message.bytes", ConfigValue: strconv.Itoa(maxMessage)}, {ConfigName: "retention.ms", ConfigValue: "-1"},
			{ConfigName: "message.timestamp.type", ConfigValue: "LogAppendTime"}}}}}) // this machine's clock may be wrong
	if err != nil {
		return err
	}
	if err := r.Errors[topic]; err != nil && !errors.Is(err, kafka.TopicAlreadyExists) {
		return err
	}
	return nil
}

// produce writes a record to partition 0 of a topic.
func (b *broker) produce(ctx context.Context, topic string, r kafka.Record) error {
	answer, err := b.client.Produce(ctx, &kafka.ProduceRequest{Topic: topic, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(r)})
	if err != nil {
		return err
	}
	return answer.Error
}
