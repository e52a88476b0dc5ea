package pipelines

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/apache/beam/sdks/v2/go/pkg/beam"
	"github.com/apache/beam/sdks/v2/go/pkg/beam/options/jobopts"
	"github.com/apache/beam/sdks/v2/go/pkg/beam/register"

	"github.com/scavenge/scavenge/schemas/store/storetest"
	"github.com/scavenge/scavenge/schemas/tokenset"
	"github.com/scavenge/scavenge/transforms"
)

// failFn fails as a DoFn of ours does, or only as Beam sees it.
type failFn struct {
	Launch transforms.LaunchID
	Plain  bool
	Wait   bool
}

func (fn *failFn) ProcessElement(ctx context.Context, _ []byte) (err error) {
	if fn.Plain {
		return errors.New("shard 7: the disk is full")
	}
	ctx, task := fn.Launch.Begin(ctx)
	defer task.End(&err)
	task.Advance(3, 5)
	if fn.Wait {
		<-ctx.Done()
		return ctx.Err()
	}
	return errors.New("shard 7: the disk is full")
}

func init() { register.DoFn2x1[context.Context, []byte, error](&failFn{}) }

func TestErrorsOfDoFnsReachTheUserAsOneLine(t *testing.T) {
	for _, fn := range []failFn{{}, {Plain: true}} {
		var done, tokens int64
		err := Runner{}.Run(context.Background(), func(s beam.Scope, launch transforms.LaunchID) {
			fn.Launch = launch
			beam.ParDo0(s, &fn, beam.Impulse(s))
		}, func(d, n int64) { done, tokens = d, n })
		if err == nil || !strings.HasSuffix(err.Error(), "shard 7: the disk is full") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v", fn, err)
		}
		if !fn.Plain && (done != 3 || tokens != 5) {
			t.Errorf("progress %d, %d; want 3, 5", done, tokens)
		}
	}
}

// The SDK panics on a deadline; Run must take one for a cancellation.
func TestADeadlineInterrupts(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	err := Runner{}.Run(ctx, func(s beam.Scope, launch transforms.LaunchID) {
		beam.ParDo0(s, &failFn{Launch: launch, Wait: true}, beam.Impulse(s))
	}, nil)
	if !errors.Is(err, ErrInterrupted) {
		t.Errorf("%v, want %v", err, ErrInterrupted)
	}
}

// Prism ends the process where a job is cancelled before its worker is there.
func TestACancellationAtAnyMomentInterrupts(t *testing.T) {
	for _, delay := range []time.Duration{0, 1, 2, 5, 10, 20, 50} {
		ctx, cancel := context.WithCancel(context.Background())
		stop := time.AfterFunc(delay*time.Millisecond, cancel)
		err := Runner{}.Run(ctx, func(s beam.Scope, launch transforms.LaunchID) {
			beam.ParDo0(s, &failFn{Launch: launch, Wait: true}, beam.Impulse(s))
		}, nil)
		stop.Stop()
		cancel()
		if !errors.Is(err, ErrInterrupted) {
			t.Errorf("cancelled after %d ms: %v, want %v", delay, err, ErrInterrupted)
		}
	}
}

func TestRunnerIsValidated(t *testing.T) {
	endpoint := *jobopts.Endpoint
	defer func() { *jobopts.Endpoint = endpoint }()
	*jobopts.Endpoint = ""
	for name, want := range map[string]string{"": "", "prism": "", "universal": "--endpoint", "dataflow": "--project is not set", "spark": `"spark"`} {
		err := Runner{Name: name}.Validate()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", name, err, want)
		}
	}
}

// Dataflow itself is not here: its client makes the job, and keeps it. It does
// so in a process of its own, as Beam reads its options once.
func TestDataflowsClientTakesThePipeline(t *testing.T) {
	const alone = "SCAVENGE_TEST_ALONE"
	if os.Getenv(alone) == "" {
		child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		child.Env = append(os.Environ(), alone+"=1")
		if out, err := child.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	s := storetest.GS(t)
	c := newCorpus(t)
	upload(t, s, c.dir)
	for name, value := range map[string]string{"project": "p", "region": "europe-west1", "staging_location": s.Root + "/staging", "dry_run": "true",
		"environment_type": "DOCKER"} { // which Prism changes
		before := flag.Lookup(name).Value.String()
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
		defer flag.Set(name, before)
	}
	o := c.inCloud(s, "set")
	o.Runner.Name = "dataflow"
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	r, err := o.recipe(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	r.Groups = 2
	if err := o.Runner.Run(context.Background(), func(s beam.Scope, launch transforms.LaunchID) { transforms.Tokenize(s, launch, r) }, nil); err != nil {
		t.Error(err)
	}
	o.Output = "here"
	if err := o.Validate(); err == nil || !strings.Contains(err.Error(), "do not see here") {
		t.Errorf("%v", err)
	}
}

func TestInnermostIsTheCause(t *testing.T) {
	const beam = "job job-001 failed:\nprocess bundle failed for instruction inst003 using plan 4 : while executing Process for Plan[4]:\n2: ParDo[x]\n\tcaused by:\nsource failed processing data\n\tcaused by:\nDoFn[UID:6, PID:e4, Name: x.tokenizeFn] failed:\ninput a.jsonl: line 1: no \"text\""
	if got := innermost(beam); got != `input a.jsonl: line 1: no "text"` {
		t.Errorf("%q", got)
	}
	if got := innermost("connection refused"); got != "connection refused" {
		t.Errorf("%q", got)
	}
}

func TestOtherLogsAreKept(t *testing.T) {
	out := new(bytes.Buffer)
	before := stdLog
	stdLog = out
	defer func() { stdLog = before; log.SetOutput(before) }()
	Runner{}.quiet()
	log.Print("still here")
	if !strings.Contains(out.String(), "still here") {
		t.Errorf("the log package writes %q", out)
	}
}

func TestHelpShowsOwnFlagsAndFewOfBeams(t *testing.T) {
	f, out := flag.NewFlagSet("tokenize", flag.ContinueOnError), new(bytes.Buffer)
	f.SetOutput(out)
	flag.VisitAll(func(g *flag.Flag) { f.Var(g.Value, g.Name, g.Usage) })
	new(TokenizeOptions).Flags(f)
	usage(f, "tokenize makes token sets.")
	for _, want := range []string{"tokenize makes", "-input glob", "-seq-len tokens", "-endpoint", "-worker_binary"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in the help:\n%s", want, out)
		}
	}
	if strings.Contains(out.String(), "semi_persist_dir") {
		t.Errorf("the help shows flags that no user sets:\n%s", out)
	}
}

// A document of 20 MB never crosses a stage, and so meets no limit of gRPC's.
func TestALargeDocumentRuns(t *testing.T) {
	c := newCorpus(t)
	line, err := json.Marshal(map[string]string{"text": strings.Repeat("the quick brown fox. ", 1_000_000)})
	if err != nil {
		t.Fatal(err)
	}
	o := c.options("set")
	o.Inputs, o.SeqLen, o.Validation, o.ShardTokens = []string{c.put(t, "large.jsonl", string(line))}, 1024, 0, 1<<22
	o.GroupBytes = 0
	set := tokenize(t, o)
	if n := set.Manifest.Splits[tokenset.Train].Tokens; n < 4_000_000 {
		t.Errorf("%d tokens of a million sentences", n)
	}
}
