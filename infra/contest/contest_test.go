package contest

import (
	"math"
	"strings"
	"testing"
)

func TestMiddle(t *testing.T) {
	for _, c := range []struct {
		list []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{9, 1}, 5}, {[]float64{7, 100, 1}, 7}, {[]float64{4, 1, 3, 100}, 3.5}} {
		if got := middle(c.list); got != c.want {
			t.Errorf("%v: %g, want %g", c.list, got, c.want)
		}
	}
}

// A round that was slow for everybody does not change who is faster.
func TestRatioIsTakenRoundByRound(t *testing.T) {
	first := []cost{{1, 2}, {10, 2}, {1, 2}}
	other := []cost{{2, 1}, {20, 1}, {2.5, 1}}
	if got := ratio(first, other, func(c cost) float64 { return c.wall }); math.Abs(got-0.5) > 1e-12 {
		t.Errorf("ratio %g, want 0.5", got)
	}
	text := table(4e9, []Contestant{{Name: "a"}, {Name: "b"}}, [][]cost{first, other})
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != 3 {
		t.Fatal(text)
	}
	if got := strings.Join(strings.Fields(lines[2]), " "); got != "b 1600 0.50 0.25 2.00" {
		t.Errorf("line %q", got)
	}
}
