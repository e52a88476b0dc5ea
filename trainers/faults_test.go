package trainers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/durable"
)

// slow tests are for the tag integration, without -short.
var slow = false

// A trainer's process is this test binary, told by the environment what to do.
const (
	processEnv = "TRAINER_TEST_OPTIONS" // DistillOptions as JSON
	faultEnv   = "TRAINER_TEST_FAULT"   // dies before so many changes to the disk
)

func TestMain(m *testing.M) {
	if text := os.Getenv(processEnv); text != "" {
		os.Exit(trainerProcess(text))
	}
	os.Exit(m.Run())
}

func trainerProcess(text string) int {
	var o DistillOptions
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if n, err := strconv.ParseInt(os.Getenv(faultEnv), 10, 64); err == nil {
		var left atomic.Int64
		left.Store(n)
		durable.Fault = func(string, string) {
			if left.Add(-1) == 0 {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
	}
	if _, err := Distill(context.Background(), o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// process is a trainer's process, to be started.
func process(t *testing.T, o DistillOptions, fault int64) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), processEnv+"="+string(text))
	if fault > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprint(faultEnv, "=", fault))
	}
	said := &bytes.Buffer{}
	cmd.Stderr = said
	return cmd, said
}

// A trainer killed by SIGKILL at random moments, among them every step of a
// checkpoint's writing, ends bit for bit like one that was left alone: fed by a
// stream or by a replay, in the canonical order or shuffled, or following a
// growing set.
func TestTrainerKilledAtRandomMomentsEndsBitIdentical(t *testing.T) {
	dir := testSet(t, 5, 3)
	b := startBroker(t)
	p := newProducer(t, b, dir)
	const steps = 30
	p.to = (3*steps + 7) / 8
	p.write(t)
	r := rand.New(rand.NewPCG(1, 2))
	o := DistillOptions{Run: Run{Dataset: dir, Dir: t.TempDir(), Seed: 4, Batch: 3, Steps: steps, SaveEvery: 1, Quiet: true},
		StudentOptions: StudentOptions{Width: 8, Bands: 5}, Teacher: saved(t, p.teacher)}
	fed := Feed{Access: b.access, Topic: p.run, Stall: 30 * time.Second}
	for _, source := range []string{FromStream, FromReplay} {
		o.Feed = Feed{Source: FromInline}
		if source == FromReplay {
			o.Shuffle = Shuffle{Window: 5, Seed: 3}
		}
		o.Dir = t.TempDir()
		if _, err := Distill(context.Background(), o); err != nil {
			t.Fatal(err)
		}
		want := endOf(t, o.Dir)
		o.Feed = fed
		o.Source = source
		survives(t, o, want, r)
	}
	o = wrote(t, b).following(t)
	o.SaveEvery, o.Evaluation.Every, o.Advance = 1, 2, Advance{Rule: AdvancePlateau, Margin: 0.1, Patience: 4}
	o.Shuffle = Shuffle{Window: 4, Seed: 8}
	if _, err := Distill(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	survives(t, o, endOf(t, o.Dir), r)
}

// survives kills a trainer again and again and compares its end.
func survives(t *testing.T, o DistillOptions, want ends, r *rand.Rand) {
	t.Helper()
	kills := 8
	if slow && !testing.Short() {
		kills = 50
	}
	what := o.Source
	if o.Follow {
		what = "follow"
	}
	o.Dir = t.TempDir()
	killed, writing := 0, 0
	for tries := 0; killed < kills; tries++ {
		if tries > 20*kills {
			t.Fatalf("%d of %d kills in %d tries", killed, kills, tries)
		}
		fault := int64(0)
		if tries%2 == 1 { // in the middle of writing something
			fault = 1 + r.Int64N(40)
		}
		cmd, said := process(t, o, fault)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		var err error
		if fault == 0 {
			select {
			case <-time.After(time.Duration(5+r.IntN(400)) * time.Millisecond):
				cmd.Process.Kill()
				err = <-ended
			case err = <-ended:
			}
		} else {
			err = <-ended
		}
		if err == nil { // it came to its end: from the beginning again
			endOf(t, o.Dir).compare(t, want, fmt.Sprintf("%s after %d kills", what, killed))
			o.Dir = t.TempDir()
			continue
		}
		if said.Len() > 0 {
			t.Fatalf("it was not killed, it failed: %s", said)
		}
		if killed++; fault > 0 {
			writing++
		}
		if latest, ok, err := checkpoint.Latest(o.Dir); err != nil {
			t.Fatal(err)
		} else if ok {
			if _, _, _, err := checkpoint.LoadTraining(latest); err != nil {
				t.Fatalf("a kill left a checkpoint that does not load: %v", err)
			}
		}
	}
	cmd, said := process(t, o, 0)
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	endOf(t, o.Dir).compare(t, want, fmt.Sprintf("%s, killed %d times, %d of them while writing", what, killed, writing))
	t.Logf("%s: killed %d times, %d of them while writing", what, killed, writing)
}

// Producers that were taken for dead and live on write the same records again,
// at any time and in any mixture: each begins where the topic ended, or
// earlier, and writes on in order.
func TestMixedProducersGiveOneStream(t *testing.T) {
	dir := testSet(t, 8)
	b := startBroker(t)
	plan := testPlan(t, dir, 3, 16)
	want := teachersBatches(t, plan, []int{0, 1}, "F16")
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 3))
		p := newProducer(t, b, dir)
		p.change = func(_, _ int, list []*activation.Record) (mixed []*activation.Record) {
			next := make([]int, 3) // of three producers
			reached := 0
			for reached < len(list) {
				k := r.IntN(len(next))
				if r.IntN(4) == 0 { // another takes over where the topic ends or before
					next[k] = r.IntN(reached + 1)
				}
				for range 1 + r.IntN(3) {
					if next[k] < len(list) {
						mixed = append(mixed, list[next[k]])
						next[k]++
						reached = max(reached, next[k])
					}
				}
			}
			return mixed
		}
		p.write(t)
		s, err := NewStreamSource(context.Background(), p.stream(0, 1), plan)
		got, positions := drain(t, s, err)
		sameBatches(t, fmt.Sprintf("mixture %d", seed), got, want)
		rest := plan
		rest.Start = positions[2]
		s, err = NewReplaySource(context.Background(), p.stream(0, 1), Replay{Dir: t.TempDir()}, rest)
		got, _ = drain(t, s, err)
		sameBatches(t, fmt.Sprintf("mixture %d, replayed", seed), got, want[3:])
	}
}

// Records that a producer's clock has stamped as it jumped, by minutes ahead and
// by years back, are the same records: nothing is lost, and all sources give
// the teacher's batches.
func TestClockThatJumpsChangesNothing(t *testing.T) {
	dir := testSet(t, 8)
	p := newProducer(t, startBroker(t), dir)
	jumps, n := []time.Duration{0, 50 * time.Minute, -5 * time.Hour, 20 * time.Minute, -30 * 24 * time.Hour, -20 * 365 * 24 * time.Hour}, 0
	p.clock = func() time.Time {
		n++
		return time.Now().Add(jumps[n%len(jumps)])
	}
	p.write(t)
	plan := testPlan(t, dir, 3, 16)
	want := teachersBatches(t, plan, []int{0, 1}, "F16")
	s, err := NewStreamSource(context.Background(), p.stream(0, 1), plan)
	got, positions := drain(t, s, err)
	sameBatches(t, "stream", got, want)
	s, err = NewReplaySource(context.Background(), p.stream(0, 1), Replay{Dir: t.TempDir()}, plan)
	got, _ = drain(t, s, err)
	sameBatches(t, "replay", got, want)
	rest := plan
	rest.Start = positions[2]
	s, err = NewStreamSource(context.Background(), p.stream(0, 1), rest)
	got, _ = drain(t, s, err)
	sameBatches(t, "after a restart", got, want[3:])
}

// breaking is a connection that is cut, or falls silent, after some bytes.
type breaking struct {
	net.Conn
	left   *atomic.Int64
	broken *atomic.Int64 // how many are
	silent bool
	closed chan struct{}
}

func (c *breaking) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.left.Add(-int64(n)) < 0 && err == nil {
		c.broken.Add(1)
		if !c.silent {
			c.Conn.Close()
			return 0, io.ErrUnexpectedEOF
		}
		<-c.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *breaking) Close() error {
	select {
	case <-c.closed:
	default:
		close(c.closed)
	}
	return c.Conn.Close()
}

// expire lets a silent connection run into its deadline.
func (c *breaking) expire(at time.Time) {
	if c.silent && !at.IsZero() {
		time.AfterFunc(time.Until(at), func() {
			if c.left.Load() < 0 {
				c.Close()
			}
		})
	}
}

func (c *breaking) SetDeadline(at time.Time) error {
	c.expire(at)
	return c.Conn.SetDeadline(at)
}

func (c *breaking) SetReadDeadline(at time.Time) error {
	c.expire(at)
	return c.Conn.SetReadDeadline(at)
}

// Connections that are cut in the middle of an answer lose nothing.
func TestConnectionsThatAreCutLoseNothing(t *testing.T) { overBreaking(t, false, 60) }

// Connections that fall silent in the middle of an answer are given up in time.
func TestConnectionsThatFallSilentLoseNothing(t *testing.T) {
	if !slow || testing.Short() {
		t.Skip("it takes the clients' timeouts, ten seconds each: with the tag integration")
	}
	overBreaking(t, true, 150)
}

// overBreaking reads over connections that break after 1500 bytes, each a few
// later than the one before.
func overBreaking(t *testing.T, silent bool, more int64) {
	dir := testSet(t, 8)
	p := newProducer(t, embeddedBroker(t), dir)
	p.write(t)
	plan := testPlan(t, dir, 3, 16)
	want := teachersBatches(t, plan, []int{0, 1}, "F16")
	dial := dialBroker
	defer func() { dialBroker = dial }()
	var made, broken atomic.Int64
	dialBroker = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		left := &atomic.Int64{}
		left.Store(1500 + more*made.Add(1)) // each lives a little longer
		return &breaking{Conn: c, left: left, broken: &broken, silent: silent, closed: make(chan struct{})}, nil
	}
	s := p.stream(0, 1)
	s.Stall = 30 * time.Second
	for tries := 0; ; tries++ { // the first question may meet a cut too: then the command is started again
		source, err := NewStreamSource(context.Background(), s, plan)
		if err != nil {
			if tries == 20 {
				t.Fatal(err)
			}
			continue
		}
		got, _ := drain(t, source, nil)
		sameBatches(t, "over cut connections", got, want)
		break
	}
	if broken.Load() < 2 {
		t.Errorf("%d of %d connections broke, want some", broken.Load(), made.Load())
	}
}

// One topic feeds trainers that know nothing of each other: one from the start,
// one that comes late, each with its own order and learning rate, while the
// teacher is still at work. Each ends as if it were alone.
func TestLateTrainerLearnsFromTheSameTopic(t *testing.T) {
	dir := testSet(t, 8)
	b := startBroker(t)
	p := newProducer(t, b, dir)
	p.to = 1
	p.write(t)
	teacher := saved(t, p.teacher)
	options := func(rate float64, s Shuffle, f Feed) DistillOptions {
		return DistillOptions{Run: Run{Dataset: dir, Dir: t.TempDir(), Seed: 4, Batch: 3, Steps: 5, Quiet: true, Rate: Rate{Peak: rate}, Shuffle: s},
			StudentOptions: StudentOptions{Width: 8, Bands: 5}, Teacher: teacher, Feed: f}
	}
	feed := Feed{Access: b.access, Topic: p.run, Stall: 30 * time.Second}
	early, late := options(1e-3, Shuffle{}, feed), options(3e-3, Shuffle{Window: 4, Seed: 9}, feed)
	if _, err := trainerName(early.Dir); err != nil { // before two ask for it
		t.Fatal(err)
	}
	errs := make(chan error, 2)
	go func() { _, err := Distill(context.Background(), early); errs <- err }()
	for len(p.told(t, activation.Topic(p.run, 0), early.Dir)) == 0 { // it has begun, and waits for the second epoch
		time.Sleep(20 * time.Millisecond)
	}
	go func() { _, err := Distill(context.Background(), late); errs <- err }()
	p.from, p.to = 1, 2
	p.write(t)
	for range 2 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	for what, o := range map[string]DistillOptions{"early": early, "late": late} {
		alone := options(o.Rate.Peak, o.Shuffle, Feed{Source: FromInline})
		if _, err := Distill(context.Background(), alone); err != nil {
			t.Fatal(err)
		}
		endOf(t, o.Dir).compare(t, endOf(t, alone.Dir), what)
	}
}

// A disk that fills up, under checkpoints or under the cache, is an error that
// says so and loses nothing: with room again the run goes on.
func TestFullDiskLosesNothing(t *testing.T) {
	disk := t.TempDir()
	if err := syscall.Mount("none", disk, "tmpfs", 0, "size=1200k"); err != nil {
		t.Skipf("a small disk needs the right to mount one: %v", err)
	}
	defer syscall.Unmount(disk, syscall.MNT_DETACH)
	dir := testSet(t, 8)
	p := newProducer(t, startBroker(t), dir)
	p.to = 1
	p.write(t)
	teacher := saved(t, p.teacher)
	for _, c := range []struct {
		what  string
		steps int64 // after which the disk fills up
	}{{"checkpoint", 7}, {"cache", 1}} {
		o := DistillOptions{Run: Run{Dataset: dir, Dir: filepath.Join(disk, c.what), Seed: 4, Batch: 3, Steps: 6, SaveEvery: 2, Quiet: true},
			StudentOptions: StudentOptions{Width: 8, Bands: 5}, Teacher: teacher, Feed: Feed{Source: FromReplay, Access: p.broker.access, Topic: p.run, Stall: 20 * time.Second}}
		ballast := filepath.Join(disk, "ballast")
		w := &wrapped{before: func(n int64) error {
			if n == c.steps {
				f, err := os.Create(ballast)
				if err != nil {
					return err
				}
				defer f.Close()
				for err == nil { // until nothing fits any more
					_, err = f.Write(make([]byte, 4096))
				}
			}
			return nil
		}}
		o.Device = "test-full-" + c.what
		w.registerAs(o.Device)
		_, err := Distill(context.Background(), o)
		if err == nil || !errors.Is(err, syscall.ENOSPC) || strings.Count(err.Error(), "no space left") < 1 {
			t.Fatalf("%s: a full disk gave %v", c.what, err)
		}
		if latest, ok, err := checkpoint.Latest(o.Dir); err != nil {
			t.Fatal(err)
		} else if ok {
			if _, _, _, err := checkpoint.LoadTraining(latest); err != nil {
				t.Fatalf("%s: %v", c.what, err)
			}
		}
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		o.Device = "cpu"
		if _, err := Distill(context.Background(), o); err != nil {
			t.Fatalf("%s: with room again: %v", c.what, err)
		}
		got := endOf(t, o.Dir)
		if err := os.RemoveAll(o.Dir); err != nil {
			t.Fatal(err)
		}
		o.Feed, o.Dir = Feed{Source: FromInline}, t.TempDir()
		if _, err := Distill(context.Background(), o); err != nil {
			t.Fatal(err)
		}
		got.compare(t, endOf(t, o.Dir), c.what)
	}
}
