//go:build integration

package pipelines

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/apache/beam/sdks/v2/go/container/pool"
	"golang.org/x/sys/unix"

	"github.com/scavenge/scavenge/schemas/store/storetest"
	"github.com/scavenge/scavenge/schemas/tokenset"
	"github.com/scavenge/scavenge/transforms"
)

// startPool starts a pool of Beam workers of this test's own, and gives its
// address and the program that starts them. All of them end with the test.
func startPool(t *testing.T) (addr, boot string) {
	t.Helper()
	boot = build(t, "github.com/apache/beam/sdks/v2/go/container")
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil { // or a worker would outlive what started it unknown
		t.Fatal(err)
	}
	t.Chdir(t.TempDir()) // where a worker's start leaves a file
	port := freePort(t, 1)
	p, err := pool.New(context.Background(), port, boot)
	if err != nil {
		t.Fatal(err)
	}
	go p.ServeAndWait()
	t.Cleanup(func() {
		p.Stop(context.Background())
		for none := 0; none < 10; time.Sleep(20 * time.Millisecond) { // what ends leaves orphans, a little later
			left := append(children(t, boot, os.Getpid()), workersOf(t, boot)...)
			for _, pid := range left {
				syscall.Kill(pid, syscall.SIGKILL)
			}
			if none++; len(left) > 0 {
				none = 0
			}
		}
	})
	return fmt.Sprint("localhost:", port), boot
}

// children lists the running processes of a program, or of any called name,
// that one of the given processes started.
func children(t *testing.T, program string, parents ...int) (pids []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		exe, err := os.Readlink(p)
		if err != nil || exe != program && filepath.Base(exe) != program {
			continue
		}
		status, err := os.ReadFile(filepath.Join(filepath.Dir(p), "status"))
		if err != nil {
			continue // it ended
		}
		_, rest, _ := strings.Cut(string(status), "\nPPid:\t")
		line, _, _ := strings.Cut(rest, "\n")
		parent, err := strconv.Atoi(line)
		if err != nil || !slices.Contains(parents, parent) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// workersOf lists the running workers of a pool: what started them may have
// ended.
func workersOf(t *testing.T, boot string) []int {
	t.Helper()
	return children(t, "worker", append(children(t, boot, os.Getpid()), os.Getpid())...)
}

// written is what matches in a folder, and when it was written.
func written(t *testing.T, pattern string) map[string]time.Time {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]time.Time{}
	for _, name := range names {
		if st, err := os.Stat(name); err == nil {
			all[name] = st.ModTime()
		}
	}
	return all
}

// A worker that is killed in the middle of a job, while text is read or while
// shards are written, ends the job with an error, or the runner starts another.
// The same command finishes what is missing, does nothing again that was done,
// and ends in the same bytes.
func TestAKilledPoolWorkerCostsOnlyItsOwnWork(t *testing.T) {
	python := os.Getenv("SCAVENGE_BEAM_PYTHON")
	if python == "" {
		t.Fatal("SCAVENGE_BEAM_PYTHON is not set: host:port of the Python SDK's job service")
	}
	command := build(t, "./tokenize")
	c := newCorpus(t)
	folder := filepath.Join(c.dir, "many")
	if err := os.Mkdir(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	for i := range 17000 { // five groups: a group has 4096 files at most
		if err := os.WriteFile(filepath.Join(folder, fmt.Sprint(i, ".txt")), []byte(fmt.Sprint("Document ", i, " says that ", i*i, " is not ", i, strings.Repeat(", and then it says more", i%40))), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	args := func(output string, more ...string) []string {
		return append([]string{"--input", folder, "--tokenizer", c.tokenizer(), "--seq-len", "32", "--validation", "0.1", "--shard-tokens", "100000", "--output", filepath.Join(c.dir, output)}, more...)
	}
	if out, err := exec.Command(command, args("here")...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := files(t, filepath.Join(c.dir, "here"))
	for name, service := range map[string]string{"Prism": jobService(t), "Python": python} {
		for stage, pattern := range map[string]string{"reading": filepath.Join(transforms.WorkFolder, "scanned-*"), "writing": "*.parquet"} {
			t.Run(name+" "+stage, func(t *testing.T) {
				workers, boot := startPool(t)
				output := name + " " + stage
				dir := filepath.Join(c.dir, output)
				remote := []string{"--runner", "universal", "--endpoint", service, "--environment_type", "EXTERNAL", "--environment_config", workers}
				ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
				defer cancel()
				cmd := exec.CommandContext(ctx, command, args(output, remote...)...)
				cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
				var said bytes.Buffer
				cmd.Stdout, cmd.Stderr = &said, &said
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				go func() { ended <- cmd.Wait() }()
				killed := 0
				var err error
				for running := true; running; {
					select {
					case err = <-ended:
						running = false
					case <-time.After(5 * time.Millisecond):
						if killed > 0 || len(written(t, filepath.Join(dir, pattern))) == 0 {
							continue
						}
						for _, pid := range workersOf(t, boot) {
							if syscall.Kill(pid, syscall.SIGKILL) == nil {
								killed++
							}
						}
					}
				}
				if ctx.Err() != nil {
					t.Fatalf("the job neither failed nor ended; it said: %s", said.String())
				}
				if killed == 0 {
					t.Fatalf("no worker was killed: %v: %s", err, said.String())
				}
				_, whole := os.Stat(filepath.Join(dir, tokenset.ManifestFile))
				var exit *exec.ExitError
				if err != nil && !errors.As(err, &exit) || (err == nil) != (whole == nil) {
					t.Fatalf("%v, manifest: %v; it said: %s", err, whole, said.String())
				}
				line := said.String()[strings.LastIndexByte(strings.TrimSpace(said.String()), '\n')+1:]
				t.Logf("%d workers killed, the command ended with %v: %s", killed, err, strings.TrimSpace(line))
				if err != nil && strings.TrimSpace(line) == "" {
					t.Error("it failed without a word")
				}
				before := written(t, filepath.Join(dir, pattern))
				if err != nil && len(before) == 0 {
					t.Error("nothing of what was done is left")
				}
				again := exec.Command(command, args(output, remote...)...)
				again.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
				said.Reset()
				again.Stdout, again.Stderr = &said, &said
				if err := again.Start(); err != nil {
					t.Fatal(err)
				}
				go func() { ended <- again.Wait() }()
				for running := true; running; {
					select {
					case err = <-ended:
						running = false
					case <-time.After(5 * time.Millisecond):
					}
					for name, when := range written(t, filepath.Join(dir, pattern)) {
						if b, ok := before[name]; ok && !b.Equal(when) {
							t.Fatalf("%s was written again", filepath.Base(name))
						}
					}
				}
				if err != nil {
					t.Fatalf("the same command again: %v\n%s", err, said.String())
				}
				sameFiles(t, files(t, dir), want)
			})
		}
	}
}

// Where all paths are in a bucket, the command, the job server and the workers
// share no file.
func TestTokenizeInTheCloudOverAJobServer(t *testing.T) {
	command := build(t, "./tokenize")
	c := newCorpus(t)
	tokenize(t, c.options("here"))
	want := files(t, filepath.Join(c.dir, "here"))
	delete(want, tokenset.ManifestFile)
	os.RemoveAll(filepath.Join(c.dir, "here"))
	for name, start := range map[string]func(testing.TB) *storetest.Server{"s3": storetest.S3, "gs": storetest.GS} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			upload(t, s, c.dir)
			workers, _ := startPool(t) // with the server's address in its environment
			o := c.inCloud(s, "set")
			out, err := exec.Command(command, "--input", strings.Join(o.Inputs, ","), "--tokenizer", o.Tokenizer, "--output", o.Output, "--seq-len", "16", "--validation", "0.2", "--seed", "1",
				"--shard-tokens", "512", "--runner", "universal", "--endpoint", jobService(t), "--environment_type", "EXTERNAL", "--environment_config", workers).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			got := objects(t, o.Output)
			delete(got, tokenset.ManifestFile)
			sameFiles(t, got, want)
		})
	}
}
