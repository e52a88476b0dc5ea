package report

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMetricsResumeDropsWhatTheCheckpointDidNotSee(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.jsonl")
	write := func(last int64, steps ...int64) {
		m, err := OpenMetrics(path, last)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range steps {
			if err := m.Append(Metric{Stage: "x", Step: s, Loss: 1 / float64(s)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write(0, 1, 2, 3, 4)
	f, _ := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	f.WriteString(`{"stage":"x","step":5,"lo`) // killed in the middle of a line
	f.Close()
	if list, err := ReadMetrics(path); err != nil || len(list) != 4 {
		t.Fatalf("read %d lines, %v", len(list), err)
	}
	write(2, 3, 4, 5)
	list, err := ReadMetrics(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range list {
		if m.Step != int64(i+1) {
			t.Fatalf("line %d is step %d: %v", i+1, m.Step, list)
		}
	}
	if len(list) != 5 {
		t.Fatalf("%d lines, want 5", len(list))
	}
	os.WriteFile(path, []byte("{}\nnonsense\n"), 0o644)
	if _, err := ReadMetrics(path); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("a broken line gave %v", err)
	}
}

func TestMetricsRefuseWhatJSONCannotSay(t *testing.T) {
	m, err := OpenMetrics(filepath.Join(t.TempDir(), "m"), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Append(Metric{Step: 7, Loss: math.NaN()}); err == nil || !strings.Contains(err.Error(), "step 7") {
		t.Errorf("a NaN loss gave %v", err)
	}
}

func TestReportHoldsTableAndCurvesInOneFile(t *testing.T) {
	r := Run{Title: "A <run>", Sets: []string{"held-out"}, Notes: []string{"a note"},
		Models: []Model{
			{Name: "teacher", Scores: []Evaluation{{Tokens: 10, Nats: 30, Perplexity: math.Exp(3)}}},
			{Name: "student", Tokens: 1234567, Seconds: 9.6, Scores: []Evaluation{{Tokens: 10, Nats: 32, Perplexity: math.Exp(3.2)}}},
		},
		Settings: []Setting{{"seed", "1"}},
		Curves:   []Curve{{Title: "Cross entropy", Loss: "nats", Lines: []Line{{Name: "student", Steps: []int64{1, 2, 3}, Loss: []float64{3, math.NaN(), 2}}}}}}
	dir := t.TempDir()
	if err := r.Save(dir); err != nil {
		t.Fatal(err)
	}
	html, _ := os.ReadFile(filepath.Join(dir, "report.html"))
	for _, want := range []string{"A &lt;run&gt;", "24.53", "1.22×", "1.23M tokens", "<svg", "a note"} {
		if !bytes.Contains(html, []byte(want)) {
			t.Errorf("report.html lacks %q", want)
		}
	}
	for _, no := range []string{"<script", "<link", "<?xml", " src="} {
		if bytes.Contains(html, []byte(no)) {
			t.Errorf("report.html is not self-contained: %q", no)
		}
	}
	var back Run
	data, _ := os.ReadFile(filepath.Join(dir, "report.json"))
	if err := json.Unmarshal(data, &back); err != nil || len(back.Models) != 2 || back.Models[1].Tokens != 1234567 {
		t.Errorf("report.json reads as %+v, %v", back, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "cross-entropy.svg")); err != nil {
		t.Error(err)
	}
	if table := r.Table(); strings.Count(table, "\n") != 3 || !strings.Contains(table, "(1.22×)") {
		t.Errorf("table:\n%s", table)
	}
	r.Models[1].Scores = nil
	if err := r.Save(dir); err == nil {
		t.Error("a model without its scores was reported")
	}
}

func TestBarWithoutTerminalSumsUpInOneLine(t *testing.T) {
	var out bytes.Buffer
	b := newBar("distil layer 0", 4, &out, false)
	b.Set(1, 100, 2.5)
	b.Set(4, 400, 1.25)
	b.Done()
	b.Done()
	if s := out.String(); strings.Count(s, "\n") != 1 || !strings.HasPrefix(s, "distil layer 0: 100% ") || !strings.Contains(s, "loss 1.25") || !strings.Contains(s, "tokens/s") || !strings.HasSuffix(s, ", finished\n") {
		t.Errorf("printed %q", s)
	}
	out.Reset()
	failed := newBar("teach", 10, &out, false)
	failed.Set(3, 30, math.NaN())
	failed.Done()
	if s := out.String(); !strings.HasSuffix(s, ", stopped\n") {
		t.Errorf("a stage that ended early printed %q", s)
	}
	var none *Bar
	none.Set(1, 1, 1)
	none.Done()
}

// The live bars of two stages share the terminal and both end.
func TestLiveBarsShareTheScreen(t *testing.T) {
	var out bytes.Buffer
	a, b := newBar("teach", 2, &out, true), newBar("distil", 3, &out, true)
	a.Set(2, 10, math.NaN())
	b.Set(1, 10, 0.5)
	a.Done()
	b.Done() // not whole: stopped
	if screen.area != nil || screen.open != 0 {
		t.Error("the live area was left open")
	}
	if s := out.String(); !strings.Contains(s, "teach") || !strings.Contains(s, "distil") {
		t.Errorf("printed %q", s)
	}
}

// A bar of work that grows is whole when all of it is done, not when what was
// known first is.
func TestBarGrows(t *testing.T) {
	for _, live := range []bool{false, true} {
		var out bytes.Buffer
		b := newBar("teach", 4, &out, live)
		b.Set(4, 4, math.NaN())
		b.Grow(8)
		b.Set(6, 6, math.NaN())
		b.Done()
		if s := out.String(); !live && (!strings.Contains(s, " 75% ") || !strings.HasSuffix(s, ", stopped\n")) {
			t.Errorf("6 of 4, then 8: printed %q", s)
		}
		if live && (b.live.Current() != 6 || !b.live.Aborted()) {
			t.Errorf("6 of 4, then 8, on a terminal: at %d, ended by itself: %v", b.live.Current(), b.live.Completed())
		}
	}
	var none *Bar
	none.Grow(1)
}

func TestCurveDrawsEveryRangeOfLosses(t *testing.T) {
	for name, losses := range map[string][]float64{"one point": {2}, "flat": {3, 3, 3}, "narrow": {7, 5, 4}, "decades": {1e-5, 0.3, 40}} {
		svg, err := Curve{Title: name, Loss: "nats", Lines: []Line{{Name: "a", Steps: []int64{1, 2, 3}[:len(losses)], Loss: losses}}}.SVG()
		if err != nil || bytes.Contains(svg, []byte("NaN")) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (Curve{Title: "none", Lines: []Line{{Name: "a", Steps: []int64{1}, Loss: []float64{math.NaN()}}}}).SVG(); err == nil {
		t.Error("a curve of nothing was drawn")
	}
}

func TestCount(t *testing.T) {
	for n, want := range map[float64]string{12: "12", 1234: "1.23k", 5.6e6: "5.6M", 7.8e9: "7.8G"} {
		if got := Count(n); got != want {
			t.Errorf("%g: %s, want %s", n, got, want)
		}
	}
}
