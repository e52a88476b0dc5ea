// Package report is the format of what a run leaves for people: metrics as
// JSON lines (one Metric a step), the live progress of a stage, and a report
// of the whole run as report.json and one self-contained report.html.
package report

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// Metric is one line of metrics.jsonl: a training step.
type Metric struct {
	Stage   string  `json:"stage"`
	Layer   int     `json:"layer"` // the block being distilled; −1 for none
	Step    int64   `json:"step"`  // from 1, over all layers
	Loss    float64 `json:"loss"`
	Rate    float64 `json:"rate"`    // learning rate
	Norm    float64 `json:"norm"`    // of the gradients, before clipping
	Tokens  int64   `json:"tokens"`  // trained on so far
	Seconds float64 `json:"seconds"` // of training so far, resumed runs added up
	// HeldOut is the loss on held-out sequences after the step; nil where it was
	// not evaluated.
	HeldOut *float64 `json:"held_out,omitempty"`
}

// Metrics appends to a metrics.jsonl.
type Metrics struct {
	f *os.File
	w *bufio.Writer
}

// OpenMetrics opens or creates a metrics file for the steps after lastStep.
// Lines of later steps, which a run that was killed left behind its last
// checkpoint, are dropped, and so is a torn last line.
func OpenMetrics(path string, lastStep int64) (*Metrics, error) {
	keep, err := bytesThrough(path, lastStep)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	if err = f.Truncate(keep); err == nil {
		_, err = f.Seek(keep, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Metrics{f, bufio.NewWriter(f)}, nil
}

// bytesThrough is the length of the file's leading whole lines up to a step.
func bytesThrough(path string, lastStep int64) (int64, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var keep int64
	for r := bufio.NewReader(f); ; {
		line, err := r.ReadBytes('\n')
		if err == io.EOF {
			return keep, nil
		}
		if err != nil {
			return 0, err
		}
		var m Metric
		if json.Unmarshal(line, &m) != nil || m.Step > lastStep {
			return keep, nil
		}
		keep += int64(len(line))
	}
}

// Append writes one step's line. Lines reach the disk at Sync and Close.
func (m *Metrics) Append(x Metric) error {
	line, err := json.Marshal(x)
	if err != nil {
		return fmt.Errorf("metrics %s: step %d: %w", m.f.Name(), x.Step, err)
	}
	if _, err = m.w.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

// Sync writes what was appended to the file; trainers call it before a checkpoint.
func (m *Metrics) Sync() error {
	if err := m.w.Flush(); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

// Close flushes and closes the file.
func (m *Metrics) Close() error {
	return errors.Join(m.Sync(), m.f.Close())
}

// ReadMetrics reads a metrics file; a torn last line is left out, any other
// line that is no Metric is an error that names it.
func ReadMetrics(path string) ([]Metric, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []Metric
	for r, n := bufio.NewReader(f), 1; ; n++ {
		line, err := r.ReadBytes('\n')
		if err == io.EOF {
			return list, nil
		}
		if err != nil {
			return nil, err
		}
		var m Metric
		if err := json.Unmarshal(line, &m); err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", path, n, err)
		}
		list = append(list, m)
	}
}
