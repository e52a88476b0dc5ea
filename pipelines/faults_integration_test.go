//go:build integration

package pipelines

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/scavenge/scavenge/schemas/report"
)

// A worker is a process that is started again whenever it was killed.
type worker struct {
	name   string
	args   []string
	cmd    *exec.Cmd
	said   bytes.Buffer
	ended  chan error
	killed int
}

func (w *worker) start(t *testing.T) {
	t.Helper()
	w.said.Reset()
	w.cmd = exec.Command(w.args[0], w.args[1:]...)
	w.cmd.Stderr = &w.said
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // none outlives the test
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.ended = make(chan error, 1)
	go func(cmd *exec.Cmd, ended chan error) { ended <- cmd.Wait() }(w.cmd, w.ended)
}

func (w *worker) kill() {
	w.cmd.Process.Kill()
	<-w.ended
	w.killed++
}

// answers waits until something listens at an address.
func answers(t *testing.T, addr string) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// freePort is the first of n free ports in a row.
func freePort(t *testing.T, n int) int {
	t.Helper()
	for tries := range 50 {
		base := 31000 + (os.Getpid()+37*tries)%20000
		free := true
		for i := range n {
			l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", base+i))
			if err != nil {
				free = false
				break
			}
			l.Close()
		}
		if free {
			return base
		}
	}
	t.Fatal("no free ports")
	return 0
}

// result is what a run came to: its weights, optimiser and losses.
func result(t *testing.T, run string) string {
	t.Helper()
	h := sha256.New()
	for _, name := range []string{"model.safetensors", "optimizer.safetensors"} {
		data, err := os.ReadFile(filepath.Join(run, "latest", name))
		if err != nil {
			t.Fatal(err)
		}
		h.Write(data)
	}
	lines, err := report.ReadMetrics(filepath.Join(run, "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		fmt.Fprintln(h, l.Step, l.Layer, l.Loss, l.Norm)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// Teacher, trainers and broker, each killed by SIGKILL again and again while
// they work together: both students end bit for bit like one that a teacher
// beside it taught.
func TestEverythingKilledAgainAndAgainEndsBitIdentical(t *testing.T) {
	teach, distill, broker := build(t, "./teach"), build(t, "../trainers/distill"), build(t, "../infra/broker")
	for _, c := range []struct {
		name   string
		kills  int // of teacher and trainers
		broker int // of the broker
	}{{"embedded broker", 40, 10}, {"Kafka", 30, 2}} {
		t.Run(c.name, func(t *testing.T) {
			o := teachInputs(t, 40)
			dir := t.TempDir()
			port := freePort(t, 4)
			addr := fmt.Sprint("127.0.0.1:", port)
			server := &worker{name: "broker", args: []string{broker, "--data", filepath.Join(dir, "broker"), "--listen", addr}}
			if c.name == "Kafka" {
				folder := os.Getenv("SCAVENGE_KAFKA_FOLDER")
				if folder == "" {
					t.Fatal("SCAVENGE_KAFKA_FOLDER is not set: the folder of infra/kafka/start.sh, for its jars")
				}
				if err := os.Mkdir(filepath.Join(dir, "kafka"), 0o777); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(filepath.Join(folder, "libs"), filepath.Join(dir, "kafka", "libs")); err != nil {
					t.Fatal(err)
				}
				server.args = []string{"../infra/kafka/start.sh", filepath.Join(dir, "kafka"), fmt.Sprint(port)}
			}
			server.start(t)
			defer func() { server.kill() }()
			answers(t, addr)

			student := func(run string, more ...string) []string {
				return append([]string{distill, "--dataset", o.Dataset, "--teacher", o.Teacher, "--seed", fmt.Sprint(o.Seed), "--batch", "4", "--steps-per-layer", "40",
					"--filter-width", "8", "--filter-features", "5", "--save-every", "1", "--quiet", "--stall-timeout", "60s", "--run", filepath.Join(dir, run)}, more...)
			}
			inline := student("inline", "--source", "inline", "--dtype", o.DType)
			if out, err := exec.Command(inline[0], inline[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			want := result(t, filepath.Join(dir, "inline"))

			kafka := []string{"--brokers", addr, "--topic", "chaos"}
			teacher := &worker{name: "teacher", args: append([]string{teach, "--dataset", o.Dataset, "--teacher", o.Teacher, "--seed", fmt.Sprint(o.Seed), "--dtype", o.DType,
				"--epochs", "4", "--batch", "2", "--partitions", "2", "--max-lead", "40000", "--trainer-timeout", "10s"}, kafka...)}
			streamed := &worker{name: "streaming trainer", args: student("stream", kafka...)}
			replayed := &worker{name: "replaying trainer", args: student("replay", append(kafka, "--source", "replay")...)}
			workers := []*worker{teacher, streamed, replayed}
			for _, w := range workers {
				w.start(t)
			}
			r := rand.New(rand.NewPCG(7, uint64(c.kills)))
			done := map[*worker]bool{}
			began := time.Now()
			for kills := 0; len(done) < len(workers); {
				if time.Since(began) > 5*time.Minute {
					t.Fatalf("not at the end after %v: %v", time.Since(began), done)
				}
				time.Sleep(time.Duration(20+r.IntN(500)) * time.Millisecond)
				for _, w := range workers {
					if done[w] {
						continue
					}
					select {
					case err := <-w.ended:
						if err != nil {
							for _, other := range append(workers, server) {
								t.Logf("the %s, killed %d times, said: %s", other.name, other.killed, other.said.String())
							}
							t.Fatalf("the %s failed: %v: %s", w.name, err, w.said.String())
						}
						done[w] = true
					default:
					}
				}
				if kills < c.kills {
					kills++
					if w := workers[r.IntN(len(workers))]; !done[w] {
						w.kill()
						w.start(t)
					}
				}
				if server.killed < c.broker && kills*c.broker > server.killed*c.kills {
					server.kill()
					time.Sleep(time.Duration(r.IntN(700)) * time.Millisecond)
					server.start(t)
					if c.name == "Kafka" {
						answers(t, addr)
					}
				}
			}
			var killed []string
			for _, w := range append(workers, server) {
				killed = append(killed, fmt.Sprintf("%s %d times", w.name, w.killed))
			}
			t.Logf("killed: %s; %v", strings.Join(killed, ", "), time.Since(began).Round(time.Second))
			for _, run := range []string{"stream", "replay"} {
				if got := result(t, filepath.Join(dir, run)); got != want {
					t.Errorf("%s: weights, optimiser or losses differ from the undisturbed run's", run)
				}
			}
		})
	}
}
