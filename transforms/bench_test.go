package transforms

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/infra/contest"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/dtype"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// The feed's first half at the paper's size, 1024 × 512 float16, over four
// partitions, in batches of 24 sequences: kafka-go's own requests with the same
// bytes, as many records a request and the same acknowledgements; the sink; and
// the teacher's whole way from float32 activations. infra/kafka/bench.sh runs it
// over a real Kafka beside Kafka's own tool.
func BenchmarkFeedWrite(b *testing.B) {
	const partitions, rows, length, dim, batches = 4, 24, 1024, 512, 6
	l := lesson(b, broker(b), partitions)
	l.Sink.Length, l.Sink.Dim, l.Sink.Layers = length, dim, []int{0}
	if err := l.Sink.Prepare(b.Context(), nil); err != nil {
		b.Fatal(err)
	}
	k, err := l.Sink.open(b.Context(), false, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer k.close()
	set, err := tokenset.Open(l.Dataset)
	if err != nil {
		b.Fatal(err)
	}
	t := &teacher{Lesson: l, sink: k, taught: k.taught}
	hidden := make([]float32, rows*length*dim)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range hidden {
		hidden[i] = r.Float32()*8 - 4
	}
	batch := gpu.Batch{Rows: rows, Length: length, Tokens: make([]int32, rows*length)}
	var pupils []pupil
	values, keys := make([][][]byte, partitions), make([][][]byte, partitions)
	var size int64
	for i := range rows {
		p := i % partitions
		pupils = append(pupils, pupil{id: int64(i), partition: p})
		rec := t.blank(0, set)
		rec.SequenceID, rec.Tokens = int64(i), batch.Tokens[:length]
		if rec.Values, rec.Scales, err = activation.Encode(dtype.Float16, hidden[i*length*dim:(i+1)*length*dim], dim); err != nil {
			b.Fatal(err)
		}
		v, err := activation.Marshal(&rec)
		if err != nil {
			b.Fatal(err)
		}
		values[p], keys[p], size = append(values[p], v), append(keys[p], activation.Key(int64(i))), size+int64(len(v))
	}
	for p := range partitions {
		t.partitions = append(t.partitions, p)
	}
	topic := activation.Topic(l.Sink.Run, 0)
	b.Cleanup(func() { // gigabytes, on a broker that stays
		k, err := l.Sink.connect()
		if err != nil {
			b.Fatal(err)
		}
		defer k.close()
		k.current().DeleteTopics(context.Background(), &kafka.DeleteTopicsRequest{Topics: []string{topic}})
	})
	all := func(write func(p int) error) func() error {
		return func() error {
			for range batches {
				var work sync.WaitGroup
				errs := make([]error, partitions)
				for p := range partitions {
					work.Go(func() { errs[p] = write(p) })
				}
				work.Wait()
				if err := errors.Join(errs...); err != nil {
					return err
				}
			}
			return nil
		}
	}
	ctx := b.Context()
	contest.Rounds(b, batches*size, contest.Contestant{Name: "kafka-go", Run: all(func(p int) error {
		var list []kafka.Record
		for i := range values[p] {
			list = append(list, kafka.Record{Key: kafka.NewBytes(keys[p][i]), Value: kafka.NewBytes(values[p][i])})
		}
		r, err := k.current().Produce(ctx, &kafka.ProduceRequest{Topic: topic, Partition: p, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(list...)})
		if err != nil {
			return err
		}
		return r.Error
	})}, contest.Contestant{Name: "sink", Run: all(func(p int) error { return k.write(ctx, topic, p, values[p], keys[p]) })},
		contest.Contestant{Name: "teacher", Run: func() error {
			for range batches {
				if err := t.send(ctx, portion{set: set, rows: pupils}, batch, []int{0}, [][]float32{hidden}); err != nil {
					return err
				}
			}
			return nil
		}})
}
