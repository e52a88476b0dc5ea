package transforms

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/scavenge/scavenge/schemas/tokenset"
)

// place is where a sequence stands: at an index of an epoch's canonical order.
// The index behind an epoch's last sequence is that of the control record which
// ends the epoch.
type place struct{ epoch, index int64 }

func (p place) before(q place) bool {
	return p.epoch < q.epoch || p.epoch == q.epoch && p.index < q.index
}

// OpenCourse opens what is taught from its folder: a token set, which is the same in
// every epoch, or a growing one, of which each part is an epoch. Where it is to be
// followed it has to be a growing one. first is the token set of epoch 0.
func OpenCourse(dir string, follow bool) (course tokenset.Course, first *tokenset.Set, err error) {
	if follow || grows(dir) {
		s, err := tokenset.OpenSeries(dir)
		if err != nil {
			return nil, nil, err
		}
		return s, s.First(), nil
	}
	s, err := tokenset.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	return s, s, nil
}

// grows tells a growing token set's folder: it has parts, and no manifest.
func grows(dir string) bool {
	_, whole := os.Stat(filepath.Join(dir, tokenset.ManifestFile))
	_, part := os.Stat(filepath.Join(dir, tokenset.PartName(0)))
	return errors.Is(whole, os.ErrNotExist) && part == nil
}

// followEvery is how often a growing token set's folder is looked at.
const followEvery = time.Second

// epoch is the token set of an epoch. A teacher that follows waits for it.
func (t *teacher) epoch(ctx context.Context, task *Task, n int64) (*tokenset.Set, error) {
	for tries := 0; ; tries++ {
		set, err := t.course.Epoch(n)
		if !t.Follow || !errors.Is(err, tokenset.ErrNoPart) {
			return set, err
		}
		if tries == 0 && t.worker == 0 { // one for all of them
			task.Say(fmt.Sprintf("waiting for %s (Ctrl-C ends the waiting; the same command without --follow ends the stream)", filepath.Join(t.Dataset, tokenset.PartName(n))))
		}
		timer := time.NewTimer(followEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-timer.C:
		}
	}
}
