package enginetest

import (
	"fmt"
	"testing"

	"github.com/scavenge/scavenge/gpu"
)

// long checks students of contexts up to tol.Longest, at lengths around powers
// of two, where convolutions by transforms change their size: a long sequence
// begins like a short one, a batch has the mean of its rows' gradients, and
// gradients have the same bits every time. In an engine that is fast enough for
// 20,000 tokens gradients are slopes there too.
func (s suite) long(t *testing.T) {
	e := s.engine(t)
	c := studentConfig()
	c.Layers = 1
	for _, l := range []int{8193, 16384, 20001, 40000, 100003, 131072} {
		if l > s.tol.Longest {
			continue
		}
		c.Context = l
		m := s.model(t, e, random(c, 50))
		b, short := batch(c, 2, l, 51), gpu.Batch{Rows: 2, Length: 1001}
		for row := range b.Rows {
			short.Tokens = append(short.Tokens, b.Tokens[row*l:row*l+short.Length]...)
		}
		got, want := hidden(t, m, b, 0)[0], hidden(t, m, short, 0)[0]
		for row := range b.Rows {
			n := short.Length * c.Dim
			near(t, fmt.Sprintf("the start of row %d of %d tokens", row, l), got[row*l*c.Dim:][:n], want[row*n:][:n], s.tol.Output)
		}
		s.meanOfRows(t, m, b)
		st := gpu.Step{Batch: b, Objective: gpu.JointMSE, Targets: []gpu.Target{target(c, b, 0, 52)}}
		_, first := gradients(t, m, st)
		_, again := gradients(t, m, st)
		sameWeights(t, fmt.Sprintf("gradients at %d tokens", l), again, first)
		m.Close()
		if l == 20001 {
			s.slope(t, e, random(c, 53), gpu.Step{Batch: b, Objective: gpu.CrossEntropy}, fmt.Sprintf("hyena, length %d", l))
		}
	}
}
