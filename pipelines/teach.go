package pipelines

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/beam/sdks/v2/go/pkg/beam"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/infra"
	"github.com/scavenge/scavenge/infra/cluster"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/dtype"
	"github.com/scavenge/scavenge/schemas/report"
	"github.com/scavenge/scavenge/transforms"
)

// Defaults of TeachOptions.
const (
	DefaultTeachBatch = 8
	DefaultPatience   = time.Minute
	// DefaultTrainerTimeout is longer than a trainer takes to be started again,
	// and shorter than other trainers wait for a record.
	DefaultTrainerTimeout = time.Minute
	// trainersTell is twice as long as a living trainer is silent at most.
	trainersTell      = 10 * time.Second
	DefaultBrokerData = "runs/broker"
)

// prismAtOnce is how many bundles Prism works on at a time. Workers beyond it
// would begin when others have ended, and a trainer wait for them in vain.
const prismAtOnce = 8

// TeachOptions says what Teach sends where. Zero values of Epochs, Partitions,
// Workers, Batch, Device, DType, Patience and Data stand for their defaults.
type TeachOptions struct {
	Dataset        string // folder of a token set, or of a growing one, each part of which is taught once
	Teacher        string // folder of a GPT-NeoX checkpoint; not needed where Layers is activation.Tokens alone
	cluster.Access        // no brokers: the embedded one, with its log in Data
	Data           string // folder of the embedded broker's log
	Topic          string // run name: layer i's records go to <Topic>.layer-<i>
	Layers         []int  // ascending; none: all
	Epochs         int64
	Sequences      int64 // stop after this many of the canonical order, in place of whole epochs
	Follow         bool  // go on with each part that a growing token set gets, until ctx ends
	Partitions     int   // of each topic: one a data-parallel rank of the trainer
	Workers        int   // teachers side by side, each with its share of the partitions
	Batch          int   // sequences that go through the teacher at once
	Device         string
	Precision      string // of the teacher's arithmetic: float32 or bf16
	DType          string // of the values sent: float32, float16, bfloat16 or int8
	Seed           int64  // of the canonical order; the trainer's has to be the same
	MaxLead        int64  // bytes that the slowest trainer may be behind before the teacher waits; 0: any
	AllowRetention bool   // topics may delete records before they are read
	Patience       time.Duration
	TrainerTimeout time.Duration // how long a trainer may be silent before MaxLead does without it; 0: a minute
	Runner         Runner
	Stage          string    // name of the progress bar
	Metrics        string    // host:port that serves /metrics and /healthz; "": none
	Log            io.Writer // what is said in words goes here; nil: stderr
	Quiet          bool      // no progress bar
}

// Flags declares the command's flags.
func (o *TeachOptions) Flags(f *flag.FlagSet) {
	f.StringVar(&o.Dataset, "dataset", "", "`folder` of a token set (pipelines/tokenize), also s3://… and gs://…, or of a growing one: part-00000, part-00001, … in it are token sets, and each is taught once")
	f.BoolVar(&o.Follow, "follow", false, "wait for further parts of a growing token set, until Ctrl-C; without it the parts that are there are taught and the stream is ended")
	f.StringVar(&o.Teacher, "teacher", "", "`folder` of a GPT-NeoX checkpoint")
	o.Access.Flags(f, "Kafka's `host:port`, several with commas; without it an embedded broker runs as long as the command")
	f.StringVar(&o.Data, "data", DefaultBrokerData, "`folder` of the embedded broker's log")
	f.StringVar(&o.Topic, "topic", "", "run `name`: layer i's records go to topic <name>.layer-<i>")
	f.Func("layers", "`layers` to send, 0,2,5 for instance; tokens sends token records, which need no teacher, to topic <name>.tokens (default all layers)", func(s string) error {
		var err error
		o.Layers, err = parseLayers(s)
		return err
	})
	f.Int64Var(&o.Epochs, "epochs", 1, "how many `times` the token set is sent, each in an order of its own")
	f.Int64Var(&o.Sequences, "sequences", 0, "stop after this `many` sequences, in place of whole epochs")
	f.IntVar(&o.Partitions, "partitions", 1, "partitions of each topic: `one` a data-parallel rank of the trainer")
	f.IntVar(&o.Workers, "workers", 1, "`teachers` that run side by side, each with its share of the partitions")
	f.IntVar(&o.Batch, "batch", DefaultTeachBatch, "`sequences` that go through the teacher at once")
	f.StringVar(&o.Device, "device", "cpu", "`device` of the teacher: cpu, cuda:0")
	f.StringVar(&o.Precision, "precision", string(gpu.Float32), "`arithmetic` of the teacher: float32 or bf16")
	f.StringVar(&o.DType, "dtype", "float16", "`type` of the values sent: float32, float16, bfloat16 or int8")
	f.Int64Var(&o.Seed, "seed", 0, "`seed` of the order of the sequences: the trainer's has to be the same")
	f.Int64Var(&o.MaxLead, "max-lead", 0, "keep at most this many `bytes` in the topics that the slowest trainer has not read; 0 never waits")
	f.DurationVar(&o.TrainerTimeout, "trainer-timeout", DefaultTrainerTimeout, "how `long` a trainer may be silent before --max-lead does without it")
	f.BoolVar(&o.AllowRetention, "allow-retention", false, "send to topics that may delete records before they are read")
	f.DurationVar(&o.Patience, "broker-timeout", DefaultPatience, "how `long` a broker may be away before the command fails")
	f.StringVar(&o.Metrics, "metrics", "", "serve /metrics, for Prometheus, and /healthz at this `host:port` (127.0.0.1:9465, for instance)")
	o.Runner.Flags(f)
}

func parseLayers(s string) ([]int, error) {
	if s == "all" {
		return nil, nil
	}
	var layers []int
	for word := range strings.SplitSeq(s, ",") {
		if strings.TrimSpace(word) == "tokens" {
			layers = append(layers, activation.Tokens)
			continue
		}
		n, err := strconv.Atoi(strings.TrimSpace(word))
		if err != nil {
			return nil, fmt.Errorf("%q is not a layer's number", word)
		}
		layers = append(layers, n)
	}
	slices.Sort(layers)
	return slices.Compact(layers), nil
}

func (o *TeachOptions) setDefaults() {
	for _, d := range []struct {
		value *int
		usual int
	}{{&o.Partitions, 1}, {&o.Workers, 1}, {&o.Batch, DefaultTeachBatch}} {
		if *d.value == 0 {
			*d.value = d.usual
		}
	}
	for _, d := range []struct {
		value *string
		usual string
	}{{&o.Device, "cpu"}, {&o.DType, "float16"}, {&o.Data, DefaultBrokerData}, {&o.Stage, "teach"}, {&o.Precision, string(gpu.Float32)}} {
		if *d.value == "" {
			*d.value = d.usual
		}
	}
	if o.Epochs == 0 {
		o.Epochs = 1
	}
	if o.Patience == 0 {
		o.Patience = DefaultPatience
	}
	if o.TrainerTimeout == 0 {
		o.TrainerTimeout = DefaultTrainerTimeout
	}
	if o.Log == nil {
		o.Log = os.Stderr
	}
}

// tokensAlone tells whether no teacher is needed.
func (o TeachOptions) tokensAlone() bool { return slices.Equal(o.Layers, []int{activation.Tokens}) }

// Validate says what of the options cannot be, as far as they tell by
// themselves.
func (o TeachOptions) Validate() error {
	switch {
	case o.Dataset == "":
		return errors.New("--dataset is not set: name the folder of a token set")
	case o.Teacher == "" && !o.tokensAlone():
		return errors.New("--teacher is not set: name the folder of a checkpoint")
	case o.Topic == "":
		return errors.New("--topic is not set: name the run")
	case o.Epochs < 0:
		return fmt.Errorf("--epochs %d: want at least 1", o.Epochs)
	case o.Sequences < 0:
		return fmt.Errorf("--sequences %d: want at least 1, or 0 for whole epochs", o.Sequences)
	case o.Follow && o.Sequences > 0:
		return fmt.Errorf("--sequences %d with --follow: a stream that follows has no last sequence: leave one of them out", o.Sequences)
	case o.Partitions < 0:
		return fmt.Errorf("--partitions %d: want at least 1", o.Partitions)
	case o.Batch < 0:
		return fmt.Errorf("--batch %d: want at least 1", o.Batch)
	case o.TrainerTimeout != 0 && o.TrainerTimeout < trainersTell:
		return fmt.Errorf("--trainer-timeout %v: want at least %v: trainers tell how far they are every few seconds", o.TrainerTimeout, trainersTell)
	case o.Metrics != "" && !strings.Contains(o.Metrics, ":"):
		return fmt.Errorf("--metrics %q: want host:port", o.Metrics)
	case o.MaxLead < 0:
		return fmt.Errorf("--max-lead %d: want a number of bytes, or 0", o.MaxLead)
	}
	o.setDefaults()
	if o.Workers < 1 || o.Workers > o.Partitions {
		return fmt.Errorf("--workers %d: want 1 to --partitions %d, as each worker writes partitions of its own", o.Workers, o.Partitions)
	}
	if o.Workers > prismAtOnce && o.Runner.Name != "universal" {
		return fmt.Errorf("--workers %d: the runner in this process has %d at work at once: take fewer, or another --runner", o.Workers, prismAtOnce)
	}
	if p := gpu.Precision(o.Precision); p != gpu.Float32 && p != gpu.BFloat16 {
		return fmt.Errorf("--precision %q: want %s or %s", o.Precision, gpu.Float32, gpu.BFloat16)
	}
	if _, err := dtype.Parse(o.DType); err != nil {
		return fmt.Errorf("--dtype: %w", err)
	}
	if err := o.Access.Validate(); err != nil {
		return err
	}
	if len(o.Brokers) == 0 && o.Runner.Name == "universal" {
		return errors.New("--brokers is not set: with --runner universal the workers need a broker that they all reach")
	}
	if !o.Runner.local() {
		return fmt.Errorf("--runner %s: a teacher is read from a local folder, which its workers do not see: want prism or universal", o.Runner.Name)
	}
	return o.Runner.Validate()
}

// Teach sends a teacher's activations over a token set to Kafka. It writes each
// partition in the canonical order without gaps, goes on after what is there
// already, and sends nothing twice but what a lost acknowledgement leaves in
// doubt.
func Teach(ctx context.Context, o TeachOptions) (err error) {
	if err := o.Validate(); err != nil {
		return err
	}
	o.setDefaults()
	lesson, work, err := o.lesson()
	if err != nil {
		return err
	}
	lesson.Sink.TopicBytes = lesson.Sink.Bytes(work.sequences, work.epochs)
	o.Runner.notice = func(s string) { fmt.Fprintln(o.Log, s) }
	if len(o.Brokers) == 0 {
		if err := o.diskHolds(lesson.Sink.TopicBytes * int64(len(lesson.Sink.Layers))); err != nil {
			return err
		}
		b, err := infra.StartBroker(infra.BrokerOptions{Dir: o.Data})
		if err != nil {
			return err
		}
		defer b.Close()
		lesson.Sink.Access = cluster.Access{Brokers: []string{b.Addr()}}
	}
	if o.Follow { // what comes later is not known yet
		lesson.Sink.TopicBytes = transforms.Endless
	}
	if err := lesson.Sink.Validate(); err != nil {
		return err
	}
	if err := lesson.CheckLead(); err != nil {
		return err
	}
	if err := lesson.Sink.Prepare(ctx, o.Runner.notice); err != nil {
		if ctx.Err() != nil {
			return ErrInterrupted
		}
		return err
	}
	monitor, err := watchTeach(o.Metrics, lesson, work.sequences)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, monitor.close()) }()
	o.Runner.launched = monitor.began
	var bar *report.Bar
	if !o.Quiet {
		bar = report.NewBar(o.Stage, work.sequences)
	}
	err = o.Runner.Run(ctx, func(s beam.Scope, launch transforms.LaunchID) { transforms.Teach(s, launch, lesson) },
		func(done, tokens int64) {
			for o.Follow && work.grow() {
				bar.Grow(work.sequences)
				monitor.grown(work.sequences)
			}
			bar.Set(done, tokens, math.NaN())
		})
	bar.Done()
	if err != nil {
		return err
	}
	if len(o.Brokers) == 0 {
		fmt.Fprintf(o.Log, "the records are in %s: serve them with `go run ./infra/broker --data %s`\n", o.Data, o.Data)
	}
	return nil
}
