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
// two CUDA graphs, between which its targets come; from then on a step is two
// launches.

// kind tells which steps share a graph: everything that outputs and learn depend on, but
// for the workspace's address, with which all graphs go.
type kind struct {
	objective         gpu.Objective
	layer             int
	rows, length      int
	lowest            int // block computed
	targets           string
	temperature, soft float64
	teacher           *model
	teacherBase       ptr
	move              bool
}

// captured is what is known of a kind: how many terms its loss has and, from the
// second step on, the graphs of its two parts.
type captured struct {
	terms  int
	graphs []*graph
}

// maxGraphs bounds the kinds whose graphs are kept: a run has a few.
const maxGraphs = 16

// replay loads a step's data and computes it, by graphs where there are some.
func (p *pass) replay(s gpu.Step, teacher *pass, move bool) (terms int) {
	p.load(s)
	if p.err != nil {
		return 0
	}
	c := p.graphs[p.kind(s, teacher, move)]
	if c == nil { // the first time loads kernels and chooses matrix products
		p.outputs(teacher)
		p.loadTargets()
		terms = p.learn(s, teacher, move)
		if len(p.graphs) >= maxGraphs {
			p.note(p.forget())
			clear(p.graphs)
		}
		if p.err == nil {
			p.graphs[p.kind(s, teacher, move)] = &captured{terms: terms}
		}
		return terms
	}
	if c.graphs == nil {
		p.capture(c, func() { p.outputs(teacher) }, func() { p.learn(s, teacher, move) })
	}
	for i, g := range c.graphs {
		if i == 1 {
			p.loadTargets()
		}
		if p.err == nil {
			p.note(g.launch(p.stream))
		}
	}
	return c.terms
}

// kind is a step's.
func (p *pass) kind(s gpu.Step, teacher *pass, move bool) kind {
	k := kind{objective: s.Objective, layer: s.Layer, rows: s.Rows, length: s.Length, lowest: p.b.lowest, move: move}
	if teacher != nil {
		k.temperature, k.soft, k.teacher, k.teacherBase = s.Temperature, s.SoftWeight, teacher.model, teacher.work.base
	}
	var targets strings.Builder
	for _, t := range p.b.targets {
		fmt.Fprintf(&targets, "%d %s ", t.Layer, t.Type)
	}
	k.targets = targets.String()
	return k
}

// capture makes a graph of each part.
func (p *pass) capture(c *captured, parts ...func()) {
	for _, part := range parts {
		if p.err != nil {
			break
		}
		if p.err = beginCapture(p.stream); p.err != nil {
			break
		}
		part()
		g, err := endCapture(p.stream)
		if p.note(err); err == nil {
			c.graphs = append(c.graphs, g)
		}
	}
	if p.err != nil {
		for _, g := range c.graphs {
			p.note(g.destroy())
		}
		c.graphs = nil
	}
}

// forget destroys the model's graphs. The kinds of step stay known.
func (m *model) forget() error {
	var errs []error
	for _, c := range m.graphs {
		for _, g := range c.graphs {
			errs = append(errs, g.destroy())
		}
		c.graphs = nil
	}
	return errors.Join(errs...)
}
