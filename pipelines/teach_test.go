package pipelines

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/gpu"
	_ "github.com/scavenge/scavenge/gpu/cpu"
	"github.com/scavenge/scavenge/infra"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

const teachLength, teachVocab = 8, 40

// randomShard writes a split's only shard, of random sequences.
func randomShard(t *testing.T, dir string, split tokenset.Split, rows int, r *rand.Rand) tokenset.Shard {
	t.Helper()
	w, err := tokenset.NewWriter(filepath.Join(dir, tokenset.ShardName(split, 0, 1)), 0, teachLength, teachVocab)
	if err != nil {
		t.Fatal(err)
	}
	for range rows {
		tokens := make([]int32, teachLength)
		for i := range tokens {
			tokens[i] = r.Int32N(teachVocab)
		}
		if err := w.Append(tokens); err != nil {
			t.Fatal(err)
		}
	}
	s, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// teachInputs makes a token set of rows random sequences and a random teacher
// of two layers.
func teachInputs(t *testing.T, rows int) TeachOptions {
	t.Helper()
	r := rand.New(rand.NewPCG(3, 4))
	dir := t.TempDir()
	s := randomShard(t, dir, tokenset.Train, rows, r)
	if err := tokenset.WriteManifest(dir, &tokenset.Manifest{Tokenizer: tokenset.Tokenizer{Vocab: teachVocab}, SeqLen: teachLength, Splits: map[tokenset.Split]*tokenset.Counts{
		tokenset.Train: {Rows: s.Rows, Tokens: s.Rows * teachLength, Shards: []tokenset.Shard{s}}}}); err != nil {
		t.Fatal(err)
	}
	m := &checkpoint.Model{Weights: map[string][]float32{}, Config: checkpoint.Config{Architecture: checkpoint.GPTNeoX, Vocab: teachVocab, Dim: 8, Hidden: 16, Layers: 2,
		Context: 16, Eps: 1e-5, Attention: checkpoint.Attention{Heads: 2, RotaryPct: 0.5, RotaryBase: 10000}}}
	for _, s := range m.Config.Specs() {
		v := make([]float32, s.Size())
		for i := range v {
			v[i] = float32(r.NormFloat64() * 0.2)
		}
		m.Weights[s.Name] = v
	}
	teacher := filepath.Join(t.TempDir(), "teacher")
	if err := m.Save(teacher); err != nil {
		t.Fatal(err)
	}
	return TeachOptions{Dataset: dir, Teacher: teacher, Data: filepath.Join(t.TempDir(), "broker"), Topic: "run", DType: "float32", Seed: 2, Log: io.Discard, Quiet: true}
}

// taught reads the records of a partition of layer 1 from an embedded broker's
// folder, as a trainer would, but for control records.
func taught(t *testing.T, o TeachOptions, partition int) []*activation.Record {
	t.Helper()
	return slices.DeleteFunc(sent(t, o, partition), func(r *activation.Record) bool { return r.Control != 0 })
}

// sent reads all records of a partition of layer 1.
func sent(t *testing.T, o TeachOptions, partition int) []*activation.Record {
	t.Helper()
	b, err := infra.StartBroker(infra.BrokerOptions{Dir: o.Data})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	topic := activation.Topic(o.Topic, 1)
	client := &kafka.Client{Addr: kafka.TCP(b.Addr()), Timeout: 10 * time.Second}
	var list []*activation.Record
	for end := int64(1); int64(len(list)) < end; {
		r, err := client.Fetch(t.Context(), &kafka.FetchRequest{Topic: topic, Partition: partition, Offset: int64(len(list)), MinBytes: 1, MaxBytes: 8 << 20, MaxWait: 2 * time.Second})
		if err == nil {
			err = r.Error
		}
		if err != nil {
			t.Fatal(err)
		}
		end = r.HighWatermark
		for {
			m, err := r.Records.ReadRecord()
			if err != nil {
				break
			}
			if m.Offset < int64(len(list)) {
				continue // of a batch that begins before the offset
			}
			value, err := io.ReadAll(m.Value)
			if err != nil {
				t.Fatal(err)
			}
			x, err := activation.Unmarshal(value)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, x)
		}
	}
	return list
}

// order is the canonical order of two epochs, of one partition of two.
func order(t *testing.T, o TeachOptions, partition int) (ids []int64) {
	t.Helper()
	set, err := tokenset.Open(o.Dataset)
	if err != nil {
		t.Fatal(err)
	}
	for epoch := range int64(2) {
		for _, id := range set.Order(tokenset.Train, o.Seed, epoch) {
			if activation.Partition(id, 2) == partition {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// Over the real path (Beam, the cpu engine, the Kafka protocol) a trainer finds
// what the teacher's layer puts out for each sequence, in order.
func TestTeachSendsWhatTheTeacherComputes(t *testing.T) {
	o := teachInputs(t, 20)
	o.Epochs, o.Partitions, o.Workers, o.Batch = 2, 2, 2, 3
	var said bytes.Buffer
	o.Log = &said
	if err := Teach(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(said.String(), o.Data) {
		t.Errorf("it does not say where the records are: %q", said.String())
	}
	m, err := checkpoint.Load(o.Teacher)
	if err != nil {
		t.Fatal(err)
	}
	engine, err := gpu.Open("cpu")
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	model, err := engine.Open(m, gpu.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer model.Close()
	for p := range 2 {
		want := order(t, o, p)
		got := taught(t, o, p)
		if len(got) != len(want) || len(want) == 0 {
			t.Fatalf("partition %d has %d records, want %d", p, len(got), len(want))
		}
		for i, r := range got {
			if r.SequenceID != want[i] {
				t.Fatalf("partition %d: record %d is sequence %d, want %d", p, i, r.SequenceID, want[i])
			}
			hidden, err := model.Hidden(gpu.Batch{Rows: 1, Length: teachLength, Tokens: r.Tokens}, []int{1})
			if err != nil {
				t.Fatal(err)
			}
			x, err := r.Decode()
			if err != nil {
				t.Fatal(err)
			}
			for j := range x {
				if math.Abs(float64(x[j]-hidden[0][j])) > 1e-5 {
					t.Fatalf("sequence %d: value %d is %g, want %g", r.SequenceID, j, x[j], hidden[0][j])
				}
			}
		}
	}
}

func TestInterruptedTeachGoesOn(t *testing.T) {
	o := teachInputs(t, 2000)
	o.Epochs, o.Partitions, o.Batch = 2, 2, 1
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		for began := time.Now(); time.Since(began) < 20*time.Second; time.Sleep(time.Millisecond) {
			// the topic's folder is there once records come in
			if list, _ := filepath.Glob(filepath.Join(o.Data, "log", "partitions", "run.layer-1-0", "*")); len(list) > 0 {
				time.Sleep(50 * time.Millisecond)
				return
			}
		}
	}()
	if err := Teach(ctx, o); !errors.Is(err, ErrInterrupted) {
		t.Fatalf("error %v", err)
	}
	part := len(taught(t, o, 0)) + len(taught(t, o, 1))
	if part == 4000 {
		t.Fatal("it had ended before the interruption")
	}
	if err := Teach(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for p := range 2 {
		want := order(t, o, p)
		got := taught(t, o, p)
		if len(got) != len(want) {
			t.Fatalf("partition %d has %d records, want %d (%d were there after the interruption)", p, len(got), len(want), part)
		}
		for i, r := range got {
			if r.SequenceID != want[i] {
				t.Fatalf("partition %d: record %d is sequence %d, want %d", p, i, r.SequenceID, want[i])
			}
		}
	}
}

// meetingEngine's models wait in their first forward pass until all of the
// expected ones are in theirs.
type meetingEngine struct {
	gpu.Engine
	meeting *meeting
}

// meeting is where so many models wait for each other.
type meeting struct {
	expected, arrived atomic.Int64
	all               chan struct{} // closed when the last one is there
}

type anyModel = gpu.Model // under another name, as a Model has a method Model

type meetingModel struct {
	anyModel
	config  checkpoint.Config
	meeting *meeting
	met     bool
}

func (e meetingEngine) Open(m *checkpoint.Model, o gpu.Options) (gpu.Model, error) {
	return &meetingModel{config: m.Config, meeting: e.meeting}, nil
}
func (meetingEngine) Close() error { return nil }
func (*meetingModel) Close() error { return nil }

func (m *meetingModel) Hidden(b gpu.Batch, layers []int) ([][]float32, error) {
	if !m.met {
		m.met = true
		if m.meeting.arrived.Add(1) == m.meeting.expected.Load() {
			close(m.meeting.all)
		}
		select {
		case <-m.meeting.all:
		case <-time.After(time.Minute): // reached only where some worker waits for another's end
			return nil, fmt.Errorf("%d of %d workers are at work at once", m.meeting.arrived.Load(), m.meeting.expected.Load())
		}
	}
	var out [][]float32
	for range layers {
		out = append(out, make([]float32, len(b.Tokens)*m.config.Dim))
	}
	return out, nil
}

// A trainer reads all partitions in turn, so all workers have to be at work:
// none of them gets past its first forward pass here before all are in it.
func TestTeachWorkersRunSideBySide(t *testing.T) {
	all := &meeting{all: make(chan struct{})}
	all.expected.Store(prismAtOnce)
	gpu.Register("meeting", func(string) (gpu.Engine, error) { return meetingEngine{meeting: all}, nil })
	o := teachInputs(t, 320)
	o.Device, o.Partitions, o.Workers, o.Batch = "meeting", prismAtOnce, prismAtOnce, 2
	if err := Teach(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if n := all.arrived.Load(); n != prismAtOnce {
		t.Errorf("%d workers were at work, want %d", n, prismAtOnce)
	}
}

func TestTeachRefusesWhatDoesNotFit(t *testing.T) {
	good := teachInputs(t, 4)
	student := filepath.Join(t.TempDir(), "student")
	m, err := checkpoint.Load(good.Teacher)
	if err != nil {
		t.Fatal(err)
	}
	narrow := func(change func(c *checkpoint.Config)) string {
		x := &checkpoint.Model{Config: m.Config, Weights: map[string][]float32{}}
		change(&x.Config)
		for _, s := range x.Config.Specs() {
			x.Weights[s.Name] = make([]float32, s.Size())
		}
		dir := filepath.Join(t.TempDir(), "teacher")
		if err := x.Save(dir); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	student = narrow(func(c *checkpoint.Config) { *c = c.Student(checkpoint.DefaultHyena(), 16) })
	for want, change := range map[string]func(o *TeachOptions){
		"--dataset is not set":           func(o *TeachOptions) { o.Dataset = "" },
		"--teacher is not set":           func(o *TeachOptions) { o.Teacher = "" },
		"--topic is not set":             func(o *TeachOptions) { o.Topic = "" },
		"run name":                       func(o *TeachOptions) { o.Topic = "a b" },
		"no such folder":                 func(o *TeachOptions) { o.Dataset = "nowhere" },
		"config.json":                    func(o *TeachOptions) { o.Teacher = "nowhere" },
		"--dtype":                        func(o *TeachOptions) { o.DType = "float8" },
		"--precision":                    func(o *TeachOptions) { o.Precision = "float8" },
		"layers 0 to 1":                  func(o *TeachOptions) { o.Layers = []int{0, 2} },
		"--workers 2":                    func(o *TeachOptions) { o.Workers = 2 },
		"has 8 at work at once":          func(o *TeachOptions) { o.Workers, o.Partitions = 9, 9 },
		"--trainer-timeout 9s":           func(o *TeachOptions) { o.TrainerTimeout = 9 * time.Second },
		"--max-lead 5000: want at least": func(o *TeachOptions) { o.MaxLead = 5000 },
		"--epochs -1":                    func(o *TeachOptions) { o.Epochs = -1 },
		"no such device":                 func(o *TeachOptions) { o.Device = "abacus" },
		"not host:port":                  func(o *TeachOptions) { o.Brokers = []string{"localhost"} },
		"--runner":                       func(o *TeachOptions) { o.Runner.Name = "magic" },
		"a teacher is read from a local": func(o *TeachOptions) { o.Runner.Name = "dataflow" },
		"want a gpt_neox":                func(o *TeachOptions) { o.Teacher = student },
		"vocabulary of 30 is smaller":    func(o *TeachOptions) { o.Teacher = narrow(func(c *checkpoint.Config) { c.Vocab = 30 }) },
		"context of 4 is shorter than":   func(o *TeachOptions) { o.Teacher = narrow(func(c *checkpoint.Config) { c.Context = 4 }) },
	} {
		o := good
		change(&o)
		err := Teach(t.Context(), o)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(strings.TrimSpace(err.Error()), "\n") {
			t.Errorf("%v, want one line with %q", err, want)
		}
	}
	tokens := good
	tokens.Teacher, tokens.Layers = "", []int{activation.Tokens, 0}
	if err := Teach(t.Context(), tokens); err == nil || !strings.Contains(err.Error(), "--teacher is not set") {
		t.Errorf("layers without a teacher: %v", err)
	}
	// a truncated file in the teacher's folder
	weights := filepath.Join(good.Teacher, checkpoint.ModelFile)
	raw, err := os.ReadFile(weights)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(weights, raw[:len(raw)/2], 0o666); err != nil {
		t.Fatal(err)
	}
	if err := Teach(t.Context(), good); err == nil || !strings.Contains(err.Error(), "truncated") || strings.Contains(err.Error(), "\n") {
		t.Errorf("truncated weights: %v", err)
	}
}
