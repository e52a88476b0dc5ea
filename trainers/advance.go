package trainers

import (
	"errors"
	"fmt"
	"math"

	"github.com/scavenge/scavenge/schemas/checkpoint"
)

// The rules by which a run moves on from a layer whose steps are not counted
// beforehand.
const (
	AdvanceTokens  = "tokens"       // after so many tokens
	AdvancePlateau = "loss-plateau" // when the held-out loss no longer falls
)

// Advance says when enough has been trained on a layer (or, jointly, on all).
type Advance struct {
	Rule   string // AdvanceTokens or AdvancePlateau; "": none
	Tokens int64  // AdvanceTokens: to train on
	// AdvancePlateau: an evaluation that is better than the best one before by
	// less than this share of it counts as none, and Patience such in a row are
	// enough. 0: a hundredth, and three.
	Margin   float64
	Patience int
}

// Defaults of Advance.
const (
	defaultMargin   = 0.01
	defaultPlateaus = 3
)

// Validate says which option no rule can have; every is the steps between
// evaluations.
func (a Advance) Validate(every int64) error {
	switch {
	case a.Rule != "" && a.Rule != AdvanceTokens && a.Rule != AdvancePlateau:
		return fmt.Errorf("--advance %q: want %s or %s", a.Rule, AdvanceTokens, AdvancePlateau)
	case a.Rule == AdvanceTokens && a.Tokens <= 0:
		return errors.New("--advance tokens: --advance-tokens is missing: how many tokens to train each layer on")
	case a.Rule != AdvanceTokens && a.Tokens != 0:
		return errors.New("--advance-tokens is for --advance tokens")
	case a.Rule == AdvancePlateau && every == 0:
		return errors.New("--advance loss-plateau: --eval-every is missing: how many steps to train between evaluations on held-out sequences")
	case a.Rule != AdvancePlateau && (a.Margin != 0 || a.Patience != 0):
		return errors.New("--plateau and --patience are for --advance loss-plateau")
	case !(a.Margin >= 0 && a.Margin < 1):
		return fmt.Errorf("--plateau %g: want a share from 0 to 1", a.Margin)
	case a.Patience < 0:
		return fmt.Errorf("--patience %d: want a number of evaluations", a.Patience)
	}
	return nil
}

func (a Advance) margin() float64 {
	if a.Margin == 0 {
		return defaultMargin
	}
	return a.Margin
}

func (a Advance) patience() int {
	if a.Patience == 0 {
		return defaultPlateaus
	}
	return a.Patience
}

// hear adds an evaluation to what is known of a layer.
func (a Advance) hear(before *checkpoint.HeldOut, step int64, loss float64) *checkpoint.HeldOut {
	now := checkpoint.HeldOut{Step: step, Loss: loss, Best: math.Inf(1)}
	if before != nil {
		now.Best, now.Waited = before.Best, before.Waited
	}
	if before == nil || loss < now.Best*(1-a.margin()) {
		now.Best, now.Waited = loss, 0
	} else {
		now.Waited++
	}
	return &now
}

// enough tells whether a layer has been trained enough.
func (a Advance) enough(t checkpoint.Trainer) bool {
	switch a.Rule {
	case AdvanceTokens:
		return t.LayerTokens >= a.Tokens
	case AdvancePlateau:
		return t.HeldOut != nil && t.HeldOut.Waited >= a.patience()
	}
	return false
}

// settings are what a rule adds to those of a run.
func (a Advance) settings(s settings, evaluation Evaluation) {
	s["advance"] = a.Rule
	switch a.Rule {
	case AdvanceTokens:
		s["advance-tokens"] = a.Tokens
	case AdvancePlateau:
		s["plateau"], s["patience"] = a.margin(), a.patience()
		s["eval-every"], s["eval-sequences"] = evaluation.Every, evaluation.sequences()
	}
}
