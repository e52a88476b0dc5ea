package trainers

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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

func orderHash(list []*Batch) string {
	h := sha256.New()
	for _, b := range list {
		fmt.Fprintln(h, b.IDs)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func TestStreamGivesWhatInlineGivesForAnyNumberOfPartitions(t *testing.T) {
	dir := testSet(t, 5, 3)
	b := startBroker(t)
	plan := testPlan(t, dir, 3, 16)
	for _, c := range []struct {
		partitions int
		kind       dtype.Type
		layers     []int
	}{{1, dtype.Float16, []int{0, 1}}, {2, dtype.Int8, []int{1}}, {4, dtype.BFloat16, []int{0, 1}}, {3, dtype.Float32, []int{0}}} {
		p := newProducer(t, b, dir)
		p.partitions, p.kind, p.run = c.partitions, c.kind, fmt.Sprintf("%s-%d", p.run, c.partitions)
		p.write(t)
		s, err := NewStreamSource(context.Background(), p.stream(c.layers...), plan)
		got, _ := drain(t, s, err)
		want := teachersBatches(t, plan, c.layers, c.kind)
		if orderHash(got) != orderHash(want) {
			t.Errorf("%d partitions: another order", c.partitions)
		}
		sameBatches(t, fmt.Sprintf("%d partitions", c.partitions), got, want)
	}
}

func TestDuplicatesAreDropped(t *testing.T) {
	dir := testSet(t, 8)
	p := newProducer(t, startBroker(t), dir)
	p.change = func(layer, partition int, list []*activation.Record) (out []*activation.Record) {
		for i, r := range list {
			out = append(out, r, r) // a retry of one
			if i == 2 || i == len(list)-1 {
				out = append(out, list[:i+1]...) // of all so far
			}
		}
		return out
	}
	p.write(t)
	plan := testPlan(t, dir, 3, 16)
	s, err := NewStreamSource(context.Background(), p.stream(0, 1), plan)
	got, _ := drain(t, s, err)
	sameBatches(t, "with duplicates", got, teachersBatches(t, plan, []int{0, 1}, dtype.Float16))
}

func TestStreamGoesOnFromItsOffsetsOrWithoutThem(t *testing.T) {
	dir := testSet(t, 8)
	p := newProducer(t, startBroker(t), dir)
	p.write(t)
	plan := testPlan(t, dir, 3, 16)
	s, err := NewStreamSource(context.Background(), p.stream(1), plan)
	all, positions := drain(t, s, err)
	for _, i := range []int{0, 3} {
		rest := plan
		rest.Start = positions[i]
		if n := len(rest.Start.Offsets[activation.Topic(p.run, 1)]); n != 2 {
			t.Fatalf("position has offsets of %d partitions", n)
		}
		s, err := NewStreamSource(context.Background(), p.stream(1), rest)
		got, _ := drain(t, s, err)
		sameBatches(t, "from offsets", got, all[i+1:])
		rest.Start.Offsets = nil // a run that was inline so far
		s, err = NewStreamSource(context.Background(), p.stream(1), rest)
		got, _ = drain(t, s, err)
		sameBatches(t, "without offsets", got, all[i+1:])
	}
}

func TestStreamRefusesByName(t *testing.T) {
	dir := testSet(t, 8)
	b := startBroker(t)
	last := func(change func(*activation.Record)) func(int, int, []*activation.Record) []*activation.Record {
		return func(_, partition int, list []*activation.Record) []*activation.Record {
			if partition == 1 {
				r := *list[3]
				change(&r)
				list[3] = &r
			}
			return list
		}
	}
	for name, c := range map[string]struct {
		change func(int, int, []*activation.Record) []*activation.Record
		stream func(*Stream)
		plan   func(*Plan)
		want   []string
	}{
		"gap": {change: func(_, partition int, list []*activation.Record) []*activation.Record {
			if partition == 1 {
				list = slices.Delete(list, 2, 3)
			}
			return list
		}, want: []string{"partition 1: offset 2", "it holds epoch 0, sequence", "where epoch 0, sequence", "records are missing"}},
		"seed":         {plan: func(p *Plan) { p.Seed = 5 }, want: []string{"partition", "the producer's --seed is not this run's 5"}},
		"teacher":      {change: last(func(r *activation.Record) { r.Teacher = strings.Repeat("0", 64) }), want: []string{"partition 1: offset 3", "of teacher 000000000000, want"}},
		"token-set":    {change: last(func(r *activation.Record) { r.TokenSet = strings.Repeat("0", 64) }), want: []string{"partition 1: offset 3", "of token set 000000000000, want"}},
		"layer":        {change: last(func(r *activation.Record) { r.Layer = 1 }), want: []string{"partition 1: offset 3", "of layer 1, want 0"}},
		"shape":        {change: last(func(r *activation.Record) { r.Dim, r.Values = 8, r.Values[:8*testLength*2] }), want: []string{"12 tokens × 8, want 12 × 16"}},
		"corrupt":      {want: []string{"partition", "offset 4", "damaged", ".rejected now; --on-bad-record skip"}},
		"stranger":     {change: last(func(r *activation.Record) { r.SequenceID = 99 }), want: []string{"sequence 99 is none of the token set's"}},
		"dtype":        {change: last(func(r *activation.Record) { r.Type, r.Values = dtype.Float32, make([]byte, 4*16*testLength) }), want: []string{"the record's values are F32, those before it F16"}},
		"past the end": {plan: func(p *Plan) { p.Start = Position{Index: 4, Offsets: offsets(2, 99)} }, want: []string{"partition 1: offset 99 is past the log's end at 8"}},
		"repartition":  {plan: func(p *Plan) { p.Start = Position{Index: 4, Offsets: offsets(2)} }, want: []string{"it has 2 partitions now, 1 when the checkpoint was written"}},
		"short": {plan: func(p *Plan) { p.Total = 30 }, stream: func(s *Stream) { s.Stall = 300 * time.Millisecond },
			want: []string{"partition", "offset 8", "no record for 0s", "epoch 2, sequence", "number 0 of its epoch", "--stall-timeout"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProducer(t, b, dir)
			p.change, p.flip = c.change, name == "corrupt"
			p.write(t)
			s, plan := p.stream(0), testPlan(t, dir, 3, 16)
			if c.stream != nil {
				c.stream(&s)
			}
			if c.plan != nil {
				c.plan(&plan)
				for _, parts := range plan.Start.Offsets { // under the right topic
					plan.Start.Offsets = map[string]map[int]int64{activation.Topic(p.run, 0): parts}
				}
			}
			source, err := NewStreamSource(context.Background(), s, plan)
			for err == nil {
				if _, err = source.Next(context.Background()); err != nil {
					source.Close()
				}
			}
			for _, want := range append(c.want, "topic "+activation.Topic(p.run, 0)) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\nwant %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than a line: %v", err)
			}
		})
	}
}

// offsets are those of partitions 0, 1, …, under any topic.
func offsets(list ...int64) map[string]map[int]int64 {
	parts := map[int]int64{}
	for i, o := range list {
		parts[i] = o
	}
	return map[string]map[int]int64{"": parts}
}

func TestRecordsThatRetentionDeletedAreNamed(t *testing.T) {
	dir := testSet(t, 8)
	b := embeddedBroker(t)
	p := newProducer(t, b, dir)
	p.write(t)
	topic := activation.Topic(p.run, 0)
	plan := testPlan(t, dir, 3, 16)
	plan.Start = Position{Index: 2, Offsets: map[string]map[int]int64{topic: {0: 1, 1: 1}}}
	deleteRecords(t, b, topic, 1, 5)
	_, err := NewStreamSource(context.Background(), p.stream(0), plan)
	if want := "topic " + topic + ": partition 1: offset 1 was deleted: the log begins at 5 now (retention?)"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	plan.Start = Position{} // the beginning is gone too
	s, err := NewStreamSource(context.Background(), p.stream(0), plan)
	for err == nil {
		if _, err = s.Next(context.Background()); err != nil {
			s.Close()
		}
	}
	if !strings.Contains(err.Error(), "partition 1: offset 5") || !strings.Contains(err.Error(), "records are missing") {
		t.Error(err)
	}
}

func TestBrokerOrTopicThatIsNotThere(t *testing.T) {
	dir := testSet(t, 8)
	p := newProducer(t, startBroker(t), dir)
	s := p.stream(0)
	s.Stall = 200 * time.Millisecond
	var told string
	s.Notice = func(line string) { told = line }
	if _, err := NewStreamSource(context.Background(), s, testPlan(t, dir, 3, 16)); err == nil || !strings.Contains(err.Error(), "not there after 200ms") {
		t.Errorf("no topic: %v", err)
	}
	if !strings.Contains(told, "waiting up to 200ms for topic "+activation.Topic(p.run, 0)) {
		t.Errorf("notice %q", told)
	}
	s.Brokers, s.BrokerTimeout = []string{"127.0.0.1:1"}, 300*time.Millisecond
	if _, err := NewStreamSource(context.Background(), s, testPlan(t, dir, 3, 16)); err == nil || !strings.Contains(err.Error(), "broker 127.0.0.1:1 has been away for") || strings.Contains(err.Error(), "\n") {
		t.Errorf("no broker: %v", err)
	}
	if !strings.Contains(told, "127.0.0.1:1 does not answer") || !strings.Contains(told, "refused") {
		t.Errorf("notice %q", told)
	}
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

func TestStreamedDistillationIsTheInlineOneAndResumes(t *testing.T) {
	dir := testSet(t, 8)
	p := newProducer(t, startBroker(t), dir)
	p.write(t)
	streamed, inline := p.distill(t, dir), trainers(t, dir)[0]
	want := t.TempDir()
	if _, err := inline.train(context.Background(), "cpu", want, func(r *Run) { r.Steps = 5 }); err != nil {
		t.Fatal(err)
	}
	got := t.TempDir()
	if _, err := streamed.train(context.Background(), "cpu", got, nil); err != nil {
		t.Fatal(err)
	}
	endOf(t, got).compare(t, endOf(t, want), "stream against inline")
	_, _, state, err := checkpoint.LoadTraining(filepath.Join(got, "latest"))
	if err != nil || len(state.Offsets[activation.Topic(p.run, 1)]) != 2 {
		t.Fatalf("offsets in the checkpoint: %v %v", state.Offsets, err)
	}
	for _, at := range []int64{4, 8} {
		dir := t.TempDir()
		w := &wrapped{before: func(n int64) error {
			if n == at {
				return errKilled
			}
			return nil
		}}
		if _, err := streamed.train(context.Background(), w.register(t), dir, nil); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		if _, err := streamed.train(context.Background(), "cpu", dir, nil); err != nil {
			t.Fatal(err)
		}
		endOf(t, dir).compare(t, endOf(t, want), fmt.Sprintf("killed in step %d", at))
	}
	// a trainer that has read all it wants is forgotten, one that was killed is not
	topic := activation.Topic(p.run, 1)
	if told := p.told(t, topic, got); len(told) > 0 {
		t.Errorf("a trainer at its end is still registered: %v", told)
	}
	killed := t.TempDir()
	w := &wrapped{before: func(n int64) error {
		if n == 7 {
			return errKilled
		}
		return nil
	}}
	if _, err := streamed.train(context.Background(), w.register(t), killed, nil); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	read := int64(0)
	for _, offset := range p.told(t, topic, killed) {
		read += offset
	}
	if read < 6 || read >= 15 { // in step 2 of the layer, of 3 sequences each, and 5 steps in all
		t.Errorf("a trainer killed in its second step told to have read %d records", read)
	}
	if told := p.told(t, activation.Topic(p.run, 0), killed); len(told) > 0 {
		t.Errorf("a trainer beyond layer 0 is still registered there: %v", told)
	}
	// nor is one after it was killed between the two layers: a producer would wait
	// for it for ever
	client, err := newBroker(p.broker.access)
	if err != nil {
		t.Fatal(err)
	}
	defer client.transport.CloseIdleConnections()
	name, err := trainerName(killed)
	if err != nil || !client.publish(context.Background(), name, 1, map[string]map[int]int64{activation.Topic(p.run, 0): {0: 1, 1: 1}}) {
		t.Fatal(err)
	}
	if _, err := streamed.train(context.Background(), "cpu", killed, nil); err != nil {
		t.Fatal(err)
	}
	if told := p.told(t, activation.Topic(p.run, 0), killed); len(told) > 0 {
		t.Errorf("a trainer killed between two layers is still registered on the first: %v", told)
	}
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

func TestBrokerRestartInTheMiddleOfALayer(t *testing.T) {
	dir := testSet(t, 8)
	b := embeddedBroker(t)
	p := newProducer(t, b, dir)
	p.to = 1
	p.write(t)
	plan := testPlan(t, dir, 1, 16)
	stream := p.stream(0, 1)
	stream.Stall = 20 * time.Second
	s, err := NewStreamSource(context.Background(), stream, plan)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	restarted := make(chan struct{})
	var got []*Batch
	for i := range 16 {
		if i == 3 { // what comes after the first epoch is not even written yet
			b.Close()
			go func() {
				defer close(restarted)
				time.Sleep(300 * time.Millisecond)
				b.start(t)
				p.from, p.to = 1, 2
				p.write(t)
			}()
		}
		batch, err := s.Next(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, batch)
	}
	<-restarted
	sameBatches(t, "over a restart", got, teachersBatches(t, plan, []int{0, 1}, dtype.Float16))
}

// A broker that goes away is said to, once; when it stays away the run ends
// with its state saved, and goes on when the broker is there again.
func TestBrokerThatStaysAwayEndsTheRunWithItsStateSaved(t *testing.T) {
	dir := testSet(t, 8)
	b := embeddedBroker(t)
	p := newProducer(t, b, dir)
	p.to = 1
	p.write(t)
	teacher := saved(t, p.teacher)
	o := DistillOptions{Run: Run{Dataset: dir, Dir: t.TempDir(), Seed: 4, Batch: 3, Steps: 5, SaveEvery: 100, Quiet: true}, StudentOptions: StudentOptions{Width: 8, Bands: 5},
		Teacher: teacher, Feed: Feed{Access: b.access, Topic: p.run, Stall: 20 * time.Second, BrokerTimeout: 500 * time.Millisecond}}
	w := &wrapped{before: func(n int64) error {
		if n == 2 {
			b.Close()
		}
		return nil
	}}
	o.Device = w.register(t)
	_, err := Distill(context.Background(), o)
	for _, want := range []string{"step 3: topic ", "broker " + b.addr + " has been away for ", "--broker-timeout", "refused"} {
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want one line with %q", err, want)
		}
	}
	if _, _, s, err := checkpoint.LoadTraining(filepath.Join(o.Dir, "latest")); err != nil || s.Step != 2 {
		t.Fatalf("checkpoint %+v: %v", s, err)
	}
	b.start(t)
	p.from, p.to = 1, 2
	p.write(t)
	o.Device = "cpu"
	if _, err := Distill(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	got := endOf(t, o.Dir)
	o.Source, o.Dir = FromInline, t.TempDir()
	if _, err := Distill(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	got.compare(t, endOf(t, o.Dir), "over an absence")
}

func TestAbsenceOfTheBrokerIsToldOnce(t *testing.T) {
	dir := testSet(t, 8)
	b := embeddedBroker(t)
	p := newProducer(t, b, dir)
	p.to = 1
	p.write(t)
	var mu sync.Mutex
	var told []string
	stream := p.stream(0, 1)
	stream.Stall, stream.BrokerTimeout = 1500*time.Millisecond, time.Minute // absence does not count as a stall
	stream.Notice = func(s string) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, s)
	}
	s, err := NewStreamSource(context.Background(), stream, testPlan(t, dir, 4, 16))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range 4 {
		if i == 2 {
			b.Close()
			time.Sleep(2 * time.Second)
			b.start(t)
			p.from, p.to = 1, 2
			p.write(t)
		}
		if _, err := s.Next(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(told) != 2 || !strings.Contains(told[0], "broker "+b.addr+" does not answer") || !strings.Contains(told[0], "trying again for up to 1m0s") || !strings.Contains(told[1], "answers again after") {
		t.Errorf("told %q", told)
	}
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
