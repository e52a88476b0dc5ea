package trainers

import (
	"errors"
	"fmt"

	"github.com/scavenge/scavenge/schemas/dtype"
)

// The ways through the layers.
const (
	Progressive = "progressive" // layer after layer, those below frozen
	Joint       = "joint"       // all layers at once
)

// DistillOptions are those of Distill.
type DistillOptions struct {
	Run
	StudentOptions
	Teacher  string // checkpoint
	Schedule string // Progressive or Joint; "": Progressive

	Feed        // Source: FromStream, FromReplay or FromInline; "": FromStream
	Type string // inline: what targets are rounded to, as dtype.Parse has it; "": float16

	// Follow trains on records as they come, epoch after epoch, until the
	// producer ends the stream. The token set may be a growing one then. Each
	// layer goes on where the one before it stopped. A stream's end is that of a
	// run whose layers nothing else ends; otherwise it is read again.
	Follow bool
	From   string // FromEarliest or FromLatest: where a run that follows begins; "": FromEarliest
	// Advance may end a layer before its Steps or Epochs do, which a run that
	// follows need not have.
	Advance Advance
}

// Where a run that follows a stream begins.
const (
	FromEarliest = "earliest" // with the first sequence that the topics hold
	FromLatest   = "latest"   // with the next one that comes
)

// Validate says which option no distillation can have.
func (o DistillOptions) Validate() error {
	o.setSource()
	if err := o.Run.Validate(); err != nil {
		return err
	}
	if !o.Follow {
		if err := o.checkLength(); err != nil {
			return err
		}
	}
	if err := o.StudentOptions.Validate(); err != nil {
		return err
	}
	if o.Teacher == "" {
		return errors.New("--teacher is missing: the folder of a checkpoint")
	}
	if o.Schedule != "" && o.Schedule != Progressive && o.Schedule != Joint {
		return fmt.Errorf("--schedule %q: want %s or %s", o.Schedule, Progressive, Joint)
	}
	if err := o.Advance.Validate(o.Evaluation.Every); err != nil {
		return err
	}
	if err := o.validateFollow(); err != nil {
		return err
	}
	switch o.Source {
	case FromInline:
		_, err := dtype.Parse(o.dtype())
		return err
	case FromStream, FromReplay:
	default:
		return fmt.Errorf("--source %q: want %s, %s or %s", o.Source, FromStream, FromReplay, FromInline)
	}
	return o.Feed.Validate()
}

func (o DistillOptions) validateFollow() error {
	switch {
	case !o.Follow && o.From != "":
		return errors.New("--from is for --follow")
	case !o.Follow:
		return nil
	case o.From != "" && o.From != FromEarliest && o.From != FromLatest:
		return fmt.Errorf("--from %q: want %s or %s", o.From, FromEarliest, FromLatest)
	case o.Source != FromStream:
		return fmt.Errorf("--follow: want --source %s, not %s", FromStream, o.Source)
	case o.Epochs > 0:
		return errors.New("--follow and --epochs exclude each other: a stream that is followed has no known length")
	case o.schedule() == Progressive && o.Steps == 0 && o.Advance.Rule == "":
		return errors.New("--follow: when to move on to the next layer is missing: give --advance tokens, --advance loss-plateau or --steps-per-layer")
	}
	return nil
}

func (o *DistillOptions) setSource() {
	if o.Source == "" {
		o.Source = FromStream
	}
}

func (o DistillOptions) dtype() string {
	if o.Type == "" {
		return "float16"
	}
	return o.Type
}

func (o DistillOptions) schedule() string {
	if o.Schedule == "" {
		return Progressive
	}
	return o.Schedule
}
