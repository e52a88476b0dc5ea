//go:build integration

package pipelines

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/scavenge/scavenge/schemas/tokenset"
)

// growBy gives a growing token set its next part, of random sequences.
func growBy(t *testing.T, dir string, n, rows int64) {
	t.Helper()
	folder := filepath.Join(dir, tokenset.PartName(n))
	if err := os.MkdirAll(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	m := &tokenset.Manifest{Tokenizer: tokenset.Tokenizer{Vocab: teachVocab}, SeqLen: teachLength, Splits: map[tokenset.Split]*tokenset.Counts{}}
	for split, rows := range map[tokenset.Split]int64{tokenset.Train: rows, tokenset.Validation: 6} {
		s := randomShard(t, folder, split, int(rows), rand.New(rand.NewPCG(uint64(n), uint64(len(split)))))
		m.Splits[split] = &tokenset.Counts{Rows: rows, Tokens: rows * teachLength, Shards: []tokenset.Shard{s}}
	}
	if err := tokenset.WriteManifest(folder, m); err != nil {
		t.Fatal(err)
	}
}

// A teacher and two trainers follow a growing token set and are killed by
// SIGKILL again and again, the broker with them, while parts are added: both
// students end bit for bit like those of trainers left alone, on a stream that
// was taught when all was there.
func TestContinuousDistillationKilledAgainAndAgainEndsBitIdentical(t *testing.T) {
	teach, distill, broker := build(t, "./teach"), build(t, "../trainers/distill"), build(t, "../infra/broker")
	o := teachInputs(t, 1)
	dir := t.TempDir()
	web := filepath.Join(dir, "web")
	growBy(t, web, 0, 30)
	addr := fmt.Sprint("127.0.0.1:", freePort(t, 1))
	server := &worker{name: "broker", args: []string{broker, "--data", filepath.Join(dir, "broker"), "--listen", addr}}
	server.start(t)
	defer func() { server.kill() }()
	answers(t, addr)
	run := func(name, topic string, more ...string) *worker {
		return &worker{name: name, args: append([]string{distill, "--follow", "--dataset", web, "--teacher", o.Teacher, "--seed", fmt.Sprint(o.Seed), "--batch", "4", "--brokers", addr, "--topic", topic,
			"--filter-width", "8", "--filter-features", "5", "--save-every", "1", "--quiet", "--run", filepath.Join(dir, name)}, more...)}
	}
	lesson := func(topic string, more ...string) []string {
		return append([]string{teach, "--dataset", web, "--teacher", o.Teacher, "--seed", fmt.Sprint(o.Seed), "--dtype", o.DType, "--batch", "2", "--partitions", "2", "--brokers", addr, "--topic", topic}, more...)
	}
	plateau := []string{"--eval-every", "3", "--eval-sequences", "4", "--advance", "loss-plateau", "--plateau", "0.05"}
	tokens := []string{"--advance", "tokens", "--advance-tokens", fmt.Sprint(90 * teachLength), "--shuffle-buffer", "8", "--rate", "3e-3"}

	teacher := &worker{name: "teacher", args: lesson("grow", "--follow", "--max-lead", "20000", "--trainer-timeout", "10s")}
	workers := []*worker{teacher, run("plateau", "grow", plateau...), run("tokens", "grow", tokens...)}
	for _, w := range workers {
		w.start(t)
	}
	r := rand.New(rand.NewPCG(8, 1))
	parts, ending := int64(1), false
	done := map[*worker]bool{}
	began := time.Now()
	for kills := 0; len(done) < len(workers); {
		if time.Since(began) > 4*time.Minute {
			for _, w := range append(workers, server) {
				t.Logf("the %s, killed %d times, said: %s", w.name, w.killed, w.said.String())
			}
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
					t.Fatalf("the %s failed: %v: %s", w.name, err, w.said.String())
				}
				done[w] = true
			default:
			}
		}
		if kills < 40 {
			kills++
			if w := workers[r.IntN(len(workers))]; !done[w] {
				w.kill()
				w.start(t)
			}
			if kills%8 == 0 {
				growBy(t, web, parts, 10+5*parts)
				parts++
			}
			if kills%10 == 0 {
				server.kill()
				time.Sleep(time.Duration(r.IntN(700)) * time.Millisecond)
				server.start(t)
			}
		} else if !ending { // the same command without --follow ends the stream
			ending = true
			if !done[teacher] {
				teacher.kill()
			}
			teacher.args = lesson("grow", "--max-lead", "20000", "--trainer-timeout", "10s")
			delete(done, teacher)
			teacher.start(t)
		}
	}
	var killed []string
	for _, w := range append(workers, server) {
		killed = append(killed, fmt.Sprintf("%s %d times", w.name, w.killed))
	}
	t.Logf("killed: %s; %d parts; %v", strings.Join(killed, ", "), parts, time.Since(began).Round(time.Second))

	for _, args := range [][]string{lesson("calm"), run("plateau-calm", "calm", plateau...).args, run("tokens-calm", "calm", tokens...).args} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	for _, name := range []string{"plateau", "tokens"} {
		if got, want := result(t, filepath.Join(dir, name)), result(t, filepath.Join(dir, name+"-calm")); got != want {
			t.Errorf("%s: weights, optimiser or losses differ from the undisturbed run's", name)
		}
	}
}
