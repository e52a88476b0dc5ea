package pipelines

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/scavenge/scavenge/schemas/durable"
	"github.com/scavenge/scavenge/schemas/tokenset"
	"github.com/scavenge/scavenge/transforms"
)

// A workplace is a token set's folder while it is worked on by this process.
type workplace struct {
	o      TokenizeOptions
	r      transforms.Recipe
	groups []transforms.Group
	unlock func() error
}

func (w *workplace) work(name string) string {
	return filepath.Join(w.r.Dir, transforms.WorkFolder, name)
}

// open takes the folder for this process and reads standard input into it: a
// stream comes once, and may have to be read twice.
func (w *workplace) open(ctx context.Context) (err error) {
	if err := os.MkdirAll(w.work(""), 0o777); err != nil {
		return fmt.Errorf("token set: %w", err)
	}
	if w.unlock, err = durable.Lock(w.work("lock")); err != nil {
		return fmt.Errorf("token set: %w", err)
	}
	for _, dir := range []string{w.r.Dir, w.work("")} {
		if err := durable.Sweep(dir); err != nil {
			return w.close(fmt.Errorf("token set %s: %w", w.o.Output, err))
		}
	}
	if names := w.o.files(); len(names) < len(w.o.Inputs) {
		if err := w.spool(ctx); err != nil {
			return w.close(fmt.Errorf("standard input: %w", err))
		}
		if w.groups, err = transforms.Plan(append(names, w.work("stdin")), w.o.GroupBytes); err != nil {
			return w.close(err)
		}
	}
	w.r.Groups = len(w.groups)
	for i := range w.groups {
		for j := range w.groups[i].Pieces {
			if p := &w.groups[i].Pieces[j]; p.Path == w.work("stdin") {
				p.Name = "standard input"
			}
		}
		w.r.InputBytes += w.groups[i].Bytes()
	}
	return nil
}

// spool copies standard input to the work folder. What is there already stays
// if it is the same.
func (w *workplace) spool(ctx context.Context) error {
	path := w.work("stdin")
	h, before := sha256.New(), sha256.New()
	f, err := durable.Create(path)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.MultiWriter(f, h), &interruptible{ctx, w.o.Stdin}); err != nil {
		f.Abort()
		if ctx.Err() != nil {
			return ErrInterrupted
		}
		return err
	}
	if old, err := os.Open(path); err == nil {
		_, err = io.Copy(before, old)
		if old.Close(); err == nil && slices.Equal(h.Sum(nil), before.Sum(nil)) {
			f.Abort()
			return nil
		}
	}
	return f.Commit()
}

type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (r *interruptible) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}

// close lets go of the folder. After an error nothing is left of a run that
// had not got anywhere.
func (w *workplace) close(err error) error {
	left, _ := filepath.Glob(filepath.Join(strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(w.work("")), "scanned-*"))
	if err == nil || len(left) == 0 {
		if e := os.RemoveAll(w.work("")); err == nil && e != nil {
			err = fmt.Errorf("token set %s: %w", w.o.Output, e)
		}
		os.Remove(w.r.Dir) // only a folder that nothing came into
	}
	if w.unlock != nil {
		w.unlock()
	}
	return err
}

// prepare looks at what is there and says whether that is all: it refuses or
// removes what other inputs or options made, and writes the plan down.
func (w *workplace) prepare() (whole bool, err error) {
	other, whole, err := w.finished()
	if err != nil || whole {
		return whole, err
	}
	resumes := false
	if other == "" {
		if other, resumes, err = w.unfinished(); err != nil {
			return false, err
		}
	}
	if other != "" && !w.o.Overwrite {
		return false, fmt.Errorf("token set %s: already there, with other %s: name another --output, or --overwrite it", w.o.Output, other)
	}
	if resumes {
		return false, w.sweepRuns()
	}
	if err := os.Remove(filepath.Join(w.r.Dir, tokenset.ManifestFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("token set: %w", err)
	}
	if err := w.r.RemoveShards(); err != nil {
		return false, err
	}
	for _, pattern := range []string{"plan.json", "scanned-*", "gathered.json", "outline.json", "group-*", "run-*"} {
		if err := w.remove(pattern, nil); err != nil {
			return false, err
		}
	}
	if err := w.r.SaveGroups(w.groups); err != nil {
		return false, err
	}
	err = durable.WriteFile(w.work("plan.json"), func(out io.Writer) error { return json.NewEncoder(out).Encode(w.plan()) })
	if err != nil {
		return false, fmt.Errorf("token set: %w", err)
	}
	return false, nil
}

// plan is what an unfinished run is known by.
type plan struct {
	Settings []transforms.Setting
	Groups   int
}

func (w *workplace) plan() plan { return plan{w.r.Settings(), len(w.groups)} }

// unfinished says what of an unfinished run in the folder is not as this one,
// or that this one goes on with it.
func (w *workplace) unfinished() (other string, resumes bool, err error) {
	data, err := os.ReadFile(w.work("plan.json"))
	if errors.Is(err, os.ErrNotExist) {
		return "", false, nil
	} else if err != nil {
		return "", false, fmt.Errorf("token set: %w", err)
	}
	var p plan
	if err := json.Unmarshal(data, &p); err != nil {
		return "", false, fmt.Errorf("token set: %s: %w", w.work("plan.json"), err)
	}
	if other = difference(p.Settings, w.r.Settings()); other != "" {
		return other, false, nil
	}
	groups, err := w.r.LoadGroups(p.Groups)
	if err != nil {
		return "", false, err
	}
	have := map[string]transforms.Piece{}
	for _, g := range groups {
		for _, p := range g.Pieces {
			have[fmt.Sprint(p.Path, p.Start)] = p
		}
	}
	for _, g := range w.groups {
		for _, p := range g.Pieces {
			key := fmt.Sprint(p.Path, p.Start)
			h, ok := have[key]
			h.Name, p.Name = "", ""
			if !ok || h != p {
				return "input: " + p.Path + " is new or was changed", false, nil
			}
			delete(have, key)
		}
	}
	for _, p := range have {
		return "input: without " + p.Path, false, nil
	}
	return "", true, nil
}

// sweepRuns removes the runs that no finished group counts.
func (w *workplace) sweepRuns() error {
	keep := map[string]bool{}
	for i := range w.groups {
		for _, name := range w.r.RunsOf(i) {
			keep[name] = true
		}
	}
	return w.remove("run-*", keep)
}

func (w *workplace) remove(pattern string, keep map[string]bool) error {
	list, err := os.ReadDir(w.work(""))
	if err != nil {
		return fmt.Errorf("token set: %w", err)
	}
	for _, e := range list {
		if ok, _ := filepath.Match(pattern, e.Name()); ok && !keep[e.Name()] {
			if err := os.Remove(w.work(e.Name())); err != nil {
				return fmt.Errorf("token set: %w", err)
			}
		}
	}
	return nil
}
