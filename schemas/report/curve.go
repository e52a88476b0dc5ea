package report

import (
	"bytes"
	"fmt"
	"math"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// Curve is one figure: losses against steps, one line a stage.
type Curve struct {
	Title string
	Loss  string // what the loss is, with its unit
	Lines []Line
}

// Line is a named series of losses.
type Line struct {
	Name  string
	Steps []int64
	Loss  []float64
}

// maxPoints is how many points a line is drawn with; more are averaged.
const maxPoints = 400

// File is the picture's name in a run folder.
func (c Curve) File() string {
	return strings.ReplaceAll(strings.ToLower(c.Title), " ", "-") + ".svg"
}

// SVG draws the figure, with a logarithmic loss axis where the losses span more
// than a decade. Points that are not finite and positive are left out.
func (c Curve) SVG() ([]byte, error) {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = c.Title, "step", c.Loss
	p.Legend.Top = true
	p.Add(plotter.NewGrid())
	drawn := 0
	for i, l := range c.Lines {
		pts := l.points()
		if len(pts) == 0 {
			continue
		}
		line, err := plotter.NewLine(pts)
		if err != nil {
			return nil, fmt.Errorf("curve %q: %s: %w", c.Title, l.Name, err)
		}
		line.Color, line.Width = plotutil.Color(i), vg.Points(1.2)
		p.Add(line)
		p.Legend.Add(l.Name, line)
		drawn++
	}
	if drawn == 0 {
		return nil, fmt.Errorf("curve %q: there is nothing to draw", c.Title)
	}
	if p.Y.Max > 10*p.Y.Min { // on less, a logarithmic axis has no marks to read
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: 3}
	}
	w, err := p.WriterTo(20*vg.Centimeter, 10*vg.Centimeter, "svg")
	if err != nil {
		return nil, fmt.Errorf("curve %q: %w", c.Title, err)
	}
	var b bytes.Buffer
	if _, err := w.WriteTo(&b); err != nil {
		return nil, fmt.Errorf("curve %q: %w", c.Title, err)
	}
	return b.Bytes(), nil
}

// points averages neighbours until the line has at most maxPoints.
func (l Line) points() plotter.XYs {
	group := max(1, (len(l.Steps)+maxPoints-1)/maxPoints)
	var pts plotter.XYs
	for i := 0; i < len(l.Steps); i += group {
		var x, y, n float64
		for j := i; j < min(i+group, len(l.Steps)); j++ {
			if v := l.Loss[j]; v > 0 && !math.IsInf(v, 0) {
				x, y, n = x+float64(l.Steps[j]), y+v, n+1
			}
		}
		if n > 0 {
			pts = append(pts, plotter.XY{X: x / n, Y: y / n})
		}
	}
	return pts
}
