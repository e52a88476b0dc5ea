package trainers

import (
	"math"
	"strings"
	"testing"
)

// The rates are those of lr_at in the script that makes the golden vectors.
func TestRateOverStepsIsTheGoldenSchedule(t *testing.T) {
	for _, c := range []struct {
		steps, step int64
		want        float64
	}{
		{1, 1, 0.001},
		{10, 1, 0.001}, {10, 2, 0.0009728616793536587}, {10, 5, 0.0006281416799501187}, {10, 9, 0.00012713832064634127}, {10, 10, 0.0001},
		{100, 1, 0.0005}, {100, 2, 0.001}, {100, 3, 0.0009997687972903096}, {100, 50, 0.0005644232099072449}, {100, 100, 0.0001},
		{900, 1, 4.545454545454546e-05}, {900, 3, 0.00013636363636363637}, {900, 450, 0.0005677071398787525}, {900, 899, 0.00010000288066508188},
		{5000, 2, 1.6e-05}, {5000, 1666, 0.0007957560045639248}, {5000, 4999, 0.00010000009344003847},
	} {
		if got := (Rate{}).overSteps(c.steps).At(c.step); math.Abs(got-c.want) > 1e-15 {
			t.Errorf("step %d of %d: rate %.17g, want %.17g", c.step, c.steps, got, c.want)
		}
	}
}

func TestPretrainingRateIsConstantAfterItsDecay(t *testing.T) {
	s := Rate{Peak: 1e-3}.fromScratch()
	for _, c := range []struct {
		step int64
		want float64
	}{{150, 0.0005}, {300, 0.001}, {1150, 0.00055}, {2000, 0.0001}, {2001, 0.0001}, {50000, 0.0001}} {
		if got := s.At(c.step); math.Abs(got-c.want) > 1e-15 {
			t.Errorf("step %d: rate %.17g, want %g", c.step, got, c.want)
		}
	}
	if s := (Rate{Peak: 2, Floor: 1, Warmup: 4, Decay: 10}).fromScratch(); s.At(2) != 1 || s.At(4) != 2 || s.At(7) != 1.5 || s.At(11) != 1 {
		t.Errorf("scaled schedule: %g %g %g %g, want 1 2 1.5 1", s.At(2), s.At(4), s.At(7), s.At(11))
	}
}

func TestImpossibleRatesAreRefusedByFlag(t *testing.T) {
	for want, r := range map[string]Rate{
		"--rate":        {Peak: math.NaN()},
		"--rate -1":     {Peak: -1},
		"--rate +Inf":   {Peak: math.Inf(1)},
		"--min-rate":    {Peak: 1e-3, Floor: 1e-2},
		"--min-rate Na": {Floor: math.NaN()},
		"--warmup":      {Warmup: -1},
		"--decay-steps": {Warmup: 10, Decay: 5},
	} {
		if err := r.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want an error with %s", r, err, want)
		}
	}
	if err := (Rate{}).Validate(); err != nil {
		t.Error(err)
	}
}
