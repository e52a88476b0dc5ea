package trainers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/infra/contest"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/dtype"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// numbered are sequences 0 to n−1, in that order.
type numbered int64

func (n numbered) Order(tokenset.Split, int64, int64) []int64 {
	ids := make([]int64, n)
	for i := range ids {
		ids[i] = int64(i)
	}
	return ids
}

func (numbered) AppendSequence(dst []int32, _ tokenset.Split, _ int64) ([]int32, error) {
	return append(dst, make([]int32, 1024)...), nil
}

// The feed's second half at the paper's size, 1024 × 512 float16, over four
// partitions: kafka-go's own readers, the stream, a replay's first epoch and
// its later ones, each from opening to closing. infra/kafka/bench.sh runs it over a real Kafka beside Kafka's
// own tool.
func BenchmarkFeedRead(b *testing.B) {
	const partitions, records, length, dim = 4, 720, 1024, 512
	broker := startBroker(b)
	client := broker.client(b)
	s := Stream{Access: broker.access, Topic: fmt.Sprint("feed-", time.Now().UnixNano()), Layers: []int{0}, Dim: dim, Stall: time.Minute}
	topic := activation.Topic(s.Topic, 0)
	r, err := client.CreateTopics(context.Background(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: topic, NumPartitions: partitions, ReplicationFactor: 1,
		ConfigEntries: []kafka.ConfigEntry{{ConfigName: "max.message.bytes", ConfigValue: "8388608"}}}}})
	if err == nil {
		err = r.Errors[topic]
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { // not left to a broker that stays
		client.DeleteTopics(context.Background(), &kafka.DeleteTopicsRequest{Topics: []string{topic}})
	})
	var size int64
	for id := range int64(records) {
		v, err := activation.Marshal(&activation.Record{SequenceID: id, Length: length, Dim: dim, Type: dtype.Float16, Tokens: make([]int32, length), Values: make([]byte, 2*length*dim)})
		if err != nil {
			b.Fatal(err)
		}
		produce(b, client, topic, activation.Partition(id, partitions), [][]byte{activation.Key(id)}, [][]byte{v})
		size += int64(len(v))
	}
	plan := Plan{Tokens: numbered(records), Length: length, Batch: 60, Total: records}
	drain := func(source Source, batches int) error {
		for i := 0; i < batches || batches == 0; i++ {
			batch, err := source.Next(context.Background())
			if errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			batch.Release()
		}
		return nil
	}
	through := func(open func() (Source, error)) func() error {
		return func() error {
			source, err := open()
			if err != nil {
				return err
			}
			return errors.Join(drain(source, 0), source.Close())
		}
	}
	long := plan
	long.Total = 1 << 40
	kept, err := NewReplaySource(context.Background(), s, Replay{Dir: b.TempDir()}, long)
	if err != nil {
		b.Fatal(err)
	}
	defer kept.Close()
	if err := drain(kept, records/plan.Batch); err != nil { // the first epoch
		b.Fatal(err)
	}
	login := client.Transport.(*kafka.Transport)
	contest.Rounds(b, size, contest.Contestant{Name: "kafka-go", Run: func() error {
		var work sync.WaitGroup
		errs := make([]error, partitions)
		for p := range partitions {
			work.Go(func() {
				r := kafka.NewReader(kafka.ReaderConfig{Brokers: s.Brokers, Topic: topic, Partition: p, MaxBytes: fetchBytes, QueueCapacity: 8, MaxWait: 2 * time.Second,
					Dialer: &kafka.Dialer{TLS: login.TLS, SASLMechanism: login.SASL}})
				for i := 0; i < records/partitions && errs[p] == nil; i++ {
					_, errs[p] = r.FetchMessage(context.Background())
				}
				go r.Close() // which waits for a fetch of what is not there
			})
		}
		work.Wait()
		return errors.Join(errs...)
	}}, contest.Contestant{Name: "stream", Run: through(func() (Source, error) { return NewStreamSource(context.Background(), s, plan) })},
		contest.Contestant{Name: "replay, first epoch", Run: through(func() (Source, error) {
			return NewReplaySource(context.Background(), s, Replay{Dir: b.TempDir()}, plan)
		})},
		contest.Contestant{Name: "replay, later epochs", Run: func() error { return drain(kept, records/plan.Batch) }})
}
