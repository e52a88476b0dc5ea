package trainers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/infra/cluster"
	"github.com/scavenge/scavenge/schemas/activation"
)

// final tells an error of the broker that waiting does not mend.
func final(err error) bool {
	var k kafka.Error
	return errors.As(err, &k) && !k.Temporary() && k != kafka.Unknown && k != kafka.OffsetOutOfRange
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// broker is the way to a Kafka cluster.
type broker struct {
	addresses []string
	client    *kafka.Client
	transport *kafka.Transport // with the login
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
	patience  time.Duration // how long it may be away
	notice    func(string)  // may be nil

	mu   sync.Mutex
	away bool // people know it
}

// defaultPatience is longer than a cluster takes to restart or to fail over.
const defaultPatience = 10 * time.Minute

// dialBroker opens the connections of all brokers; tests make it fail.
var dialBroker = (&net.Dialer{Timeout: 5 * time.Second}).DialContext

func newBroker(a cluster.Access) (*broker, error) {
	t := &kafka.Transport{Dial: dialBroker, DialTimeout: 5 * time.Second, ClientID: "scavenge-trainer"}
	var err error
	if t.TLS, t.SASL, err = a.Login(); err != nil {
		return nil, err
	}
	return &broker{addresses: a.Brokers, transport: t, dial: dialBroker, patience: defaultPatience,
		client: &kafka.Client{Addr: kafka.TCP(a.Brokers...), Timeout: 10 * time.Second, Transport: t}}, nil
}

// isAway says once, whichever partition found out, that nothing answers.
func (b *broker) isAway(why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.away && b.notice != nil {
		b.notice(fmt.Sprintf("broker %s does not answer (%s): trying again for up to %v", strings.Join(b.addresses, ","), why, b.patience))
	}
	b.away = true
}

// isBack says once that it answers again.
func (b *broker) isBack(since time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away && b.notice != nil {
		b.notice(fmt.Sprintf("broker %s answers again after %v", strings.Join(b.addresses, ","), time.Since(since).Round(100*time.Millisecond)))
	}
	b.away = false
}

// dialer is for a connection of its own.
func (b *broker) dialer() *kafka.Dialer {
	return &kafka.Dialer{ClientID: "scavenge-trainer", Timeout: 10 * time.Second, DualStack: true, TLS: b.transport.TLS, SASLMechanism: b.transport.SASL, DialFunc: b.dial}
}

// partitions counts a topic's partitions; 0 for a topic that is not there.
func (b *broker) partitions(ctx context.Context, topic string) (int, error) {
	r, err := b.client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
	if err != nil {
		return 0, err
	}
	for _, t := range r.Topics {
		if t.Name != topic {
			continue
		}
		if errors.Is(t.Error, kafka.UnknownTopicOrPartition) || errors.Is(t.Error, kafka.LeaderNotAvailable) {
			return 0, nil
		}
		return len(t.Partitions), t.Error
	}
	return 0, nil
}

// bounds are a partition's first offset and the one after its last. They are
// asked for in two calls: brokers answer one question a partition.
func (b *broker) bounds(ctx context.Context, topic string, number int) (first, end int64, err error) {
	for _, q := range []kafka.OffsetRequest{kafka.FirstOffsetOf(number), kafka.LastOffsetOf(number)} {
		r, err := b.client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: {q}}})
		if err != nil {
			return 0, 0, err
		}
		answers := r.Topics[topic]
		if len(answers) != 1 {
			return 0, 0, fmt.Errorf("topic %s: partition %d: the broker gives no offsets", topic, number)
		}
		if answers[0].Error != nil {
			return 0, 0, fmt.Errorf("topic %s: partition %d: %w", topic, number, answers[0].Error)
		}
		if q.Timestamp == kafka.FirstOffset {
			first = answers[0].FirstOffset
		} else {
			end = answers[0].LastOffset
		}
	}
	return first, end, nil
}

// at is the message at an offset.
func (b *broker) at(ctx context.Context, topic string, partition int, offset int64) (value, key []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	r, err := b.client.Fetch(ctx, &kafka.FetchRequest{Topic: topic, Partition: partition, Offset: offset, MinBytes: 1, MaxBytes: fetchBytes, MaxWait: 2 * time.Second})
	if err != nil {
		return nil, nil, err
	}
	if r.Error != nil {
		return nil, nil, r.Error
	}
	for { // a batch may begin before the offset
		m, err := r.Records.ReadRecord()
		if err != nil {
			return nil, nil, fmt.Errorf("no message: %w", err)
		}
		if m.Offset != offset {
			continue
		}
		if m.Key != nil {
			if key, err = io.ReadAll(m.Key); err != nil {
				return nil, nil, err
			}
		}
		if m.Value != nil {
			value, err = io.ReadAll(m.Value)
		}
		return value, key, err
	}
}

// publish tells the broker how far a trainer has read, for tools that show lag
// and producers that wait for it. The trainer itself never reads it.
// beat is a number that changes with each call, which tells that it lives.
// Training does not depend on whether the broker takes it, which it tells.
func (b *broker) publish(ctx context.Context, trainer string, beat int64, offsets map[string]map[int]int64) (taken bool) {
	taken = true
	for topic, list := range offsets {
		var commits []kafka.OffsetCommit
		for number, offset := range list {
			commits = append(commits, kafka.OffsetCommit{Partition: number, Offset: offset, Metadata: strconv.FormatInt(beat, 10)})
		}
		r, err := b.client.OffsetCommit(ctx, &kafka.OffsetCommitRequest{GroupID: activation.ProgressGroup(topic, trainer), GenerationID: -1,
			Topics: map[string][]kafka.OffsetCommit{topic: commits}})
		if err != nil {
			return false
		}
		for _, p := range r.Topics[topic] { // a coordinator may be loading
			taken = taken && p.Error == nil
		}
	}
	return taken
}

// forget takes back what publish told of a topic: no producer need wait for
// this trainer there. It tells whether the broker has done so.
func (b *broker) forget(ctx context.Context, trainer, topic string) bool {
	group := activation.ProgressGroup(topic, trainer)
	r, err := b.client.DeleteGroups(ctx, &kafka.DeleteGroupsRequest{GroupIDs: []string{group}})
	return err == nil && (r.Errors[group] == nil || errors.Is(r.Errors[group], kafka.GroupIdNotFound))
}
