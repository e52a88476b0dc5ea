package pipelines

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/scavenge/scavenge/schemas/report/exporter"
	"github.com/scavenge/scavenge/transforms"
)

// teachMonitor tells Prometheus how a lesson goes. The lead is the brokers'
// word and holds for all workers; everything else is of this process's.
type teachMonitor struct {
	exporter *exporter.Exporter
	stop     context.CancelFunc
	measured sync.WaitGroup

	mu     sync.Mutex
	goal   int64              // sequences
	launch *transforms.Launch // nil before it is made
	lead   transforms.Lead
	known  bool // the lead is
}

// measureEvery is how often the brokers are asked for the lead.
var measureEvery = 5 * time.Second

// The metrics, beside what the Go runtime tells.
var (
	doneDesc     = prometheus.NewDesc("scavenge_teach_sequences", "Sequences of which every topic has its records, those of earlier runs among them.", nil, nil)
	goalDesc     = prometheus.NewDesc("scavenge_teach_sequences_wanted", "Sequences in the whole run, over all epochs; so far, where the token set grows.", nil, nil)
	recordsDesc  = prometheus.NewDesc("scavenge_teach_records_total", "Records that the brokers have acknowledged.", nil, nil)
	bytesDesc    = prometheus.NewDesc("scavenge_teach_record_bytes_total", "Their bytes.", nil, nil)
	tokensDesc   = prometheus.NewDesc("scavenge_teach_tokens_total", "Their tokens, over all layers.", nil, nil)
	retriesDesc  = prometheus.NewDesc("scavenge_teach_broker_retries_total", "Requests made again because a broker did not answer, or refused for the moment.", nil, nil)
	leadWaitDesc = prometheus.NewDesc("scavenge_teach_lead_wait_seconds_total", "Seconds in which workers waited for trainers (--max-lead).", nil, nil)
	phaseDesc    = prometheus.NewDesc("scavenge_teach_seconds_total", "Seconds in the teacher, summed over workers, and of encoding and writing, summed over partitions.", []string{"phase"}, nil)
	leadDesc     = prometheus.NewDesc("scavenge_teach_lead_records", "Records in the topics that the slowest registered trainer has not read; all of them, where none is registered.", nil, nil)
	leadBytes    = prometheus.NewDesc("scavenge_teach_lead_bytes", "Their bytes at most, as --max-lead counts them.", nil, nil)
	trainersDesc = prometheus.NewDesc("scavenge_teach_trainers", "Trainers that are registered on the topics.", nil, nil)
)

// watchTeach serves the metrics of a lesson of so many sequences at an address; "" serves nothing, by a
// nil monitor.
func watchTeach(address string, l transforms.Lesson, sequences int64) (*teachMonitor, error) {
	if address == "" {
		return nil, nil
	}
	m := &teachMonitor{goal: sequences}
	var err error
	if m.exporter, err = exporter.Serve(address, m.health, m); err != nil {
		return nil, err
	}
	var ctx context.Context
	ctx, m.stop = context.WithCancel(context.Background())
	m.measured.Go(func() { m.measure(ctx, l) })
	return m, nil
}

// began is told the launch whose workers teach.
func (m *teachMonitor) began(l *transforms.Launch) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.launch = l
}

// grown is told that the token set has grown.
func (m *teachMonitor) grown(sequences int64) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.goal = sequences
}

func (m *teachMonitor) close() error {
	if m == nil {
		return nil
	}
	m.stop()
	m.measured.Wait()
	return m.exporter.Close()
}

func (m *teachMonitor) health() string {
	done, goal, _, _ := m.now()
	return fmt.Sprintf("%d of %d sequences", done, goal)
}

func (m *teachMonitor) now() (done, goal int64, taught transforms.Taught, lead *transforms.Lead) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.launch != nil {
		done, _ = m.launch.Progress()
		taught = m.launch.Taught()
	}
	if m.known {
		l := m.lead
		lead = &l
	}
	return done, m.goal, taught, lead
}

// measure asks the brokers for the lead until ctx ends. While they are away
// there is none.
func (m *teachMonitor) measure(ctx context.Context, l transforms.Lesson) {
	meter, err := l.Meter(ctx)
	for ; err != nil && ctx.Err() == nil; meter, err = l.Meter(ctx) {
		m.pause(ctx)
	}
	if err != nil {
		return
	}
	defer meter.Close()
	for ctx.Err() == nil {
		lead, err := meter.Measure(ctx)
		m.mu.Lock()
		m.lead, m.known = lead, err == nil
		m.mu.Unlock()
		m.pause(ctx)
	}
}

func (m *teachMonitor) pause(ctx context.Context) {
	t := time.NewTimer(measureEvery)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// Describe is of prometheus.Collector.
func (m *teachMonitor) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, out) }

// Collect is of prometheus.Collector.
func (m *teachMonitor) Collect(out chan<- prometheus.Metric) {
	done, goal, taught, lead := m.now()
	gauge := func(d *prometheus.Desc, v int64) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v))
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	gauge(doneDesc, done)
	gauge(goalDesc, goal)
	counter(recordsDesc, float64(taught.Records))
	counter(bytesDesc, float64(taught.Bytes))
	counter(tokensDesc, float64(taught.Tokens))
	counter(retriesDesc, float64(taught.Retries))
	counter(leadWaitDesc, taught.Waiting.Seconds())
	counter(phaseDesc, taught.Computing.Seconds(), "teacher")
	counter(phaseDesc, taught.Encoding.Seconds(), "encoding")
	counter(phaseDesc, taught.Writing.Seconds(), "writing")
	if lead != nil {
		gauge(leadDesc, lead.Records)
		gauge(leadBytes, lead.Bytes)
		gauge(trainersDesc, int64(lead.Trainers))
	}
}
