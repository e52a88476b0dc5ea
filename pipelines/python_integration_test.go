//go:build integration

package pipelines

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/schemas/activation"
)

// The reader for other languages, schemas/activation/read.py, gives what was
// taught, from a real Kafka, for every type of value and for token records. Its
// Python, with kafka-python and numpy, is SCAVENGE_PYTHON.
func TestPythonReadsWhatWasTaught(t *testing.T) {
	addr, python := os.Getenv("SCAVENGE_KAFKA"), os.Getenv("SCAVENGE_PYTHON")
	if addr == "" || python == "" {
		t.Fatal("SCAVENGE_KAFKA and SCAVENGE_PYTHON are not set: host:port of a Kafka broker, and a Python with kafka-python and numpy")
	}
	read := func(topic string, more ...string) (string, error) {
		out, err := exec.Command(python, append([]string{"../schemas/activation/read.py", "--brokers", addr, "--topic", topic}, more...)...).CombinedOutput()
		return string(out), err
	}
	o := teachInputs(t, 12)
	o.Brokers = []string{addr}
	for _, kind := range []string{"float32", "float16", "bfloat16", "int8"} {
		o.DType, o.Topic, o.Layers = kind, fmt.Sprintf("python-%s-%d", kind, time.Now().UnixNano()), []int{activation.Tokens, 1}
		if err := Teach(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		for _, layer := range o.Layers {
			topic := activation.Topic(o.Topic, layer)
			out, err := read(topic)
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			lines := strings.Split(strings.TrimSpace(out), "\n")
			all := recordsOf(t, fresh(t, addr), topic)
			want := slices.DeleteFunc(slices.Clone(all), func(r *activation.Record) bool { return r.Control != 0 })
			if len(all) != len(want)+2 { // the end of the epoch and of the stream, which it passes over
				t.Fatalf("%s: %d records, of which %d are sequences", topic, len(all), len(want))
			}
			if len(lines) != len(want) || len(want) != 12 {
				t.Fatalf("%s: %d lines for %d records", topic, len(lines), len(want))
			}
			for i, line := range lines {
				var got struct {
					Teacher, Type          string
					TokenSet               string `json:"token_set"`
					Layer, Epoch, Sequence int64
					Tokens                 []int32
					Shape                  []int
					Mean, Last             float64
					Partition, Offset      int64
				}
				if err := json.Unmarshal([]byte(line), &got); err != nil {
					t.Fatalf("%s: %v", line, err)
				}
				r := want[i]
				if got.Teacher != r.Teacher || got.TokenSet != r.TokenSet || got.Sequence != r.SequenceID || got.Epoch != int64(r.Epoch) || got.Layer != int64(max(0, r.Layer)) ||
					got.Offset != int64(i) || !slices.Equal(got.Tokens, r.Tokens) {
					t.Fatalf("%s: record %d is %s, want %+v", topic, i, line, r)
				}
				if layer == activation.Tokens {
					continue
				}
				x, err := r.Decode()
				if err != nil {
					t.Fatal(err)
				}
				var sum float64
				for _, v := range x {
					sum += float64(v)
				}
				mean, last := sum/float64(len(x)), float64(x[len(x)-1])
				if got.Type != kind || !slices.Equal(got.Shape, []int{r.Length, r.Dim}) || math.Abs(got.Mean-mean) > 1e-9 || got.Last != last {
					t.Errorf("%s: record %d is of %s %v with mean %g and last value %g, want %s %d × %d, %g, %g", topic, i, got.Type, got.Shape, got.Mean, got.Last, kind, r.Length, r.Dim, mean, last)
				}
			}
		}
	}
	// a byte of the last record's values is changed
	topic := activation.Topic(o.Topic, 1)
	value, err := activation.Marshal(recordsOf(t, fresh(t, addr), topic)[0])
	if err != nil {
		t.Fatal(err)
	}
	value[len(value)-1]++
	if _, err := fresh(t, addr).Produce(t.Context(), &kafka.ProduceRequest{Topic: topic, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(kafka.Record{Value: kafka.NewBytes(value)})}); err != nil {
		t.Fatal(err)
	}
	if out, err := read(topic); err == nil || !strings.Contains(out, "damaged") {
		t.Errorf("a damaged record gave %v: %s", err, out)
	}
	if out, err := read(topic, "--no-check"); err != nil {
		t.Errorf("without checksums: %v: %s", err, out)
	}
}

// fresh is a client that knows no topics yet: one that does takes a while to
// learn of new ones.
func fresh(t *testing.T, addr string) *kafka.Client {
	transport := &kafka.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &kafka.Client{Addr: kafka.TCP(addr), Timeout: 10 * time.Second, Transport: transport}
}

// recordsOf reads partition 0 of a topic.
func recordsOf(t *testing.T, client *kafka.Client, topic string) (list []*activation.Record) {
	t.Helper()
	for end := int64(1); int64(len(list)) < end; {
		r, err := client.Fetch(t.Context(), &kafka.FetchRequest{Topic: topic, Offset: int64(len(list)), MinBytes: 1, MaxBytes: 8 << 20, MaxWait: 2 * time.Second})
		if err == nil {
			err = r.Error
		}
		if err != nil {
			t.Fatal(err)
		}
		for end = r.HighWatermark; ; {
			m, err := r.Records.ReadRecord()
			if err != nil {
				break
			}
			if m.Offset < int64(len(list)) {
				continue
			}
			value, err := io.ReadAll(m.Value)
			if err != nil {
				t.Fatal(err)
			}
			x, err := activation.Unmarshal(value)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, x)
		}
	}
	return list
}
