package trainers

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/durable"
)

// settings are the options that a run's result depends on, by flag name. A
// run goes on only with the settings that it was begun with.
type settings map[string]any

// shared are the settings of every run.
func (r Run) shared() settings {
	precision := r.Precision
	if precision == "" {
		precision = "float32"
	}
	return settings{"seed": r.Seed, "batch": r.Batch, "rate": r.Rate.peak(), "min-rate": r.Rate.Floor,
		"warmup": r.Rate.Warmup, "decay-steps": r.Rate.Decay, "steps": r.Steps, "epochs": r.Epochs, "precision": precision,
		"shuffle-buffer": r.Shuffle.Window, "shuffle-seed": r.Shuffle.Seed}
}

// folder is a run's folder, held by one process at a time.
type folder struct {
	root  string
	dir   string             // newest checkpoint; "": none yet
	fresh checkpoint.Trainer // of a run that begins
	close func() error       // lets other processes have it
}

// openFolder makes or opens a run's folder. fresh says what the run is; a
// folder that holds another kind of run is refused.
func openFolder(root string, fresh checkpoint.Trainer, s settings) (*folder, error) {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, fmt.Errorf("--run: %w", err)
	}
	unlock, err := durable.Lock(filepath.Join(root, "lock"))
	if errors.Is(err, durable.ErrLocked) {
		return nil, fmt.Errorf("--run %s: another trainer is at work in this folder", root)
	} else if err != nil {
		return nil, fmt.Errorf("--run: %w", err)
	}
	f := &folder{root: root, fresh: fresh, close: unlock}
	if f.fresh.Settings, err = json.Marshal(s); err == nil {
		f.dir, _, err = checkpoint.Latest(root)
	}
	if err != nil {
		unlock()
		return nil, fmt.Errorf("--run: %w", err)
	}
	return f, nil
}

// resume loads the newest checkpoint and compares what it was made with.
func (f *folder) resume() (*checkpoint.Model, *checkpoint.Optimizer, checkpoint.Trainer, error) {
	m, o, t, err := checkpoint.LoadTraining(f.dir)
	if err != nil {
		return nil, nil, checkpoint.Trainer{}, fmt.Errorf("--run: %w", err)
	}
	if err := f.same(t); err != nil {
		return nil, nil, checkpoint.Trainer{}, fmt.Errorf("%s cannot go on: %w; take the old value or another --run", f.root, err)
	}
	return m, o, *t, nil
}

// same says which settings differ from that of a checkpoint.
func (f *folder) same(t *checkpoint.Trainer) error {
	if t.Kind != f.fresh.Kind {
		return fmt.Errorf("it is a run of %s, not of %s", t.Kind, f.fresh.Kind)
	}
	if t.TokenSet != f.fresh.TokenSet {
		return fmt.Errorf("--dataset is another token set than at its start (%.12s, was %.12s)", f.fresh.TokenSet, t.TokenSet)
	}
	if t.Teacher != f.fresh.Teacher {
		return fmt.Errorf("--teacher is another model than at its start (%.12s, was %.12s)", f.fresh.Teacher, t.Teacher)
	}
	var now, then settings
	if err := json.Unmarshal(f.fresh.Settings, &now); err != nil {
		return err
	}
	if err := json.Unmarshal(t.Settings, &then); err != nil {
		return fmt.Errorf("%s: settings: %w", f.dir, err)
	}
	names := make([]string, 0, len(now))
	for name := range now {
		names = append(names, name)
	}
	sort.Strings(names)
	var changed []string
	for _, name := range names {
		// a setting that only one of the two has does not bear on both
		if was, ok := then[name]; ok && was != now[name] {
			changed = append(changed, fmt.Sprintf("--%s is %v, was %v at its start", name, now[name], was))
		}
	}
	if len(changed) > 0 {
		return errors.New(strings.Join(changed, ", "))
	}
	return nil
}

// trainerName is the name of a run's trainer among those of its topics: that of
// its folder, and a random part that the folder keeps.
func trainerName(dir string) (string, error) {
	file := filepath.Join(dir, "trainer-id")
	id, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		id = []byte(rand.Text()[:8])
		err = durable.WriteFile(file, func(w io.Writer) error {
			_, err := w.Write(id)
			return err
		})
	}
	if err != nil {
		return "", fmt.Errorf("--run: %w", err)
	}
	path, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("--run: %w", err)
	}
	return filepath.Base(path) + "-" + strings.TrimSpace(string(id)), nil
}
