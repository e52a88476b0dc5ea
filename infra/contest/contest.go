// Package contest compares ways of doing the same work where clocks are noisy.
// Contestants take turns in one process, round after round, so that whatever
// else the machine does meets all of them alike; figures are medians over the
// rounds. In come functions; out go MB/s (10⁶ bytes) by the clock, the process's
// processor time a GB, and both in proportion to the first contestant's.
package contest

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Contestant is one way of doing the work.
type Contestant struct {
	Name string
	Run  func() error
}

// cost is what one turn took, in seconds.
type cost struct{ wall, processor float64 }

// Rounds lets each contestant move so many bytes once a round, and reports on a
// benchmark whose iterations are the rounds (-benchtime 9x for nine). A round
// before them does not count. Every other round is in the opposite order.
func Rounds(b *testing.B, bytes int64, contestants ...Contestant) {
	b.Helper()
	costs := make([][]cost, len(contestants))
	round := func(backwards, counts bool) {
		for k := range contestants {
			i := k
			if backwards {
				i = len(contestants) - 1 - k
			}
			c, err := turn(contestants[i].Run)
			if err != nil {
				b.Fatalf("%s: %v", contestants[i].Name, err)
			}
			if counts {
				costs[i] = append(costs[i], c)
			}
		}
	}
	round(false, false)
	for n := 0; b.Loop(); n++ {
		round(n%2 == 1, true)
	}
	b.Log("\n" + table(bytes, contestants, costs))
	b.ReportMetric(0, "ns/op") // a round's time means nothing
	for i, c := range contestants[1:] {
		b.ReportMetric(ratio(costs[0], costs[i+1], func(c cost) float64 { return c.wall }), strings.ReplaceAll(c.Name, " ", "-")+"/"+strings.ReplaceAll(contestants[0].Name, " ", "-"))
	}
}

// turn is what a contestant's work takes. Its garbage of before is not its own.
func turn(run func() error) (cost, error) {
	runtime.GC()
	before, began := processor(), time.Now()
	err := run()
	return cost{time.Since(began).Seconds(), processor() - before}, err
}

// processor is this process's time on processors, in seconds.
func processor() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // it cannot fail for oneself
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// table has a line for each contestant.
func table(bytes int64, contestants []Contestant, costs [][]cost) string {
	var text strings.Builder
	fmt.Fprintf(&text, "%-28s %8s %6s %15s %6s   medians of %d rounds of %d MB\n", "", "MB/s", "ratio", "processor s/GB", "ratio", len(costs[0]), bytes/1e6)
	wall, spent := func(c cost) float64 { return c.wall }, func(c cost) float64 { return c.processor }
	for i, c := range contestants {
		fmt.Fprintf(&text, "%-28s %8.0f %6.2f %15.2f %6.2f\n", c.Name, float64(bytes)/1e6/median(costs[i], wall), ratio(costs[0], costs[i], wall),
			median(costs[i], spent)/(float64(bytes)/1e9), ratio(costs[0], costs[i], spent))
	}
	return text.String()
}

// ratio is how many times as fast as the first a contestant was, as the median
// over the rounds.
func ratio(first, other []cost, of func(cost) float64) float64 {
	list := make([]float64, len(first))
	for i := range list {
		list[i] = of(first[i]) / of(other[i])
	}
	return middle(list)
}

func median(costs []cost, of func(cost) float64) float64 {
	list := make([]float64, len(costs))
	for i, c := range costs {
		list[i] = of(c)
	}
	return middle(list)
}

// middle is the median of a list that is not empty.
func middle(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	n := len(list)
	return (list[(n-1)/2] + list[n/2]) / 2
}
