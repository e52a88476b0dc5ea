// Package trainers is what consumes: distillation layer by layer or joint,
// fine-tuning, pre-training and evaluation. In flow a token set's sequences,
// in its canonical order, and for distillation a teacher's activations from
// Kafka (or from a teacher that runs beside the student); out flow training
// checkpoints, metrics as JSON lines, and perplexities.
//
// A run lives in a folder: step-NNNNNNN/ checkpoints, latest, metrics.jsonl.
// The same command on the same folder goes on from latest, and a run that was
// killed anywhere and resumed ends in the same weights, bit for bit, as one
// that was not.
package trainers

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/scavenge/scavenge/gpu"
)

// Run holds the options that all training runs share.
type Run struct {
	Dataset string // folder of the token set
	Dir     string // the run's folder

	Device    string        // gpu.Open's name; "": cpu
	Precision gpu.Precision // "": float32

	Seed  int64 // of the sequences' order and of random weights
	Batch int   // sequences a step
	// Shuffle is beside Seed, which a stream's producer has to share.
	Shuffle Shuffle
	Rate    Rate

	// How long each stage trains (progressive distillation has a stage a
	// layer, everything else has one): Steps, or so many whole passes over
	// the token set. Exactly one of them is set.
	Steps  int64
	Epochs int64

	SaveEvery  int64 // steps between checkpoints; 0: 500
	Evaluation Evaluation

	Log     string // LogText or LogJSON, on standard error; "": text
	Metrics string // host:port that serves /metrics and /healthz; "": none

	Stage string // name of the run on the progress bar and in the metrics; "": the command's
	Quiet bool   // no progress and no notices on standard error
}

// The forms of what a run says on standard error.
const (
	LogText = "text" // lines for people, and a progress bar
	LogJSON = "json" // records of log/slog, one a line
)

// Validate says which option no run can have.
func (r Run) Validate() error {
	switch {
	case r.Dataset == "":
		return errors.New("--dataset is missing: the folder of a token set")
	case r.Dir == "":
		return errors.New("--run is missing: the folder for checkpoints and metrics")
	case r.Batch <= 0 || r.Batch > 1<<20:
		return fmt.Errorf("--batch %d: want a positive number of sequences", r.Batch)
	case r.Steps < 0 || r.Epochs < 0:
		return errors.New("--steps and --epochs: want positive numbers")
	case r.Steps > 0 && r.Epochs > 0:
		return errors.New("--steps and --epochs exclude each other")
	case r.Shuffle.Window < 0:
		return fmt.Errorf("--shuffle-buffer %d: want a number of sequences", r.Shuffle.Window)
	case r.Log != "" && r.Log != LogText && r.Log != LogJSON:
		return fmt.Errorf("--log %q: want %s or %s", r.Log, LogText, LogJSON)
	case r.Metrics != "" && !strings.Contains(r.Metrics, ":"):
		return fmt.Errorf("--metrics %q: want host:port", r.Metrics)
	case r.SaveEvery < 0:
		return fmt.Errorf("--save-every %d: want a number of steps", r.SaveEvery)
	}
	if err := checkPrecision(r.Precision); err != nil {
		return err
	}
	if err := r.Evaluation.Validate(); err != nil {
		return err
	}
	return r.Rate.Validate()
}

// checkLength says that nothing ends a run.
func (r Run) checkLength() error {
	if r.Steps == 0 && r.Epochs == 0 {
		return errors.New("how long to train is missing: give --steps or --epochs")
	}
	return nil
}

func checkPrecision(p gpu.Precision) error {
	switch p {
	case "", gpu.Float32, gpu.BFloat16:
		return nil
	}
	return fmt.Errorf("--precision %q: want %s or %s", p, gpu.Float32, gpu.BFloat16)
}

// length is a stage's steps and sequences over a token set of rows training
// sequences. Whole epochs end with a smaller batch rather than leave sequences
// out.
func (r Run) length(rows int64) (steps, sequences int64, err error) {
	if rows <= 0 {
		return 0, 0, fmt.Errorf("--dataset %s: it has no training sequences", r.Dataset)
	}
	batch := int64(r.Batch)
	if r.Steps > 0 {
		if r.Steps > math.MaxInt64/batch {
			return 0, 0, fmt.Errorf("--steps %d: too many", r.Steps)
		}
		return r.Steps, r.Steps * batch, nil
	}
	if r.Epochs > (math.MaxInt64-batch)/rows {
		return 0, 0, fmt.Errorf("--epochs %d: too many", r.Epochs)
	}
	sequences = r.Epochs * rows
	return (sequences + batch - 1) / batch, sequences, nil
}

// Summary is what a training run comes to, its earlier parts included.
type Summary struct {
	Steps      int64
	Tokens     int64   // trained on, over all layers and epochs
	Seconds    float64 // of training, with the waiting for data, without the checkpoints
	Loss       float64 // of the last step
	Checkpoint string  // folder of the last checkpoint
	Already    bool    // there was nothing left to do
}

// String is one line for people.
func (s Summary) String() string {
	state := "trained"
	if s.Already {
		state = "already trained"
	}
	return fmt.Sprintf("%s: %d steps, %d tokens, %.1f s, last loss %.4g: %s", state, s.Steps, s.Tokens, s.Seconds, s.Loss, s.Checkpoint)
}
