//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"strings"

	"github.com/scavenge/scavenge/gpu"
)

// Steps of one kind and shape issue the same few hundred launches on the same
// addresses, which cost the host 4 µs each. The second such step is captured as
// a CUDA graph; from then on a step is one launch.

// kind tells which steps share a graph: everything that compute depends on, but
// for the workspace's address, with which all graphs go.
type kind struct {
	objective         gpu.Objective
	layer             int
	rows, length      int
	targets           string
	temperature, soft float64
	teacher           *model
	teacherBase       ptr
	move              bool
}

// captured is what is known of a kind: how many terms its loss has and, from the
// second step on, its graph.
type captured struct {
	terms int
	graph *graph
}

// maxGraphs bounds the graphs kept: a run has a few kinds of step.
const maxGraphs = 16

// replay is compute, by a graph where there is one.
func (p *pass) replay(s gpu.Step, teacher *pass, move bool) (terms int) {
	if p.err != nil {
		return 0
	}
	k := kind{objective: s.Objective, layer: s.Layer, rows: s.Rows, length: s.Length, move: move}
	if p.b.soft {
		k.temperature, k.soft, k.teacher, k.teacherBase = s.Temperature, s.SoftWeight, teacher.model, teacher.work.base
	}
	var targets strings.Builder
	for _, t := range p.b.targets {
		fmt.Fprintf(&targets, "%d %s ", t.Layer, t.Type)
	}
	k.targets = targets.String()
	c := p.graphs[k]
	if c == nil { // the first time loads kernels and chooses matrix products
		terms = p.compute(s, teacher, move)
		if len(p.graphs) >= maxGraphs {
			p.note(p.forget())
			clear(p.graphs)
		}
		if p.err == nil {
			p.graphs[k] = &captured{terms: terms}
		}
		return terms
	}
	if c.graph == nil {
		if p.err = beginCapture(p.stream); p.err != nil {
			return 0
		}
		p.compute(s, teacher, move)
		g, err := endCapture(p.stream)
		if p.note(err); p.err != nil {
			return 0
		}
		c.graph = g
	}
	p.note(c.graph.launch(p.stream))
	return c.terms
}

// note keeps an error that did not come from the queue itself.
func (q *queue) note(err error) {
	if q.err == nil {
		q.err = err
	}
}

// forget destroys the model's graphs. The kinds of step stay known.
func (m *model) forget() error {
	var errs []error
	for _, c := range m.graphs {
		if c.graph != nil {
			errs = append(errs, c.graph.destroy())
			c.graph = nil
		}
	}
	return errors.Join(errs...)
}
