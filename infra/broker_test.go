package infra

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
)

func start(t *testing.T, o BrokerOptions) *Broker {
	t.Helper()
	b, err := StartBroker(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func create(t *testing.T, addr, topic string, config ...kafka.ConfigEntry) {
	t.Helper()
	c := &kafka.Client{Addr: kafka.TCP(addr), Timeout: 10 * time.Second}
	r, err := c.CreateTopics(context.Background(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{
		{Topic: topic, NumPartitions: 1, ReplicationFactor: 1, ConfigEntries: config}}})
	if err == nil {
		err = r.Errors[topic]
	}
	if err != nil {
		t.Fatal(err)
	}
}

// produce writes messages "from" to "to"−1 of 100 KB each.
func produce(t *testing.T, addr, topic string, from, to int) {
	t.Helper()
	w := &kafka.Writer{Addr: kafka.TCP(addr), Topic: topic, RequiredAcks: kafka.RequireAll, BatchTimeout: time.Millisecond, BatchBytes: 1 << 20}
	defer w.Close()
	var list []kafka.Message
	for i := from; i < to; i++ {
		list = append(list, kafka.Message{Key: fmt.Append(nil, i), Value: make([]byte, 100_000)})
	}
	if err := w.WriteMessages(context.Background(), list...); err != nil {
		t.Fatal(err)
	}
}

func bounds(t *testing.T, addr, topic string) (first, last int64) {
	t.Helper()
	conn, err := kafka.DialLeader(context.Background(), "tcp", addr, topic, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if first, last, err = conn.ReadOffsets(); err != nil {
		t.Fatal(err)
	}
	return first, last
}

// A broker killed while it serves loses nothing that it acknowledged.
func TestKilledBrokerGoesOnFromItsFolder(t *testing.T) {
	if dir := os.Getenv("BROKER_TEST_DIR"); dir != "" {
		b, err := StartBroker(BrokerOptions{Dir: dir})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(b.Addr())
		select {}
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledBrokerGoesOnFromItsFolder$")
	cmd.Env = append(os.Environ(), "BROKER_TEST_DIR="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	addr := strings.TrimSpace(line)
	if err != nil {
		cmd.Process.Kill()
		t.Fatal(err)
	}
	if _, err := StartBroker(BrokerOptions{Dir: dir}); err == nil || !strings.Contains(err.Error(), "another broker is at work") {
		t.Errorf("a second broker on the folder: %v", err)
	}
	create(t, addr, "t")
	produce(t, addr, "t", 0, 30)
	cmd.Process.Kill()
	cmd.Wait()

	for n := 30; n <= 40; n += 10 { // after the kill, and after an orderly end
		b := start(t, BrokerOptions{Dir: dir})
		r := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{b.Addr()}, Topic: "t", Partition: 0, MaxBytes: 8 << 20, MaxWait: 2 * time.Second})
		for i := range n {
			m, err := r.ReadMessage(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if m.Offset != int64(i) || string(m.Key) != fmt.Sprint(i) || len(m.Value) != 100_000 {
				t.Fatalf("message %d: offset %d, key %s, %d bytes", i, m.Offset, m.Key, len(m.Value))
			}
		}
		if first, last := bounds(t, b.Addr(), "t"); first != 0 || last != int64(n) {
			t.Fatalf("offsets %d to %d, want 0 to %d", first, last, n)
		}
		r.Close()
		produce(t, b.Addr(), "t", n, n+10)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTakenPortIsOneClearLine(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = StartBroker(BrokerOptions{Dir: t.TempDir(), Listen: l.Addr().String()})
	if err == nil || !strings.Contains(err.Error(), l.Addr().String()+" is taken") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v", err)
	}
}

func TestChosenAddressIsServed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	if got := start(t, BrokerOptions{Dir: t.TempDir(), Listen: addr}).Addr(); got != addr {
		t.Errorf("serves %s, want %s", got, addr)
	}
}

func TestRetentionBoundsAPartition(t *testing.T) {
	b := start(t, BrokerOptions{Dir: t.TempDir(), RetentionBytes: 1_000_000})
	create(t, b.Addr(), "t", kafka.ConfigEntry{ConfigName: "retention.ms", ConfigValue: "-1"})
	for i := 0; i < 50; i += 5 {
		produce(t, b.Addr(), "t", i, i+5)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		first, last := bounds(t, b.Addr(), "t")
		if last != 50 {
			t.Fatalf("last offset %d, want 50", last)
		}
		if first >= 35 && first <= 45 { // ten messages make the bound; a batch has five
			break
		}
		if time.Now().After(end) {
			t.Fatalf("offsets %d to %d are kept", first, last)
		}
	}
}

func TestImpossibleOptionsAreRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	for want, o := range map[string]BrokerOptions{
		"no folder":        {},
		"want host:port":   {Dir: t.TempDir(), Listen: "localhost"},
		"that they reach":  {Dir: t.TempDir(), Listen: "0.0.0.0:0"},
		`port "x"`:         {Dir: t.TempDir(), Listen: "127.0.0.1:x"},
		"retention":        {Dir: t.TempDir(), RetentionBytes: -1},
		"file":             {Dir: file},
		"no-such-host.inv": {Dir: t.TempDir(), Listen: "no-such-host.invalid:0"},
	} {
		b, err := StartBroker(o)
		if err == nil {
			b.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v, want one line with %q", o, err, want)
		}
	}
}
