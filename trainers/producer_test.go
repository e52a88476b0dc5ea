package trainers

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/infra"
	"github.com/scavenge/scavenge/infra/cluster"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/dtype"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// external is the way to a real Kafka, in place of the embedded broker; see
// integration_test.go.
var external cluster.Access

// testBroker is a Kafka broker with its log on disk, which survives stop and start.
type testBroker struct {
	*infra.Broker // nil where a real Kafka is at addr
	access        cluster.Access
	dir           string
	addr          string
}

// startBroker is a broker for the tests of the stream's contract: the embedded
// one, or the real one.
func startBroker(t testing.TB) *testBroker {
	t.Helper()
	if len(external.Brokers) > 0 {
		return &testBroker{access: external, addr: external.Brokers[0]}
	}
	return embeddedBroker(t)
}

// embeddedBroker is one that a test may stop and start.
func embeddedBroker(t testing.TB) *testBroker {
	t.Helper()
	b := &testBroker{dir: t.TempDir()}
	b.start(t)
	t.Cleanup(func() { b.Close() })
	return b
}

// start begins, or goes on, at the same address.
func (b *testBroker) start(t testing.TB) {
	t.Helper()
	var err error
	for range 50 { // the port may need a moment to be free again
		if b.Broker, err = infra.StartBroker(infra.BrokerOptions{Dir: b.dir, Listen: b.addr}); err == nil {
			b.addr = b.Addr()
			b.access = cluster.Access{Brokers: []string{b.addr}}
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error(err)
}

// client is one of the broker's own, for as long as a test runs: connections
// to a broker that was stopped are of no use.
func (b *testBroker) client(t testing.TB) *kafka.Client {
	t.Helper()
	c, err := newBroker(b.access)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.transport.CloseIdleConnections)
	return c.client
}

// producer writes what pipelines/teach writes: for each layer a topic whose
// partitions hold the canonical order's records.
type producer struct {
	broker     *testBroker
	set        *tokenset.Set
	teacher    *checkpoint.Model
	run        string
	partitions int
	from, to   int64 // epochs
	kind       dtype.Type
	// change may alter a layer's records of a partition before they are written
	change func(layer, partition int, list []*activation.Record) []*activation.Record
	flip   bool // a byte of the second epoch's messages
	// damage may alter the bytes of a record
	damage func(r *activation.Record, value []byte) []byte
	clock  func() time.Time // that stamps the messages; nil: now
}

func newProducer(t testing.TB, b *testBroker, dir string) *producer {
	t.Helper()
	set, err := tokenset.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return &producer{broker: b, set: set, teacher: testTeacher(t), run: fmt.Sprintf("%s-%d", strings.ReplaceAll(t.Name(), "/", "-"), time.Now().UnixNano()), partitions: 2, to: 2, kind: dtype.Float16}
}

// records are those of all layers, by layer and partition.
func (p *producer) records(t testing.TB) [][][]*activation.Record {
	t.Helper()
	e, err := gpu.Open("cpu")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	m, err := e.Open(p.teacher, gpu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	c := p.teacher.Config
	list := make([][][]*activation.Record, c.Layers)
	for layer := range list {
		list[layer] = make([][]*activation.Record, p.partitions)
	}
	for epoch := p.from; epoch < p.to; epoch++ {
		for _, id := range p.set.Order(tokenset.Train, 4, epoch) {
			tokens, err := p.set.Sequence(tokenset.Train, id)
			if err != nil {
				t.Fatal(err)
			}
			hidden, err := m.Hidden(gpu.Batch{Rows: 1, Length: len(tokens), Tokens: tokens}, []int{0, 1})
			if err != nil {
				t.Fatal(err)
			}
			for layer := range list {
				r := &activation.Record{Teacher: p.teacher.Fingerprint(), TokenSet: p.set.Fingerprint(), Layer: layer, Epoch: int(epoch), SequenceID: id,
					Length: len(tokens), Dim: c.Dim, Type: p.kind, Tokens: slices.Clone(tokens)}
				if r.Values, r.Scales, err = activation.Encode(p.kind, hidden[layer], c.Dim); err != nil {
					t.Fatal(err)
				}
				at := activation.Partition(id, p.partitions)
				list[layer][at] = append(list[layer][at], r)
			}
		}
	}
	return list
}

// tokens are the token records, by partition.
func (p *producer) tokens(t testing.TB) [][]*activation.Record {
	t.Helper()
	list := make([][]*activation.Record, p.partitions)
	for epoch := p.from; epoch < p.to; epoch++ {
		for _, id := range p.set.Order(tokenset.Train, 4, epoch) {
			tokens, err := p.set.Sequence(tokenset.Train, id)
			if err != nil {
				t.Fatal(err)
			}
			at := activation.Partition(id, p.partitions)
			list[at] = append(list[at], &activation.Record{TokenSet: p.set.Fingerprint(), Layer: activation.Tokens, Epoch: int(epoch), SequenceID: id,
				Length: len(tokens), Tokens: slices.Clone(tokens)})
		}
	}
	return list
}

// write makes the topics where they are not there yet and writes all records.
func (p *producer) write(t testing.TB) {
	t.Helper()
	for layer, partitions := range p.records(t) {
		p.writeTopic(t, layer, partitions)
	}
}

func (p *producer) writeTopic(t testing.TB, layer int, partitions [][]*activation.Record) {
	t.Helper()
	client := p.broker.client(t)
	topic := activation.Topic(p.run, layer)
	r, err := client.CreateTopics(context.Background(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: topic, NumPartitions: p.partitions, ReplicationFactor: 1,
		ConfigEntries: []kafka.ConfigEntry{{ConfigName: "retention.ms", ConfigValue: "-1"}}}}})
	if err == nil {
		err = r.Errors[topic]
	}
	if err != nil && !errors.Is(err, kafka.TopicAlreadyExists) {
		t.Fatal(err)
	}
	for number, list := range partitions {
		if p.change != nil {
			list = p.change(layer, number, list)
		}
		var keys, values [][]byte
		for _, r := range list {
			value, err := activation.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if p.flip && r.Epoch == 1 {
				value[len(value)/2]++
			}
			if p.damage != nil {
				value = p.damage(r, value)
			}
			keys, values = append(keys, activation.Key(r.SequenceID)), append(values, value)
		}
		if len(values) > 0 {
			stamped(t, client, topic, number, keys, values, p.clock)
		}
	}
}

// produce writes messages to a partition.
func produce(t testing.TB, client *kafka.Client, topic string, partition int, keys, values [][]byte) {
	t.Helper()
	stamped(t, client, topic, partition, keys, values, nil)
}

// stamped writes messages with times of a clock; nil: now.
func stamped(t testing.TB, client *kafka.Client, topic string, partition int, keys, values [][]byte, clock func() time.Time) {
	t.Helper()
	if clock == nil {
		clock = time.Now
	}
	for tries := 0; ; tries++ {
		var list []kafka.Record
		for i := range values {
			list = append(list, kafka.Record{Time: clock(), Key: kafka.NewBytes(keys[i]), Value: kafka.NewBytes(values[i])})
		}
		r, err := client.Produce(t.Context(), &kafka.ProduceRequest{Topic: topic, Partition: partition, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(list...)})
		if err == nil {
			err = r.Error
		}
		if err == nil {
			return
		}
		// a new topic's leader may not know yet that it is one
		if tries == 100 || !errors.Is(err, kafka.NotLeaderForPartition) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (p *producer) stream(layers ...int) Stream {
	return Stream{Access: p.broker.access, Topic: p.run, Layers: layers, Dim: p.teacher.Config.Dim,
		Teacher: p.teacher.Fingerprint(), TokenSet: p.set.Fingerprint(), Stall: 2 * time.Second}
}

// distill is Distill from the producer's stream.
func (p *producer) distill(t testing.TB, dir string) trainer {
	teacher := saved(t, p.teacher)
	return trainer{"stream", 12, func(ctx context.Context, device, run string, change func(*Run)) (Summary, error) {
		r := Run{Dataset: dir, Dir: run, Device: device, Seed: 4, Batch: 3, Steps: 5, SaveEvery: 2, Quiet: true}
		if change != nil {
			change(&r)
		}
		return Distill(ctx, DistillOptions{Run: r, StudentOptions: StudentOptions{Width: 8, Bands: 5}, Teacher: teacher,
			Feed: Feed{Access: p.broker.access, Topic: p.run, Stall: 20 * time.Second}})
	}}
}

// told are the offsets that the trainer of a run's folder has published.
func (p *producer) told(t *testing.T, topic, run string) map[int]int64 {
	t.Helper()
	name, err := trainerName(run)
	if err != nil {
		t.Fatal(err)
	}
	again, err := trainerName(run)
	if err != nil || again != name || !strings.HasPrefix(name, filepath.Base(run)+"-") {
		t.Errorf("the trainer's name is %q and then %q; %v", name, again, err)
	}
	r, err := p.broker.client(t).OffsetFetch(t.Context(), &kafka.OffsetFetchRequest{GroupID: activation.ProgressGroup(topic, name), Topics: map[string][]int{topic: {0, 1}}})
	if err != nil {
		t.Fatal(err)
	}
	offsets := map[int]int64{}
	for _, x := range r.Topics[topic] {
		if x.CommittedOffset >= 0 {
			offsets[x.Partition] = x.CommittedOffset
		}
	}
	return offsets
}

// deleteRecords drops a partition's records before an offset, as retention does.
func deleteRecords(t testing.TB, b *testBroker, topic string, partition int32, before int64) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(b.addr))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	r := kmsg.NewDeleteRecordsRequest()
	r.TimeoutMillis = 5000
	r.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: topic, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Partition: partition, Offset: before}}}}
	answer, err := r.RequestWith(context.Background(), client)
	if err == nil {
		err = kerr.ErrorForCode(answer.Topics[0].Partitions[0].ErrorCode)
	}
	if err != nil {
		t.Fatal(err)
	}
}
