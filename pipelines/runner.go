// Package pipelines launches Beam pipelines: tokenize (text files to a token
// set) and teach (a token set and a teacher to activation records on Kafka).
// Their commands are the folders below; here is the work of each as a
// function, and what they share: the choice of a runner, flags, cancellation
// and errors of one line.
package pipelines

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/apache/beam/sdks/v2/go/pkg/beam"
	"github.com/apache/beam/sdks/v2/go/pkg/beam/core/runtime/harness"
	"github.com/apache/beam/sdks/v2/go/pkg/beam/core/util/hooks"
	beamlog "github.com/apache/beam/sdks/v2/go/pkg/beam/log"
	"github.com/apache/beam/sdks/v2/go/pkg/beam/options/jobopts"

	_ "github.com/apache/beam/sdks/v2/go/pkg/beam/runners/dataflow"
	_ "github.com/apache/beam/sdks/v2/go/pkg/beam/runners/prism"
	_ "github.com/apache/beam/sdks/v2/go/pkg/beam/runners/universal"

	"github.com/scavenge/scavenge/transforms"
)

// Runner says where a pipeline runs. The zero value is Beam's Prism in this
// process. Where another runner is and how it starts its workers is said by
// Beam's own flags: --endpoint, --environment_type, --environment_config,
// --worker_binary; for Dataflow --project, --region, --staging_location.
type Runner struct {
	Name    string // prism (default), universal: any portable runner at --endpoint, or dataflow
	Verbose bool   // Beam's own log, on stderr

	notice   func(string)             // told what DoFns in this process say; may be nil
	launched func(*transforms.Launch) // told the launch before it begins; may be nil
}

// Flags declares a runner's flags.
func (r *Runner) Flags(f *flag.FlagSet) {
	f.StringVar(&r.Name, "runner", "prism", "`name` of the Beam runner: prism (in this process) universal (any portable runner at --endpoint) or dataflow (Google Cloud's; all paths in gs://)")
	f.BoolVar(&r.Verbose, "verbose", false, "show Beam's own log")
}

// Validate says what of a runner cannot be.
func (r Runner) Validate() error {
	switch r.Name {
	case "", "prism":
	case "universal":
		if *jobopts.Endpoint == "" {
			return errors.New("--runner universal: --endpoint is not set, the host:port of the runner's job service")
		}
	case "dataflow":
		for _, name := range dataflowFlags {
			if f := flag.Lookup(name); f == nil || f.Value.String() == "" {
				return fmt.Errorf("--runner dataflow: --%s is not set", name)
			}
		}
	default:
		return fmt.Errorf("--runner %q: want prism, universal or dataflow", r.Name)
	}
	return nil
}

// dataflowFlags are those of Beam's that Dataflow does not run without.
var dataflowFlags = []string{"project", "region", "staging_location"}

// local says that the workers see this machine's files.
func (r Runner) local() bool { return r.Name != "dataflow" }

// ErrInterrupted is what Run returns when its context was cancelled.
var ErrInterrupted = errors.New("interrupted: the same command goes on from here")

// Run builds a pipeline and runs it to its end. DoFns carry the launch's ID;
// progress, if not nil, is called twice a second and at the end with what the
// DoFns in this process have done.
//
// A cancelled ctx ends the DoFns in this process and waits for them to clean
// up; a job on another machine goes on until its runner ends it.
func (r Runner) Run(ctx context.Context, build func(s beam.Scope, launch transforms.LaunchID), progress func(done, tokens int64)) error {
	if err := r.Validate(); err != nil {
		return err
	}
	if !beam.Initialized() {
		beam.Init()
	}
	r.quiet()
	if *jobopts.WorkerBinary == "" && runtime.GOOS == "linux" {
		*jobopts.WorkerBinary, _ = os.Executable() // without it the SDK compiles one, which takes minutes
	}
	// The SDK panics on a deadline, so it only ever sees a cancellation.
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	tasks, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	launch := transforms.NewLaunch(tasks)
	launch.Notice = r.notice
	if r.launched != nil {
		r.launched(launch)
	}
	defer launch.Close()
	// DoFns end at once. Beam is told when the first of them has begun: Prism
	// ends the process where a job is cancelled before its worker is there.
	defer context.AfterFunc(ctx, func() {
		stop()
		select {
		case <-launch.Begun():
		case <-time.After(startPatience): // the workers are elsewhere
		case <-inner.Done():
		}
		cancel()
	})()

	p, s := beam.NewPipelineWithRoot()
	build(s, launch.ID)
	if progress != nil {
		stop := every(500*time.Millisecond, func() { progress(launch.Progress()) })
		defer stop()
	}
	name := r.Name
	if name == "" {
		name = "prism"
	}
	_, err := beam.Run(inner, name, p)
	switch {
	case ctx.Err() != nil:
		return ErrInterrupted
	case err == nil:
		return nil
	case launch.Err() != nil:
		return launch.Err()
	case name == "universal": // a worker elsewhere may have been killed
		return fmt.Errorf("runner %s: %s (its log and its workers' say more; the same command goes on from what is done)", name, innermost(err.Error()))
	default:
		return fmt.Errorf("runner %s: %s", name, innermost(err.Error()))
	}
}

// startPatience is how long a cancelled run waits for a DoFn to begin in this
// process.
const startPatience = 5 * time.Second

// every calls f at each interval and once more when stopped.
func every(interval time.Duration, f func()) (stop func()) {
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				f()
			case <-quit:
				f()
				return
			}
		}
	}()
	return func() { close(quit); <-ended }
}

// innermost is the cause in one of Beam's errors, whose text nests contexts
// over many lines, each cause after a line "caused by:".
func innermost(text string) string {
	if i := strings.LastIndex(text, "caused by:\n"); i >= 0 {
		text = text[i+len("caused by:\n"):]
	}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasSuffix(line, "failed:") {
			return line
		}
	}
	return strings.Join(strings.Fields(text), " ")
}

// stdLog is the log package's output before Beam leads it through slog.
var stdLog, stdLogFlags = log.Writer(), log.Flags()

// quiet silences Beam's and Prism's log, unless it is asked for; other users
// of the log package keep their output. Workers in this process would send
// their log to the runner, which prints it: that is turned off as well.
// Workers elsewhere log as their runner wants.
func (r Runner) quiet() {
	if r.Verbose {
		return
	}
	slog.SetDefault(slog.New(slog.DiscardHandler))
	log.SetOutput(stdLog)
	log.SetFlags(stdLogFlags)
	beamlog.SetLogger(silent{})
	if jobopts.IsLoopback() || *jobopts.Endpoint == "" {
		hooks.DisableHook(harness.DefaultRemoteLoggingHook)
	}
}

type silent struct{}

func (silent) Log(context.Context, beamlog.Severity, int, string) {}

// Main is the body of a command: it parses the command line, serves Beam if
// this process is one of its workers, and else calls run with a context that
// Ctrl-C cancels. An error is one line on stderr and exit status 1.
func Main(about string, run func(ctx context.Context) error) {
	err := parseFlags(about)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%v (-h lists the flags)\n", err)
		os.Exit(2)
	}
	beam.Init() // does not return in a worker
	if flag.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q: every option is a --flag", flag.Arg(0))
	} else {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		context.AfterFunc(ctx, stop) // a second Ctrl-C ends the process at once
		err = run(ctx)
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// parseFlags parses the command line. Only a call for help prints the flags: a
// bad one is an error of one line.
func parseFlags(about string) error {
	all := flag.CommandLine
	all.Init(os.Args[0], flag.ContinueOnError)
	all.Usage = func() {}
	all.SetOutput(io.Discard)
	err := all.Parse(os.Args[1:])
	all.SetOutput(os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		usage(all, about)
	}
	return err
}

// beamFlags are those of Beam's many flags that the help shows, by runner.
var beamFlags = map[string][]string{"universal": {"endpoint", "environment_type", "environment_config", "worker_binary"}, "dataflow": dataflowFlags}

// sdkFlags is what the SDK had declared before any command declared its own.
var sdkFlags = func() map[string]bool {
	seen := map[string]bool{}
	flag.VisitAll(func(f *flag.Flag) { seen[f.Name] = true })
	return seen
}()

// usage prints the command's own flags and the few of Beam's that matter.
func usage(all *flag.FlagSet, about string) {
	fmt.Fprintln(all.Output(), about)
	section := func() *flag.FlagSet {
		f := flag.NewFlagSet("", flag.ContinueOnError)
		f.SetOutput(all.Output())
		return f
	}
	own := section()
	all.VisitAll(func(f *flag.Flag) {
		if !sdkFlags[f.Name] {
			own.Var(f.Value, f.Name, f.Usage)
			own.Lookup(f.Name).DefValue = f.DefValue
		}
	})
	fmt.Fprintln(all.Output(), "\nFlags:")
	own.PrintDefaults()
	for _, runner := range []string{"universal", "dataflow"} {
		sdk := section()
		for _, name := range beamFlags[runner] {
			if f := all.Lookup(name); f != nil {
				usage, _, _ := strings.Cut(f.Usage, "\n")
				sdk.Var(f.Value, f.Name, usage)
				sdk.Lookup(name).DefValue = f.DefValue
			}
		}
		fmt.Fprintf(all.Output(), "\nBeam's, with --runner %s:\n", runner)
		sdk.PrintDefaults()
	}
}
