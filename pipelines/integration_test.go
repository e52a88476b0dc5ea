//go:build integration

package pipelines

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/scavenge/scavenge/infra"
	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/tokenizer"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// jobService is the address of a Beam runner's job service, from the
// environment: .ci/run starts one.
func jobService(t *testing.T) string {
	t.Helper()
	addr := os.Getenv("SCAVENGE_BEAM")
	if addr == "" {
		t.Fatal("SCAVENGE_BEAM is not set: host:port of a Beam job service")
	}
	return addr
}

// build makes a command's binary, which is also what a worker runs.
func build(t *testing.T, command string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), filepath.Base(command))
	if out, err := exec.Command("go", "build", "-o", path, command).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// Over the portable protocol, with a job server in another process, the token
// set is the same to the byte as with the runner in this process, and a DoFn's
// error still reaches the user as one line. The job servers are Prism and the
// Python SDK's; the DoFns run in the command's own process, and in workers that
// a pool starts from the command's binary.
func TestTokenizeOverAJobServerGivesTheSameBytes(t *testing.T) {
	pool, python := os.Getenv("SCAVENGE_BEAM_POOL"), os.Getenv("SCAVENGE_BEAM_PYTHON")
	if pool == "" || python == "" {
		t.Fatal("SCAVENGE_BEAM_POOL or SCAVENGE_BEAM_PYTHON is not set: host:port of a pool of Beam workers, and of the Python SDK's job service")
	}
	command := build(t, "./tokenize")
	for name, x := range map[string]struct{ service, environment, config string }{
		"Prism loopback": {jobService(t), "LOOPBACK", ""}, "Prism worker pool": {jobService(t), "EXTERNAL", pool},
		"Python loopback": {python, "LOOPBACK", ""}, "Python worker pool": {python, "EXTERNAL", pool},
	} {
		t.Run(name, func(t *testing.T) {
			tokenizeOverAJobServer(t, command, []string{"--runner", "universal", "--endpoint", x.service, "--environment_type", x.environment, "--environment_config", x.config})
		})
	}
}

func tokenizeOverAJobServer(t *testing.T, command string, portable []string) {
	dir := t.TempDir()
	tok, err := tokenizer.Train(func(yield func(string) bool) {
		yield("Document 12 says that 345 is not 6789, and then it says a little more. It is the last of them.")
	}, tokenizer.TrainOptions{Vocab: 320})
	if err != nil {
		t.Fatal(err)
	}
	if err := tok.Save(filepath.Join(dir, "tokenizer.json")); err != nil {
		t.Fatal(err)
	}
	const broken = 7 // of the files, later
	put := func(i int, more string) {
		var lines bytes.Buffer
		for j := range 300 {
			fmt.Fprintf(&lines, "{\"text\": \"Document %d says that %d is not %d, and then it says a little more.\"}\n", i, j*j, j+i)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("input-%d.jsonl", i)), append(lines.Bytes(), more...), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 10 {
		put(i, "")
	}
	run := func(output string, more ...string) string {
		args := append([]string{"--input", filepath.Join(dir, "*.jsonl"), "--tokenizer", filepath.Join(dir, "tokenizer.json"), "--seq-len", "32", "--validation", "0.1",
			"--shard-tokens", "10000", "--sample", "2000", "--output", filepath.Join(dir, output)}, more...)
		out, err := exec.Command(command, args...).CombinedOutput()
		if err != nil {
			return strings.TrimSpace(string(out))
		}
		return ""
	}
	if out := run("here"); out != "" {
		t.Fatal(out)
	}
	if out := run("there", portable...); out != "" {
		t.Fatal(out)
	}
	here, err := filepath.Glob(filepath.Join(dir, "here", "*"))
	if err != nil || len(here) < 5 {
		t.Fatalf("%v, %v", here, err)
	}
	for _, path := range here {
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(dir, "there", filepath.Base(path)))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s differs: %v", filepath.Base(path), err)
		}
	}

	put(broken, "{\"text\": \"cut sho\n")
	out := run("broken", portable...)
	last := out[strings.LastIndexByte(out, '\n')+1:]
	if !strings.Contains(last, fmt.Sprintf("input-%d.jsonl: line 301", broken)) {
		t.Errorf("a broken line gave %q", last)
	}
	if _, err := os.Stat(filepath.Join(dir, "broken", "manifest.json")); err == nil {
		t.Error("a manifest was written for broken input")
	}
	if out := run("broken", append(portable, "--on-bad-document", "skip")...); out != "" {
		t.Errorf("going on without the broken line: %s", out)
	}
}

// Over the portable protocol the teacher's activations are those of the runner
// in this process, from two workers, and a DoFn's error is still one line.
func TestTeachOverAJobServer(t *testing.T) {
	command := build(t, "./teach")
	o := teachInputs(t, 20)
	o.Epochs, o.Partitions, o.Workers = 2, 2, 2
	b, err := infra.StartBroker(infra.BrokerOptions{Dir: o.Data})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	run := func(more ...string) (string, error) {
		args := append([]string{"--dataset", o.Dataset, "--teacher", o.Teacher, "--topic", o.Topic, "--dtype", o.DType, "--seed", fmt.Sprint(o.Seed), "--epochs", "2",
			"--partitions", "2", "--workers", "2", "--brokers", b.Addr(), "--runner", "universal", "--endpoint", jobService(t), "--environment_type", "LOOPBACK"}, more...)
		out, err := exec.Command(command, args...).CombinedOutput()
		return string(out), err
	}
	if out, err := run(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := run("--seed", "9"); err == nil || !strings.Contains(out, "another --seed") {
		t.Errorf("another seed over the same topics: %v\n%s", err, out)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for p := range 2 {
		want, got := order(t, o, p), taught(t, o, p)
		if len(got) != len(want) {
			t.Fatalf("partition %d has %d records, want %d", p, len(got), len(want))
		}
		for i, r := range got {
			if r.SequenceID != want[i] {
				t.Fatalf("partition %d: record %d is sequence %d, want %d", p, i, r.SequenceID, want[i])
			}
		}
	}
}

// A growing token set is followed over the portable protocol until an interrupt,
// and its stream is ended by workers in processes of their own, which know of it
// by its folder and the topics alone.
func TestTeachFollowsOverAJobServer(t *testing.T) {
	pool := os.Getenv("SCAVENGE_BEAM_POOL")
	if pool == "" {
		t.Fatal("SCAVENGE_BEAM_POOL is not set: host:port of a pool of Beam workers")
	}
	command := build(t, "./teach")
	o, more := growingInputs(t, 5)
	b, err := infra.StartBroker(infra.BrokerOptions{Dir: o.Data})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	args := []string{"--dataset", o.Dataset, "--teacher", o.Teacher, "--topic", o.Topic, "--dtype", o.DType, "--seed", fmt.Sprint(o.Seed), "--partitions", "2", "--workers", "2",
		"--brokers", b.Addr(), "--runner", "universal", "--endpoint", jobService(t)}
	follow := exec.Command(command, append(args, "--follow", "--environment_type", "LOOPBACK")...)
	waits := 0
	follow.Stderr = &told{use: func(line string) {
		t.Log(line)
		if strings.Contains(line, "waiting for ") {
			if waits++; waits == 1 {
				more(8)
			} else if waits == 2 {
				follow.Process.Signal(os.Interrupt)
			}
		}
	}}
	if err := follow.Run(); err == nil || follow.ProcessState.ExitCode() != 1 || waits != 2 {
		t.Fatalf("it waited %d times and ended with %v, want the exit status of an interrupt", waits, err)
	}
	more(3)
	for range 2 {
		if out, err := exec.Command(command, append(args, "--environment_type", "EXTERNAL", "--environment_config", pool)...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	series, err := tokenset.OpenSeries(o.Dataset)
	if err != nil {
		t.Fatal(err)
	}
	for p := range 2 {
		var want, got []int64
		for epoch := range int64(3) {
			for _, id := range series.Order(tokenset.Train, o.Seed, epoch) {
				if activation.Partition(id, 2) == p {
					want = append(want, id)
				}
			}
		}
		for _, r := range taught(t, o, p) {
			got = append(got, r.SequenceID)
		}
		if e := ends(t, o, p); !slices.Equal(got, want) || len(e) != 4 || !strings.HasPrefix(e[3], "end of stream 2: ") {
			t.Errorf("partition %d: sequences %v, want %v; ends %q", p, got, want, e)
		}
	}
}
