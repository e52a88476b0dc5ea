package transforms

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/schemas/activation"
)

// tell publishes that a trainer has read a topic's partitions up to an offset.
func tell(t *testing.T, k *sink, topic, trainer string, offsets ...int64) {
	t.Helper()
	var all []kafka.OffsetCommit
	for p, offset := range offsets {
		all = append(all, kafka.OffsetCommit{Partition: p, Offset: offset})
	}
	if err := k.ask(t.Context(), func(ctx context.Context, c *kafka.Client) error {
		r, err := c.OffsetCommit(ctx, &kafka.OffsetCommitRequest{GroupID: activation.ProgressGroup(topic, trainer), GenerationID: -1, Topics: map[string][]kafka.OffsetCommit{topic: all}})
		if err != nil {
			return err
		}
		for _, p := range r.Topics[topic] {
			if p.Error != nil { // the groups' coordinator may be loading
				return p.Error
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// total is how many records the sink's topics hold.
func total(t *testing.T, k *sink) (n int64) {
	for _, topic := range k.topics() {
		for p := range k.Partitions {
			_, end, err := k.bounds(t.Context(), topic, p)
			if err != nil {
				return -1 // the topic is being made
			}
			n += end
		}
	}
	return n
}

// The teacher never has more than MaxLead in the topics that the slowest
// trainer has not read, whatever the others have, and ends when all read on.
func TestTeacherWaitsForTheSlowestTrainer(t *testing.T) {
	l := lesson(t, broker(t), 2)
	const most = 40 // records; a batch of 4 sequences in three layers has 12
	l.MaxLead = int64(most * l.Sink.recordBytes())
	if err := l.CheckLead(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var ended atomic.Bool
	failed := make(chan error, 1)
	go func() {
		_, err := give(ctx, l)
		ended.Store(true)
		failed <- err
	}()
	k := connected(t, l.Sink)
	stood := func() int64 { // waits until nothing more is sent
		t.Helper()
		for last, same := int64(-1), 0; ; time.Sleep(50 * time.Millisecond) {
			if ended.Load() {
				return total(t, k)
			}
			if n := total(t, k); n != last || n < 0 {
				last, same = n, 0
			} else if same++; same == 12 && n > 0 {
				return n
			}
		}
	}
	if n := stood(); n < most-24 || n > most {
		t.Fatalf("with no trainer %d records are sent, want %d to %d", n, most-24, most)
	}
	// one trainer of all layers, and one of layer 0 alone that has read nothing
	everywhere := func(trainer string) int64 {
		var n int64
		for _, topic := range k.topics() {
			var ends []int64
			for p := range 2 {
				_, end, err := k.bounds(t.Context(), topic, p)
				if err != nil {
					t.Fatal(err)
				}
				ends, n = append(ends, end), n+end
			}
			tell(t, k, topic, trainer, ends...)
		}
		return n
	}
	first := k.topics()[0]
	tell(t, k, first, "slow", 0, 0)
	var before int64
	for n := everywhere("fast"); n > before; n = everywhere("fast") {
		before = n
		stood()
	}
	layer0 := int64(0)
	for p := range 2 {
		_, end, err := k.bounds(t.Context(), first, p)
		if err != nil {
			t.Fatal(err)
		}
		layer0 += end
	}
	if layer0 > most || layer0 < most-24-4 {
		t.Errorf("%d records of layer 0 are sent while its slowest trainer has read none, want %d to %d", layer0, most-28, most)
	}
	if ended.Load() {
		t.Fatal("it did not wait for the slow trainer")
	}
	tell(t, k, first, "slow", 1000, 1000)
	for !ended.Load() {
		everywhere("fast")
		time.Sleep(20 * time.Millisecond)
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	complete(t, l)
}

// A trainer that was killed and does not come back holds the teacher up for a
// while only; one that reads nothing but lives on holds it up for as long.
func TestTrainerThatIsSilentIsPassedOver(t *testing.T) {
	l := lesson(t, broker(t), 1)
	l.MaxLead, l.TrainerTimeout = int64(30*l.Sink.recordBytes()), 500*time.Millisecond
	if err := l.Sink.Prepare(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	k := connected(t, l.Sink)
	for _, topic := range k.topics() {
		tell(t, k, topic, "fast", 1000)
	}
	tell(t, k, k.topics()[0], "killed", 0)
	alive := make(chan struct{})
	beats := make(chan struct{})
	go func() {
		defer close(beats)
		for i := 0; ; i++ {
			select {
			case <-alive:
				return
			case <-time.After(50 * time.Millisecond):
			}
			c := k.current()
			c.OffsetCommit(context.Background(), &kafka.OffsetCommitRequest{GroupID: activation.ProgressGroup(k.topics()[0], "slow"), GenerationID: -1,
				Topics: map[string][]kafka.OffsetCommit{k.topics()[0]: {{Partition: 0, Offset: 0, Metadata: fmt.Sprint(i)}}}})
		}
	}()
	failed := make(chan error, 1)
	go func() { _, err := give(t.Context(), l); failed <- err }()
	select {
	case err := <-failed:
		t.Fatalf("it did not wait for the trainer that lives: %v", err)
	case <-time.After(2 * time.Second):
	}
	close(alive)
	<-beats
	tell(t, k, k.topics()[0], "slow", 1000)
	if err := <-failed; err != nil { // without the killed one
		t.Fatal(err)
	}
	complete(t, l)
}

func TestLeadThatNoBatchFitsIsRefused(t *testing.T) {
	l := lesson(t, "127.0.0.1:1", 2)
	l.Workers = 2
	for lead, want := range map[int64]bool{0: true, 2*2*l.batchSize() - 1: false, 2 * 2 * l.batchSize(): true} {
		l.MaxLead = lead
		if err := l.CheckLead(); (err == nil) != want || err != nil && !strings.Contains(err.Error(), "want at least") {
			t.Errorf("--max-lead %d: %v", lead, err)
		}
	}
}

// makeTopic makes a topic of one partition.
func makeTopic(t *testing.T, k *sink, topic string, settings map[string]string) {
	t.Helper()
	var entries []kafka.ConfigEntry
	for name, value := range settings {
		entries = append(entries, kafka.ConfigEntry{ConfigName: name, ConfigValue: value})
	}
	r, err := k.current().CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: topic, NumPartitions: 1, ReplicationFactor: 1, ConfigEntries: entries}}})
	if err == nil {
		err = r.Errors[topic]
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestTopicsThatDoNotKeepTheirRecordsAreRefused(t *testing.T) {
	l := lesson(t, broker(t), 1)
	l.Sink.Layers, l.Sink.TopicBytes = []int{0}, 100_000
	k := connected(t, l.Sink)
	run := l.Sink.Run
	for name, c := range map[string]struct {
		key, value, want string
	}{
		"ms":      {retentionMs, "604800000", "retention.ms is 604800000"},
		"bytes":   {retentionBytes, "99999", "retention.bytes is 99999, and a partition may come to 100000"},
		"enough":  {retentionBytes, "100000", ""},
		"compact": {cleanupPolicy, "compact", "cleanup.policy is compact"},
	} {
		l.Sink.Run = run + "-" + name
		topic := activation.Topic(l.Sink.Run, 0)
		settings := map[string]string{retentionMs: "-1"}
		settings[c.key] = c.value
		makeTopic(t, k, topic, settings)
		l.Sink.AllowRetention = false
		if err := l.Sink.Prepare(t.Context(), nil); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), topic) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		l.Sink.AllowRetention = true
		if err := l.Sink.Prepare(t.Context(), nil); (err == nil) != (name != "compact") {
			t.Errorf("%s, allowed: %v", name, err)
		}
	}
}
