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

func (numbered) Sequence(tokenset.Split, int64) ([]int32, error) { return make([]int32, 1024), nil }

// The feed's second half at the paper's size, 1024 × 512 float16, over four
// partitions: kafka-go's own readers, the stream, a replay's first epoch and
// its later ones. infra/kafka/bench.sh runs it over a real Kafka beside Kafka's
// own tool.
func BenchmarkFeedRead(b *testing.B) {
	const partitions, records, length, dim = 4, 480, 1024, 512
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
	drain := func(b *testing.B, source Source, batches int) {
		for i := 0; i < batches || batches == 0; i++ {
			batch, err := source.Next(context.Background())
			if errors.Is(err, io.EOF) {
				return
			} else if err != nil {
				b.Fatal(err)
			}
			batch.Release()
		}
	}
	b.Run("kafka-go", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			var work sync.WaitGroup
			for p := range partitions {
				work.Go(func() {
					r := kafka.NewReader(kafka.ReaderConfig{Brokers: s.Brokers, Topic: topic, Partition: p, MaxBytes: readerBytes, QueueCapacity: 8, MaxWait: 2 * time.Second,
						Dialer: &kafka.Dialer{TLS: client.Transport.(*kafka.Transport).TLS, SASLMechanism: client.Transport.(*kafka.Transport).SASL}})
					for range records / partitions {
						if _, err := r.FetchMessage(context.Background()); err != nil {
							b.Error(err)
							break
						}
					}
					go r.Close() // which waits for a fetch of what is not there
				})
			}
			work.Wait()
		}
	})
	b.Run("stream", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			source, err := NewStreamSource(context.Background(), s, plan)
			if err != nil {
				b.Fatal(err)
			}
			drain(b, source, 0)
			source.Close()
		}
	})
	b.Run("replay, first epoch", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			source, err := NewReplaySource(context.Background(), s, Replay{Dir: b.TempDir()}, plan)
			if err != nil {
				b.Fatal(err)
			}
			drain(b, source, 0)
			source.Close()
		}
	})
	b.Run("replay, later epochs", func(b *testing.B) {
		b.SetBytes(size)
		long := plan
		long.Total = 1 << 40
		source, err := NewReplaySource(context.Background(), s, Replay{Dir: b.TempDir()}, long)
		if err != nil {
			b.Fatal(err)
		}
		defer source.Close()
		drain(b, source, records/plan.Batch)
		for b.Loop() {
			drain(b, source, records/plan.Batch)
		}
	})
}
