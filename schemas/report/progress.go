package report

import (
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// lineEvery is how often a bar prints a line where there is no terminal.
const lineEvery = 10 * time.Second

// Bar shows one stage's progress on stderr: a live line on a terminal, else a
// plain line every ten seconds. Bars of stages that run side by side share the
// screen. A Bar is safe for concurrent use, and a nil *Bar shows nothing.
type Bar struct {
	stage string
	out   io.Writer

	mu     sync.Mutex
	total  int64    // steps, rows or bytes; 0: not known
	live   *mpb.Bar // nil where there is no terminal
	start  time.Time
	first  [2]int64 // done and tokens when this run took over: a resumed stage did not do them now
	begun  bool
	done   int64
	tokens int64
	loss   float64
	lined  time.Time
	closed bool
}

// screen is the terminal's live area, shared by the bars that are open.
var screen struct {
	sync.Mutex
	area *mpb.Progress
	open int
}

// NewBar starts showing a stage of total units of work; total 0 is "not known".
func NewBar(stage string, total int64) *Bar {
	return newBar(stage, total, os.Stderr, term.IsTerminal(int(os.Stderr.Fd())))
}

func newBar(stage string, total int64, out io.Writer, live bool) *Bar {
	b := &Bar{stage: stage, total: total, out: out, start: time.Now(), loss: math.NaN()}
	b.lined = b.start
	if !live {
		return b
	}
	screen.Lock()
	defer screen.Unlock()
	if screen.area == nil {
		screen.area = mpb.New(mpb.WithOutput(out), mpb.WithAutoRefresh(), mpb.WithWidth(24), mpb.PopCompletedMode())
	}
	screen.open++
	// A bar made with a total ends by itself when it reaches that one, and this
	// one may grow: it ends by Done alone.
	b.live = screen.area.New(0, mpb.BarStyle(),
		mpb.PrependDecorators(decor.Name(fmt.Sprintf("%-28s", stage)), decor.NewPercentage("%d", decor.WC{W: 5})),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.detail(time.Now())
		})))
	b.live.SetTotal(total, false)
	return b
}

// Grow tells that there is more to do than was known: total in all.
func (b *Bar) Grow(total int64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.total = total
	live := b.live
	b.mu.Unlock()
	if live != nil {
		live.SetTotal(total, false)
	}
}

// Set tells how much is done: units of the total, tokens in all, and the last
// loss (NaN where the stage has none).
func (b *Bar) Set(done, tokens int64, loss float64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	now := time.Now()
	if !b.begun {
		b.begun, b.first = true, [2]int64{done, tokens}
	}
	b.done, b.tokens, b.loss = done, tokens, loss
	line := b.live == nil && !b.closed && now.Sub(b.lined) >= lineEvery
	if line {
		b.lined = now
		b.line(now, "")
	}
	live := b.live
	b.mu.Unlock()
	if live != nil { // outside the lock: the painter's decorator takes it
		live.SetCurrent(done)
	}
}

// Done takes the bar off the live area and leaves one line that sums it up.
func (b *Bar) Done() {
	if b == nil {
		return
	}
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return
	}
	b.closed = true
	live, total := b.live, b.total
	whole := b.done >= total
	if live == nil {
		end := ", stopped"
		switch {
		case b.total == 0: // nobody knows
			end = ""
		case whole:
			end = ", finished"
		}
		b.line(time.Now(), end)
	}
	b.mu.Unlock()
	if live == nil {
		return
	}
	if whole {
		live.SetTotal(max(total, 1), true)
	} else {
		live.Abort(false)
	}
	live.Wait()
	screen.Lock()
	defer screen.Unlock()
	if screen.open--; screen.open == 0 {
		screen.area.Wait()
		screen.area = nil
	}
}

// line prints a plain progress line; b.mu is held.
func (b *Bar) line(now time.Time, end string) {
	share := ""
	if b.total > 0 {
		share = fmt.Sprintf(" %3d%%", min(100, 100*b.done/b.total)) // a total may be an estimate
	}
	fmt.Fprintf(b.out, "%s:%s %s%s\n", b.stage, share, b.detail(now), end)
}

// detail is what stands behind the bar: speed, loss, time left (or taken); b.mu is held.
func (b *Bar) detail(now time.Time) string {
	took := now.Sub(b.start)
	s := ""
	if n := b.tokens - b.first[1]; n > 0 && took > 0 {
		s += fmt.Sprintf("%s tokens/s ", Count(float64(n)/took.Seconds()))
	}
	if !math.IsNaN(b.loss) {
		s += fmt.Sprintf("loss %.4g ", b.loss)
	}
	if n := b.done - b.first[0]; !b.closed && n > 0 && b.total > b.done {
		left := time.Duration(float64(took) / float64(n) * float64(b.total-b.done))
		return s + left.Round(time.Second).String() + " left"
	}
	return s + "in " + took.Round(time.Second/10).String()
}

// Count writes a number with three figures and a metric letter: 1.23M.
func Count(n float64) string {
	for _, u := range []struct {
		size   float64
		letter string
	}{{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if n >= u.size {
			return fmt.Sprintf("%.3g%s", n/u.size, u.letter)
		}
	}
	return fmt.Sprintf("%.3g", n)
}
