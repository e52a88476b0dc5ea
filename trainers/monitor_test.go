package trainers

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/report"
)

// scrape reads /metrics, by name; the parts of a histogram have their own.
func scrape(address string) (map[string]float64, error) {
	r, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %v: %s", r.Status, err, text)
	}
	values := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil && !strings.HasPrefix(line, "#") {
			values[name] = v
		}
	}
	return values, nil
}

func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestMetricsTellHowARunGoes(t *testing.T) {
	dir := testSet(t, 8)
	p := newProducer(t, startBroker(t), dir)
	p.change = func(_, _ int, list []*activation.Record) (out []*activation.Record) {
		for _, r := range list {
			out = append(out, r)
			if r.SequenceID == list[1].SequenceID && r.Epoch == 0 {
				out = append(out, r) // one duplicate a partition
			}
		}
		return out
	}
	p.write(t)
	address := free(t)
	var seen map[string]float64
	var health string
	w := &wrapped{before: func(n int64) (err error) {
		if n != 9 { // the fourth of the second layer, of 3 sequences each
			return nil
		}
		if seen, err = scrape(address); err != nil {
			return err
		}
		r, err := http.Get("http://" + address + "/healthz")
		if err != nil {
			return err
		}
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		health = string(text)
		return err
	}}
	o := DistillOptions{Run: Run{Dataset: dir, Dir: t.TempDir(), Device: w.register(t), Seed: 4, Batch: 3, Steps: 5, Quiet: true, Metrics: address, Evaluation: Evaluation{Every: 2}},
		StudentOptions: StudentOptions{Width: 8, Bands: 5}, Teacher: saved(t, p.teacher), Feed: Feed{Access: p.broker.access, Topic: p.run, Stall: 20 * time.Second}}
	if _, err := Distill(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	lines, err := report.ReadMetrics(filepath.Join(o.Dir, "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	last := lines[7]
	for name, want := range map[string]float64{"scavenge_step": 8, "scavenge_steps": 10, "scavenge_stage": 1, "scavenge_tokens_total": 8 * 3 * testLength, "scavenge_loss": last.Loss, "scavenge_held_out_loss": *lines[6].HeldOut,
		"scavenge_learning_rate": last.Rate, "scavenge_gradient_norm": last.Norm, "scavenge_step_seconds_count": 8, "scavenge_rejected_total": 0} {
		if got, ok := seen[name]; !ok || math.Abs(got-want) > 1e-12*math.Abs(want) {
			t.Errorf("%s is %g, want %g", name, got, want)
		}
	}
	// 15 records of layer 0, at least 12 of layer 1, and duplicates beside them
	if n := seen["scavenge_records_total"]; n < 27+3 || n > 32+4 {
		t.Errorf("%g records, want 30 to 36", n)
	}
	if n := seen["scavenge_duplicates_total"]; n < 3 || n > 4 {
		t.Errorf("%g duplicates, want 3 or 4", n)
	}
	if lag, bytes, each := seen["scavenge_lag_records"], seen["scavenge_lag_bytes"], seen["scavenge_record_bytes_total"]/seen["scavenge_records_total"]; lag < 1 || lag > 6 || math.Abs(bytes-lag*each) > lag {
		t.Errorf("lag of %g records and %g bytes at %g bytes each", lag, bytes, each)
	}
	if wait := seen["scavenge_source_wait_seconds_total"]; !(wait > 0) || wait > seen["scavenge_step_seconds_sum"] {
		t.Errorf("waited %g of %g s", wait, seen["scavenge_step_seconds_sum"])
	}
	if health != "ok: step 8 of 10\n" {
		t.Errorf("health %q", health)
	}
	if _, err := scrape(address); err == nil {
		t.Error("a run that has ended still serves metrics")
	}

	// what the dashboard shows is there
	text, err := os.ReadFile("../infra/grafana/trainers.json")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`scavenge_\w+`).FindAllString(string(text), -1)
	if len(names) < 10 {
		t.Errorf("the dashboard shows %v", names)
	}
	for _, name := range names {
		if strings.HasPrefix(name, "scavenge_teach_") { // the teacher's, in pipelines
			continue
		}
		if _, ok := seen[strings.Replace(name, "_bucket", "_count", 1)]; !ok {
			t.Errorf("the dashboard shows %s, which is not there", name)
		}
	}
}

func TestTakenMetricsAddressIsOneClearLine(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tr := trainers(t, testSet(t, 8))[2]
	if _, err := tr.train(context.Background(), "cpu", t.TempDir(), func(r *Run) { r.Metrics = l.Addr().String() }); err == nil || !strings.Contains(err.Error(), "--metrics "+l.Addr().String()) || strings.Contains(err.Error(), "\n") {
		t.Error(err)
	}
}
