package pipelines

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path"
	"slices"

	"github.com/scavenge/scavenge/schemas/store"
	"github.com/scavenge/scavenge/schemas/tokenset"
	"github.com/scavenge/scavenge/transforms"
)

// A workplace is a token set's folder while it is worked on by this process.
type workplace struct {
	o      TokenizeOptions
	r      transforms.Recipe
	inputs *transforms.Listing
	unlock func() error
}

func (w *workplace) work(name string) string {
	return store.Join(w.r.Dir, transforms.WorkFolder, name)
}

// lock is the file that the folder's lock is. A lease must outlast the work
// folder.
func (w *workplace) lock() string {
	if store.Remote(w.r.Dir) {
		return store.Join(w.r.Dir, ".lock")
	}
	return w.work("lock")
}

// open takes the folder for this process, for as long as the context that it
// returns lasts, and reads standard input into it: a stream comes once, and may
// have to be read twice.
func (w *workplace) open(ctx context.Context) (held context.Context, err error) {
	if err := store.MkdirAll(w.work("")); err != nil {
		return nil, fmt.Errorf("token set: %w", err)
	}
	notice := func(s string) { fmt.Fprintf(w.o.Log, "token set %s: %s\n", w.o.Output, s) }
	if held, w.unlock, err = store.Lock(ctx, w.lock(), notice); err != nil {
		return nil, fmt.Errorf("token set: %w", err)
	}
	for _, dir := range []string{w.r.Dir, w.work("")} {
		if err := store.Sweep(held, dir); err != nil {
			return nil, w.close(fmt.Errorf("token set %s: %w", w.o.Output, err))
		}
	}
	if len(w.o.files()) < len(w.o.Inputs) {
		err := w.spool(held)
		if err == nil {
			err = w.inputs.AddFile(held, w.work("stdin"), "standard input")
		}
		if err != nil {
			return nil, w.close(fmt.Errorf("standard input: %w", err))
		}
	}
	for g, err := range w.inputs.Groups() {
		if err != nil {
			return nil, w.close(err)
		}
		w.r.Groups++
		w.r.InputBytes += g.Bytes()
	}
	if w.r.Groups == 0 {
		return nil, w.close(transforms.ErrNoInput)
	}
	return held, nil
}

// spool copies standard input to the work folder. What is there already stays
// if it is the same.
func (w *workplace) spool(ctx context.Context) error {
	path := w.work("stdin")
	h, before := sha256.New(), sha256.New()
	f, err := store.Create(ctx, path)
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
	if old, err := store.Open(ctx, path); err == nil {
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
	ctx := context.Background()
	keep := false
	if err != nil {
		for i, e := range store.List(ctx, w.work("")) {
			if keep = keep || e != nil || matches("scanned-*", i); keep {
				break
			}
		}
	}
	if !keep {
		if e := store.RemoveAll(ctx, w.work("")); err == nil && e != nil {
			err = fmt.Errorf("token set %s: %w", w.o.Output, e)
		}
		if !store.Remote(w.r.Dir) {
			os.Remove(w.r.Dir) // only a folder that nothing came into
		}
	}
	if w.unlock != nil {
		w.unlock()
	}
	return err
}

// matches says whether a file's name matches a pattern.
func matches(pattern string, i store.Info) bool {
	ok, _ := path.Match(pattern, store.Base(i.Path))
	return ok
}

// prepare looks at what is there and says whether that is all: it refuses or
// removes what other inputs or options made, and writes the plan down.
func (w *workplace) prepare(ctx context.Context) (whole bool, err error) {
	other, whole, err := w.finished(ctx)
	if err != nil || whole {
		return whole, err
	}
	resumes := false
	if other == "" {
		if other, resumes, err = w.unfinished(ctx); err != nil {
			return false, err
		}
	}
	if other != "" && !w.o.Overwrite {
		return false, fmt.Errorf("token set %s: already there, with other %s: name another --output, or --overwrite it", w.o.Output, other)
	}
	if resumes {
		return false, w.sweepRuns(ctx)
	}
	if err := store.Remove(ctx, store.Join(w.r.Dir, tokenset.ManifestFile)); err != nil {
		return false, fmt.Errorf("token set: %w", err)
	}
	if err := w.r.RemoveShards(ctx); err != nil {
		return false, err
	}
	if err := w.remove(ctx, []string{"plan.json", "scanned-*", "gathered.json", "outline.json", "group-*", "run-*"}, nil); err != nil {
		return false, err
	}
	if err := w.r.SaveGroups(ctx, w.inputs.Groups()); err != nil {
		return false, err
	}
	err = store.WriteFile(ctx, w.work("plan.json"), func(out io.Writer) error { return json.NewEncoder(out).Encode(w.plan()) })
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

func (w *workplace) plan() plan { return plan{w.r.Settings(), w.r.Groups} }

// unfinished says what of an unfinished run in the folder is not as this one,
// or that this one goes on with it.
func (w *workplace) unfinished(ctx context.Context) (other string, resumes bool, err error) {
	data, err := store.ReadFile(ctx, w.work("plan.json"))
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
	other, err = otherPieces(transforms.Pieces(w.r.SavedGroups(ctx, p.Groups)), transforms.Pieces(w.inputs.Groups()))
	return other, other == "" && err == nil, err
}

// otherPieces names the first file of which two plans, sorted by path, do not
// have the same pieces.
func otherPieces(have, want iter.Seq2[transforms.Piece, error]) (other string, err error) {
	next, stop := iter.Pull2(have)
	defer stop()
	for p, err := range want {
		if err != nil {
			return "", err
		}
		h, err, ok := next()
		if err != nil {
			return "", err
		}
		if ok && h.Path < p.Path {
			return "input: without " + h.Path, nil
		}
		h.Name, p.Name = "", ""
		if !ok || h != p {
			return "input: " + p.Path + " is new or was changed", nil
		}
	}
	h, err, ok := next()
	if ok && err == nil {
		other = "input: without " + h.Path
	}
	return other, err
}

// sweepRuns removes the runs that no finished group counts.
func (w *workplace) sweepRuns(ctx context.Context) error {
	keep := map[string]bool{}
	for i := range w.r.Groups {
		for _, name := range w.r.RunsOf(ctx, i) {
			keep[name] = true
		}
	}
	return w.remove(ctx, []string{"run-*"}, keep)
}

// remove removes from the work folder what matches one of the patterns.
func (w *workplace) remove(ctx context.Context, patterns []string, keep map[string]bool) error {
	for i, err := range store.List(ctx, w.work("")) {
		for _, pattern := range patterns {
			if err == nil && matches(pattern, i) && !keep[store.Base(i.Path)] {
				err = store.Remove(ctx, i.Path)
			}
		}
		if err != nil {
			return fmt.Errorf("token set: %w", err)
		}
	}
	return nil
}
