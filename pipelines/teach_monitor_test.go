package pipelines

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/infra"
	"github.com/scavenge/scavenge/schemas/activation"
)

// scraped reads a page of a command that may not serve it yet.
func scraped(address, page string) (string, error) {
	r, err := http.Get("http://" + address + page)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", r.Status, text)
	}
	return string(text), err
}

// metrics are those of a page, by name, labels included.
func metrics(text string) map[string]float64 {
	values := map[string]float64{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil && !strings.HasPrefix(line, "#") {
			values[name] = v
		}
	}
	return values
}

// read tells the broker, in a trainer's name, that it has read a topic's
// partitions up to an offset.
func read(t *testing.T, client *kafka.Client, topic, trainer string, offsets ...int64) {
	t.Helper()
	var all []kafka.OffsetCommit
	for p, offset := range offsets {
		all = append(all, kafka.OffsetCommit{Partition: p, Offset: offset})
	}
	r, err := client.OffsetCommit(t.Context(), &kafka.OffsetCommitRequest{GroupID: activation.ProgressGroup(topic, trainer), GenerationID: -1, Topics: map[string][]kafka.OffsetCommit{topic: all}})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range r.Topics[topic] {
		if p.Error != nil {
			t.Fatal(p.Error)
		}
	}
}

// A teacher that waits for a trainer tells what it has sent, how far it is
// ahead, and that it waits.
func TestTeachersMetrics(t *testing.T) {
	defer func(d time.Duration) { measureEvery = d }(measureEvery)
	measureEvery = 20 * time.Millisecond
	b, err := infra.StartBroker(infra.BrokerOptions{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	client := &kafka.Client{Addr: kafka.TCP(b.Addr()), Timeout: 10 * time.Second}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	o := teachInputs(t, 40)
	o.Brokers, o.Partitions, o.Batch, o.Metrics = []string{b.Addr()}, 2, 2, address
	first, second := activation.Topic(o.Topic, 0), activation.Topic(o.Topic, 1)
	options := o
	options.setDefaults()
	lesson, _, err := options.lesson()
	if err != nil {
		t.Fatal(err)
	}
	if err := lesson.Sink.Prepare(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	record := int64(activation.MaxMessageBytes(lesson.Sink.Length, lesson.Sink.Dim, lesson.Sink.Type))
	o.MaxLead = 20 * record // of one layer: the trainer reads no other
	read(t, client, second, "slow", 0, 0)

	ended := make(chan error, 1)
	go func() { ended <- Teach(t.Context(), o) }()
	var seen map[string]float64
	for began := time.Now(); seen["scavenge_teach_lead_wait_seconds_total"] == 0 || seen["scavenge_teach_lead_records"] != seen["scavenge_teach_sequences"]; {
		select {
		case err := <-ended:
			t.Fatalf("it has ended: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("it does not wait: %v", seen)
		}
		if text, err := scraped(address, "/metrics"); err == nil {
			seen = metrics(text)
		}
	}
	sequences := seen["scavenge_teach_sequences"]
	if sequences < 6 || sequences > 20 {
		t.Errorf("it waits after %g sequences", sequences)
	}
	for name, want := range map[string]float64{"scavenge_teach_sequences_wanted": 40, "scavenge_teach_records_total": 2 * sequences, "scavenge_teach_tokens_total": 2 * sequences * teachLength,
		"scavenge_teach_lead_bytes": sequences * float64(record), "scavenge_teach_trainers": 1, "scavenge_teach_broker_retries_total": 0} {
		if got, ok := seen[name]; !ok || got != want {
			t.Errorf("%s is %g, want %g", name, got, want)
		}
	}
	if bytes := seen["scavenge_teach_record_bytes_total"] / seen["scavenge_teach_records_total"]; bytes < 2*8*teachLength || bytes > float64(record) {
		t.Errorf("%g bytes a record", bytes)
	}
	for _, phase := range []string{"teacher", "encoding", "writing"} {
		if seconds := seen[`scavenge_teach_seconds_total{phase="`+phase+`"}`]; !(seconds > 0) {
			t.Errorf("%g seconds of %s", seconds, phase)
		}
	}
	if health, err := scraped(address, "/healthz"); err != nil || health != fmt.Sprintf("ok: %g of 40 sequences\n", sequences) {
		t.Errorf("health %q, %v", health, err)
	}

	read(t, client, second, "slow", 40, 40)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if _, err := scraped(address, "/metrics"); err == nil {
		t.Error("a command that has ended still serves metrics")
	}
	if groups, err := client.ListGroups(t.Context(), &kafka.ListGroupsRequest{}); err != nil || len(groups.Groups) != 1 {
		t.Errorf("the meter left something on the broker: %v, %v (topic %s)", groups, err, first)
	}

	// what the dashboard shows of a teacher is there
	text, err := os.ReadFile("../infra/grafana/trainers.json")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`scavenge_teach_\w+`).FindAllString(string(text), -1)
	if len(names) < 10 {
		t.Errorf("the dashboard shows %v", names)
	}
	seen["scavenge_teach_seconds_total"] = 1 // it has a label
	for _, name := range names {
		if _, ok := seen[name]; !ok {
			t.Errorf("the dashboard shows %s, which is not there", name)
		}
	}
}

func TestTakenMetricsAddressOfTeachIsOneClearLine(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	o := teachInputs(t, 4)
	o.Metrics = l.Addr().String()
	if err := Teach(t.Context(), o); err == nil || !strings.Contains(err.Error(), "--metrics "+o.Metrics) || strings.Contains(err.Error(), "\n") {
		t.Error(err)
	}
	o.Metrics = "9465"
	if err := Teach(t.Context(), o); err == nil || !strings.Contains(err.Error(), "want host:port") {
		t.Error(err)
	}
}
