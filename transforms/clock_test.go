package transforms

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/schemas/activation"
)

// jumping is a clock that jumps by hours and years each time it is read.
func jumping(t *testing.T) {
	var reads atomic.Int64
	jumps := []time.Duration{0, 3 * time.Hour, -5 * time.Hour, 30 * 24 * time.Hour, -20 * 365 * 24 * time.Hour, 50 * 365 * 24 * time.Hour}
	clock = func() time.Time { return time.Now().Add(jumps[int(reads.Add(1))%len(jumps)]) }
	t.Cleanup(func() { clock = time.Now })
}

// firstSince is the offset of a partition's first message that the broker takes to
// be of a time or later; −1 where there is none.
func firstSince(t *testing.T, k *sink, topic string, partition int, at time.Time) (offset int64) {
	t.Helper()
	if err := k.ask(t.Context(), func(ctx context.Context, c *kafka.Client) error {
		r, err := c.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: {kafka.TimeOffsetOf(partition, at)}}})
		if err != nil {
			return err
		}
		offset = -1
		for o := range r.Topics[topic][0].Offsets {
			offset = o
		}
		return r.Topics[topic][0].Error
	}); err != nil {
		t.Fatal(err)
	}
	return offset
}

// A teacher whose clock jumps by hours and years, back and forth, between one
// request and the next, sends what it would have sent, and once; and the topics'
// own times, by which records may be deleted, are the broker's.
func TestTeachersClockThatJumpsChangesNothing(t *testing.T) {
	jumping(t)
	l := lesson(t, broker(t), 2)
	l.Batch = 2
	for _, want := range []int64{60, 0} { // and nothing again
		if n, err := give(t.Context(), l); err != nil || n != want {
			t.Fatalf("%d sequences were computed, want %d: %v", n, want, err)
		}
	}
	complete(t, l)
	if len(external.Brokers) == 0 {
		return // the embedded broker keeps the producer's times, and deletes nothing by them
	}
	now := time.Now()
	k := connected(t, l.Sink)
	for p := range l.Sink.Partitions {
		topic := activation.Topic(l.Sink.Run, 1)
		if at := firstSince(t, k, topic, p, now.Add(-time.Hour)); at != 0 {
			t.Errorf("partition %d: the first message of the last hour is %d, want 0", p, at)
		}
		if at := firstSince(t, k, topic, p, now.Add(time.Hour)); at != -1 {
			t.Errorf("partition %d: message %d is of the future", p, at)
		}
	}
}

// On a topic of others that goes by the producer's clock, a broker that
// refuses records of the future is one clear line.
func TestRecordsOfTheFutureAreOneClearLine(t *testing.T) {
	if len(external.Brokers) == 0 {
		t.Skip("the embedded broker takes any time: with the tag integration")
	}
	clock = func() time.Time { return time.Now().Add(100 * time.Hour) }
	t.Cleanup(func() { clock = time.Now })
	l := lesson(t, broker(t), 1)
	l.Sink.AllowRetention = true
	if err := l.Sink.Prepare(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	topic := activation.Topic(l.Sink.Run, 1)
	alter(t, l.Sink, topic, map[string]string{maxMessageBytes: strconv.Itoa(batchBytes), timestampType: "CreateTime", retentionMs: "3600000", "message.timestamp.after.max.ms": "3600000"})
	said := ""
	if err := l.Sink.Prepare(t.Context(), func(s string) { said += s }); err != nil || !strings.Contains(said, "set the topic's message.timestamp.type to LogAppendTime") || !strings.Contains(said, topic) {
		t.Errorf("%v, and it said %q", err, said)
	}
	_, err := give(t.Context(), l)
	if !errors.Is(err, kafka.InvalidTimestamp) || !strings.Contains(err.Error(), "is this machine's clock right") {
		t.Error(err)
	}
}

// alter changes a topic's settings.
func alter(t *testing.T, s Sink, topic string, to map[string]string) {
	t.Helper()
	var list []kafka.AlterConfigRequestConfig
	for name, value := range to {
		list = append(list, kafka.AlterConfigRequestConfig{Name: name, Value: value})
	}
	if err := connected(t, s).ask(t.Context(), func(ctx context.Context, c *kafka.Client) error {
		r, err := c.AlterConfigs(ctx, &kafka.AlterConfigsRequest{Resources: []kafka.AlterConfigRequestResource{{ResourceType: kafka.ResourceTypeTopic, ResourceName: topic, Configs: list}}})
		if err != nil {
			return err
		}
		for _, err := range r.Errors {
			if err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// A trainer whose clock, by which it numbers its signs of life, jumps back is
// no silent one.
func TestTrainersClockThatJumpsIsASignOfLife(t *testing.T) {
	tr := &teacher{Lesson: Lesson{TrainerTimeout: time.Nanosecond}}
	silent := func(words string) bool {
		time.Sleep(time.Millisecond) // longer than the timeout
		return tr.silent("trainer", words)
	}
	now := time.Now()
	for i, jump := range []time.Duration{0, -5 * time.Hour, 30 * 24 * time.Hour, -20 * 365 * 24 * time.Hour} {
		words := strconv.FormatInt(now.Add(jump).UnixNano(), 10)
		if silent(words) {
			t.Errorf("jump %d: it was taken for silent", i)
		}
		if !silent(words) {
			t.Errorf("jump %d: the same words were no silence", i)
		}
	}
}
