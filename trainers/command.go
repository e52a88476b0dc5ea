package trainers

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/scavenge/scavenge/gpu"
)

// Command is the whole of a command's main: it parses the flags, runs under
// Ctrl-C and SIGTERM (a second one ends the process at once), prints the
// result, and turns an error into one line and a non-zero exit.
func Command(about string, flags func(*flag.FlagSet), run func(context.Context) (fmt.Stringer, error)) {
	os.Exit(command(about, flags, run, os.Args[1:]))
}

func command(about string, flags func(*flag.FlagSet), run func(context.Context) (fmt.Stringer, error), args []string) int {
	name, _, _ := strings.Cut(about, ":")
	set := flag.NewFlagSet(name, flag.ContinueOnError)
	flags(set)
	set.Usage = func() {} // only a call for help prints the flags: a bad one is an error of one line
	set.SetOutput(io.Discard)
	err := set.Parse(args)
	set.SetOutput(os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(set.Output(), "%s\n\nFlags:\n", about)
		set.PrintDefaults()
		return 0
	case err != nil:
		fmt.Fprintf(os.Stderr, "%s: %v (-h lists the flags)\n", name, err)
		return 2
	case set.NArg() > 0:
		fmt.Fprintf(os.Stderr, "%s: argument %q is not a flag\n", name, set.Arg(0))
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the next signal is not caught
	result, err := run(ctx)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %s\n", name, strings.ReplaceAll(err.Error(), "\n", "; "))
		if errors.Is(err, context.Canceled) {
			return 130
		}
		return 1
	}
	fmt.Println(result)
	return 0
}

// Flags declares a run's options; batch is the command's default.
func (r *Run) Flags(f *flag.FlagSet, batch int) {
	f.StringVar(&r.Dataset, "dataset", "", "`folder` of the token set, also s3://… and gs://…")
	f.StringVar(&r.Dir, "run", "", "`folder` for checkpoints and metrics; the same command goes on from what is in it")
	deviceFlags(f, &r.Device, &r.Precision)
	f.Int64Var(&r.Seed, "seed", 0, "of the order of sequences (the producer's, with a stream) and of random weights")
	f.IntVar(&r.Shuffle.Window, "shuffle-buffer", 0, "shuffle so many `sequences` among themselves, window after window; a stream holds as many records of each layer in memory (default the canonical order)")
	f.Int64Var(&r.Shuffle.Seed, "shuffle-seed", 0, "of the shuffle buffer; trainers of one topic may each have their own")
	f.IntVar(&r.Batch, "batch", batch, "sequences a step")
	f.Int64Var(&r.Epochs, "epochs", 0, "passes over the token set (instead of steps)")
	f.Float64Var(&r.Rate.Peak, "rate", 1e-3, "highest learning rate")
	f.Float64Var(&r.Rate.Floor, "min-rate", 0, "learning rate at the end (default a tenth of --rate)")
	f.Int64Var(&r.Rate.Decay, "decay-steps", 0, "step at which --min-rate is reached (default the last; pre-training: 2000)")
	f.Int64Var(&r.Rate.Warmup, "warmup", 0, "steps up to --rate (default 2.5% of the decay's; pre-training: 300)")
	f.Int64Var(&r.SaveEvery, "save-every", 500, "steps between checkpoints")
	f.Int64Var(&r.Evaluation.Every, "eval-every", 0, "`steps` between evaluations on held-out sequences, the first of the validation split (default none)")
	f.IntVar(&r.Evaluation.Sequences, "eval-sequences", defaultHeldOut, "how `many` held-out sequences")
	f.StringVar(&r.Log, "log", LogText, "on standard error: text (notices and a progress bar) or json (log/slog's records, one a line)")
	f.StringVar(&r.Metrics, "metrics", "", "serve /metrics, for Prometheus, and /healthz at this `host:port` (127.0.0.1:9464, for instance)")
	f.BoolVar(&r.Quiet, "quiet", false, "show no progress")
}

// Flags declares the options of a student's beginning.
func (o *StudentOptions) Flags(f *flag.FlagSet) {
	f.StringVar(&o.Student, "student", "", "`folder` of a checkpoint to start from (default a new student by --init)")
	f.StringVar((*string)(&o.Init), "init", string(InitTeacher), "start of a new student: teacher (all but the mixers), attention (the mixers' projections too), embeddings, random")
	f.IntVar(&o.Context, "context", 0, "longest sequence of a new student, tokens (default the token set's)")
	f.IntVar(&o.Width, "filter-width", 0, "width of a new student's filter FFN (default 64)")
	f.IntVar(&o.Bands, "filter-features", 0, "positional features of a new student's filters, odd (default 33)")
}

func deviceFlags(f *flag.FlagSet, name *string, precision *gpu.Precision) {
	f.StringVar(name, "device", "cpu", "cpu or cuda:N")
	f.StringVar((*string)(precision), "precision", string(gpu.Float32), "of matrix products: float32 or bf16")
}

// Flags declares the options of a distillation.
func (o *DistillOptions) Flags(f *flag.FlagSet) {
	o.Run.Flags(f, 60)
	o.StudentOptions.Flags(f)
	f.Int64Var(&o.Steps, "steps-per-layer", 0, "steps on each layer (joint: on all of them)")
	f.StringVar(&o.Teacher, "teacher", "", "`folder` of the teacher's checkpoint")
	f.StringVar(&o.Schedule, "schedule", Progressive, "progressive (layer after layer, lower blocks frozen) or joint")
	f.StringVar(&o.Source, "source", FromStream, "of the teacher's activations: stream (Kafka), replay (Kafka for the first epoch, a local cache for the others) or inline (the teacher runs here)")
	o.Feed.flags(f, "layer i's topic is <name>.layer-i")
	f.BoolVar(&o.Follow, "follow", false, "train on records as they come until the producer ends the stream; --dataset may be a growing token set")
	f.StringVar(&o.From, "from", "", "follow: where to begin: earliest (the first sequence that the topics hold, the default) or latest (the next one that comes)")
	f.StringVar(&o.Advance.Rule, "advance", "", "`rule` by which a layer is trained enough: tokens, or loss-plateau (of the held-out loss, see --eval-every)")
	f.Int64Var(&o.Advance.Tokens, "advance-tokens", 0, "advance tokens: how many `tokens` to train each layer on")
	f.Float64Var(&o.Advance.Margin, "plateau", 0, "advance loss-plateau: the least `share` of the held-out loss by which it has to fall (default 0.01)")
	f.IntVar(&o.Advance.Patience, "patience", 0, "advance loss-plateau: so many `evaluations` in a row without that (default 3)")
	f.StringVar(&o.Type, "dtype", "float16", "inline: what targets are rounded to: float32, float16, bfloat16 or int8")
}

// Flags declares the options of a fine-tuning.
func (o *FinetuneOptions) Flags(f *flag.FlagSet) {
	o.Run.Flags(f, 60)
	o.StudentOptions.Flags(f)
	f.Int64Var(&o.Steps, "steps", 0, "to train")
	f.StringVar(&o.Teacher, "teacher", "", "`folder` of a teacher's checkpoint, for --soft-weight or --init")
	f.StringVar(&o.Source, "source", FromDataset, "of the tokens: dataset (the token set's files), stream (token records on Kafka: teach --layers tokens) or replay (Kafka for the first epoch, a local cache for the others)")
	o.Feed.flags(f, "token records are in <name>.tokens")
	f.Float64Var(&o.SoftWeight, "soft-weight", 0, "w in the loss (1−w)·CE + w·T²·KL(teacher ‖ student)")
	f.Float64Var(&o.Temperature, "temperature", 2, "T of the soft targets")
}

// Flags declares the options of a pre-training.
func (o *PretrainOptions) Flags(f *flag.FlagSet) {
	o.Run.Flags(f, 512)
	f.Int64Var(&o.Steps, "steps", 0, "to train")
	f.StringVar(&o.Mixer, "mixer", MixerHyena, "hyena or attention")
	f.IntVar(&o.Vocab, "vocab", 0, "token ids (default the token set's, rounded up to a multiple of 128)")
	f.IntVar(&o.Dim, "dim", 512, "width of the residual stream")
	f.IntVar(&o.Layers, "layers", 6, "blocks")
	f.IntVar(&o.Heads, "heads", 8, "attention heads")
	f.IntVar(&o.MLP, "mlp", 0, "width of the MLP (default 4·dim)")
	f.IntVar(&o.Context, "context", 0, "longest sequence, tokens (default the token set's)")
	f.IntVar(&o.Width, "filter-width", 64, "hyena: width of the filter FFN")
	f.IntVar(&o.Bands, "filter-features", 33, "hyena: positional features of the filters, odd")
	f.Float64Var(&o.Clip, "clip", 1, "bound on the gradients' norm")
}

// Flags declares the options of an evaluation.
func (o *EvaluateOptions) Flags(f *flag.FlagSet) {
	f.StringVar(&o.Model, "model", "", "`folder` of the checkpoint (or of a run: its latest)")
	f.StringVar(&o.Dataset, "dataset", "", "`folder` of a token set to score, also s3://… and gs://…")
	f.StringVar((*string)(&o.Split), "split", "validation", "of the token set: validation or train")
	f.StringVar(&o.Text, "text", "", "text `file` to score")
	f.StringVar(&o.Tokenizer, "tokenizer", "", "tokenizer.json `file` for --text")
	f.IntVar(&o.Context, "context", 0, "tokens of a window (default the model's context)")
	f.IntVar(&o.Batch, "batch", 16, "windows computed together; no result depends on it")
	deviceFlags(f, &o.Device, &o.Precision)
	f.BoolVar(&o.Quiet, "quiet", false, "show no progress")
}
