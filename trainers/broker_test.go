package trainers

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/dtype"
)

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
