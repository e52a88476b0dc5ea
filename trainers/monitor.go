package trainers

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/report/exporter"
)

// Counts is what a source of records knows of its feed, since it was opened.
// Lag is what the brokers hold that has not been read yet, as of the last
// record that was.
type Counts struct {
	Records, Bytes       int64 // read and used
	Duplicates, Rejected int64
	LagRecords, LagBytes int64
}

func (c Counts) plus(d Counts) Counts {
	return Counts{c.Records + d.Records, c.Bytes + d.Bytes, c.Duplicates + d.Duplicates, c.Rejected + d.Rejected, c.LagRecords + d.LagRecords, c.LagBytes + d.LagBytes}
}

// counting is a source with Counts, which may be called at any time.
type counting interface{ Counts() Counts }

// monitor tells Prometheus, at /metrics, how a run goes, and at /healthz that
// it is alive. A nil monitor tells nothing.
type monitor struct {
	exporter *exporter.Exporter
	steps    prometheus.Histogram

	mu     sync.Mutex
	state  checkpoint.Trainer
	rate   float64
	result gpu.Result
	waited float64  // seconds, for batches
	before Counts   // of the sources that are closed
	source counting // nil between sources, and where it does not count
}

// The metrics, beside the histogram of steps and what the Go runtime tells.
var (
	stepDesc     = prometheus.NewDesc("scavenge_step", "Optimiser steps done.", nil, nil)
	stepsDesc    = prometheus.NewDesc("scavenge_steps", "Optimiser steps in the whole run; 0: not known.", nil, nil)
	stageDesc    = prometheus.NewDesc("scavenge_stage", "Stage of the run, from 0: the layer, in progressive distillation.", nil, nil)
	tokensDesc   = prometheus.NewDesc("scavenge_tokens_total", "Tokens trained on, over all layers and epochs.", nil, nil)
	lossDesc     = prometheus.NewDesc("scavenge_loss", "Loss of the last step.", nil, nil)
	heldOutDesc  = prometheus.NewDesc("scavenge_held_out_loss", "Loss on held-out sequences, when it was last evaluated.", nil, nil)
	rateDesc     = prometheus.NewDesc("scavenge_learning_rate", "Learning rate of the last step.", nil, nil)
	normDesc     = prometheus.NewDesc("scavenge_gradient_norm", "Norm of the last step's gradient, before clipping.", nil, nil)
	waitDesc     = prometheus.NewDesc("scavenge_source_wait_seconds_total", "Seconds of this process in which training waited for a batch.", nil, nil)
	recordsDesc  = prometheus.NewDesc("scavenge_records_total", "Records read from Kafka by this process.", nil, nil)
	bytesDesc    = prometheus.NewDesc("scavenge_record_bytes_total", "Their bytes.", nil, nil)
	dupDesc      = prometheus.NewDesc("scavenge_duplicates_total", "Records that were there twice and were dropped.", nil, nil)
	rejectedDesc = prometheus.NewDesc("scavenge_rejected_total", "Damaged records, sent to the topic for such.", nil, nil)
	lagDesc      = prometheus.NewDesc("scavenge_lag_records", "Records on the brokers that are not read yet.", nil, nil)
	lagBytesDesc = prometheus.NewDesc("scavenge_lag_bytes", "Their bytes, by the mean of those read.", nil, nil)
)

// watch serves a run's metrics at an address; "" serves nothing.
func watch(address string) (*monitor, error) {
	if address == "" {
		return nil, nil
	}
	m := &monitor{steps: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "scavenge_step_seconds",
		Help: "Seconds a step took, the wait for its batch included.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 16)})}
	var err error
	m.exporter, err = exporter.Serve(address, func() string {
		m.mu.Lock()
		defer m.mu.Unlock()
		return at(m.state)
	}, m, m.steps)
	return m, err
}

func (m *monitor) close() error {
	if m == nil {
		return nil
	}
	return m.exporter.Close()
}

// begin tells where a run goes on.
func (m *monitor) begin(state checkpoint.Trainer) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state = state
}

// step tells of a step, of the time that it took, and of the part of it that
// was spent waiting for the batch.
func (m *monitor) step(state checkpoint.Trainer, rate float64, r gpu.Result, took, waited time.Duration) {
	if m == nil {
		return
	}
	m.steps.Observe(took.Seconds())
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state, m.rate, m.result = state, rate, r
	m.waited += waited.Seconds()
}

// reads tells that another source is read from; nil, that none is.
func (m *monitor) reads(s Source) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.source != nil {
		m.before = m.before.plus(m.source.Counts())
		m.before.LagRecords, m.before.LagBytes = 0, 0
	}
	m.source, _ = s.(counting)
}

// Describe is of prometheus.Collector.
func (m *monitor) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, out) }

// Collect is of prometheus.Collector.
func (m *monitor) Collect(out chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.before
	if m.source != nil {
		c = c.plus(m.source.Counts())
	}
	if h := m.state.HeldOut; h != nil {
		out <- prometheus.MustNewConstMetric(heldOutDesc, prometheus.GaugeValue, h.Loss)
	}
	for _, v := range []struct {
		desc  *prometheus.Desc
		kind  prometheus.ValueType
		value float64
	}{
		{stepDesc, prometheus.GaugeValue, float64(m.state.Step)}, {stepsDesc, prometheus.GaugeValue, float64(m.state.Steps)},
		{stageDesc, prometheus.GaugeValue, float64(m.state.Layer)}, {tokensDesc, prometheus.CounterValue, float64(m.state.Tokens)},
		{lossDesc, prometheus.GaugeValue, m.result.Loss}, {rateDesc, prometheus.GaugeValue, m.rate}, {normDesc, prometheus.GaugeValue, m.result.Norm},
		{waitDesc, prometheus.CounterValue, m.waited}, {recordsDesc, prometheus.CounterValue, float64(c.Records)}, {bytesDesc, prometheus.CounterValue, float64(c.Bytes)},
		{dupDesc, prometheus.CounterValue, float64(c.Duplicates)}, {rejectedDesc, prometheus.CounterValue, float64(c.Rejected)},
		{lagDesc, prometheus.GaugeValue, float64(c.LagRecords)}, {lagBytesDesc, prometheus.GaugeValue, float64(c.LagBytes)},
	} {
		out <- prometheus.MustNewConstMetric(v.desc, v.kind, v.value)
	}
}
