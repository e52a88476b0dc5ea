package trainers

import (
	"fmt"
	"math"
)

// Schedule is a learning rate over the steps of a stage: linear from zero to
// Peak over Warmup steps, then half a cosine down to Floor at step Decay, and
// Floor from there on.
type Schedule struct {
	Peak, Floor   float64
	Warmup, Decay int64 // steps
}

// At is the rate of a step, counted from 1.
func (s Schedule) At(step int64) float64 {
	if step <= s.Warmup {
		return s.Peak * float64(step) / float64(s.Warmup)
	}
	if step >= s.Decay {
		return s.Floor
	}
	share := float64(step-s.Warmup) / float64(max(1, s.Decay-s.Warmup))
	return s.Floor + (s.Peak-s.Floor)*0.5*(1+math.Cos(math.Pi*share))
}

// Rate holds the options of a schedule; what is zero takes its default.
type Rate struct {
	Peak   float64 // highest rate; 0: 1e-3
	Floor  float64 // lowest rate after the warm-up; 0: a tenth of Peak
	Warmup int64   // steps up to Peak; 0: 2.5% of the stage's (pre-training: 300)
	Decay  int64   // step at which Floor is reached; 0: the stage's last (pre-training: 2000; where none is the last: never)
}

// Validate says which option no schedule can have.
func (r Rate) Validate() error {
	if r.Peak < 0 || math.IsNaN(r.Peak) || math.IsInf(r.Peak, 0) {
		return fmt.Errorf("--rate %g: want a positive number", r.Peak)
	}
	if r.Floor < 0 || math.IsNaN(r.Floor) || r.Floor > r.peak() {
		return fmt.Errorf("--min-rate %g: want a number from 0 to the peak rate %g", r.Floor, r.peak())
	}
	if r.Warmup < 0 {
		return fmt.Errorf("--warmup %d: want a number of steps", r.Warmup)
	}
	if r.Decay < 0 || r.Decay > 0 && r.Decay < r.Warmup {
		return fmt.Errorf("--decay-steps %d: want a number of steps from the warm-up's %d", r.Decay, r.Warmup)
	}
	return nil
}

func (r Rate) peak() float64 {
	if r.Peak == 0 {
		return 1e-3
	}
	return r.Peak
}

func (r Rate) floor() float64 {
	if r.Floor == 0 {
		return r.peak() / 10
	}
	return r.Floor
}

// overSteps is the schedule of distillation and fine-tuning: warm-up over 2.5%
// of the steps (at least one), cosine over all of them.
func (r Rate) overSteps(steps int64) Schedule {
	s := Schedule{Peak: r.peak(), Floor: r.floor(), Warmup: r.Warmup, Decay: r.Decay}
	if s.Decay == 0 {
		s.Decay = steps
	}
	if s.Warmup == 0 {
		s.Warmup = max(1, int64(math.RoundToEven(float64(s.Decay)*0.025)))
	}
	return s
}

// open is the schedule of a stage whose steps nobody knows: warm-up over 100
// steps, and the peak from there on, unless Decay says how long to fall.
func (r Rate) open() Schedule {
	s := Schedule{Peak: r.peak(), Floor: r.floor(), Warmup: r.Warmup, Decay: r.Decay}
	if s.Warmup == 0 {
		s.Warmup = 100
	}
	if s.Decay == 0 {
		s.Floor = s.Peak
	}
	return s
}

// fromScratch is the schedule of pre-training, whose length does not depend on
// the run's: warm-up over 300 steps, cosine to step 2000.
func (r Rate) fromScratch() Schedule {
	if r.Decay == 0 {
		r.Decay = max(2000, r.Warmup)
	}
	if r.Warmup == 0 {
		r.Warmup = min(300, r.Decay)
	}
	return Schedule{Peak: r.peak(), Floor: r.floor(), Warmup: r.Warmup, Decay: r.Decay}
}
