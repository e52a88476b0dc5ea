package pipelines

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/apache/beam/sdks/v2/go/pkg/beam"

	"github.com/scavenge/scavenge/schemas/durable"
	"github.com/scavenge/scavenge/schemas/report"
	"github.com/scavenge/scavenge/schemas/tokenset"
	"github.com/scavenge/scavenge/transforms"
)

// Tokenize makes a token set of text files: documents in a random order, each
// ended by <|endoftext|>, one after the other and cut into sequences of exactly
// SeqLen tokens. What of a split does not fill the last sequence is dropped and
// counted. The same documents and options give the same shards to the byte, in
// whatever files, layouts and order the documents came and whatever ran in
// parallel.
//
// A run that was cut short goes on where it was; a whole token set of the same
// inputs and options is left as it is, and what was made of others is refused,
// or replaced where Overwrite says so.
func Tokenize(ctx context.Context, o TokenizeOptions) error {
	if err := o.Validate(); err != nil {
		return err
	}
	o.setDefaults()
	r, err := o.recipe()
	if err != nil {
		return err
	}
	if st, err := os.Stat(r.Dir); err == nil && !st.IsDir() {
		return fmt.Errorf("token set %s: a file of this name is there", o.Output)
	}
	w := &workplace{o: o, r: r}
	if names := o.files(); len(names) > 0 { // before any folder is made
		if w.groups, err = transforms.Plan(names, o.GroupBytes); err != nil {
			return err
		}
	}
	if err := w.open(ctx); err != nil {
		return err
	}
	whole, err := w.prepare()
	if err == nil && !whole {
		err = w.run(ctx)
	}
	return w.close(err)
}

// files is the inputs without standard input.
func (o TokenizeOptions) files() []string {
	return slices.DeleteFunc(slices.Clone(o.Inputs), func(s string) bool { return s == Stdin })
}

// recipe checks the tokenizer and makes paths absolute.
func (o TokenizeOptions) recipe() (r transforms.Recipe, err error) {
	t, err := transforms.LoadTokenizer(o.Tokenizer)
	if err != nil {
		return r, err
	}
	r = transforms.Recipe{Fingerprint: t.Fingerprint(), Vocab: t.Vocab(), SeqLen: o.SeqLen, Seed: o.Seed, Documents: o.Documents, Validation: o.Validation,
		Deduplicate: o.Deduplicate, Sequences: o.Sequences, Subsets: o.Subsets, ShardTokens: o.ShardTokens, RunTokens: o.RunTokens,
		Rules: transforms.Rules{Clean: o.Clean, MaxDocument: o.MaxDocument, Skip: o.OnBad == transforms.OnBadSkip}}
	if r.Tokenizer, err = filepath.Abs(o.Tokenizer); err != nil {
		return r, err
	}
	r.Dir, err = filepath.Abs(o.Output)
	return r, err
}

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

// run runs the pipeline.
func (w *workplace) run(ctx context.Context) error {
	var bar *report.Bar
	if !w.o.Quiet {
		bar = report.NewBar("tokenize", 2*w.r.InputBytes) // each byte is read, and written as tokens
	}
	err := w.o.Runner.Run(ctx, func(s beam.Scope, launch transforms.LaunchID) {
		transforms.Tokenize(s, launch, w.r)
	}, func(bytes, tokens int64) { bar.Set(bytes, tokens, math.NaN()) })
	bar.Done()
	if err != nil {
		return err
	}
	return w.conclude()
}

// finished says that the folder is a whole token set of these inputs and
// options, or what of it is not.
func (w *workplace) finished() (other string, whole bool, err error) {
	st, err := os.Stat(filepath.Join(w.r.Dir, tokenset.ManifestFile))
	if errors.Is(err, os.ErrNotExist) {
		return "", false, nil
	} else if err != nil {
		return "", false, fmt.Errorf("token set: %w", err)
	}
	set, err := tokenset.Open(w.r.Dir)
	if err != nil {
		return "", false, err
	}
	m := set.Manifest
	there := transforms.RecipeOf(m)
	if other = difference(there.Settings(), w.r.Settings()); other != "" {
		return other, false, nil
	}
	if m.Omitted != nil && m.Omitted.Total() > 0 && there.Rules.Skip != w.r.Rules.Skip {
		return "--on-bad-document, " + m.OnBad, false, nil
	}
	if other, err = w.otherInputs(m, st.ModTime().UnixNano()); err != nil || other != "" {
		return other, false, err
	}
	fmt.Fprintf(w.o.Log, "token set %s: already there: %s\n", w.o.Output, summary(set))
	return "", true, nil
}

// difference names the first setting in which two recipes differ.
func difference(have, want []transforms.Setting) string {
	for i, s := range want {
		switch {
		case i >= len(have) || have[i].Name != s.Name:
			return s.Name
		case have[i].Value == s.Value:
		case s.Name == "tokenizer":
			return s.Name
		default:
			return s.Name + ", " + have[i].Value
		}
	}
	return ""
}

// otherInputs names the first input that is not the one that a set was made
// from: of another name or size or, if it was written to since, content.
func (w *workplace) otherInputs(m *tokenset.Manifest, made int64) (string, error) {
	key := func(name string, bytes int64) string { return fmt.Sprint(filepath.Base(name), " of ", bytes, " bytes") }
	var want []transforms.Piece
	for _, g := range w.groups {
		for _, p := range g.Pieces {
			if p.Start == 0 {
				want = append(want, p)
			}
		}
	}
	for i, in := range m.Inputs {
		if have := key(in.Name, in.Bytes); i >= len(want) || have != key(want[i].Name, want[i].Size) {
			return "input: " + have, nil
		}
		if p := want[i]; p.Modified > made {
			sum, err := fileSum(p.Path)
			if err != nil {
				return "", fmt.Errorf("input: %w", err)
			}
			if sum != in.SHA256 {
				return "input: " + in.Name + " was changed", nil
			}
		}
	}
	if len(want) > len(m.Inputs) {
		p := want[len(m.Inputs)]
		return "input: without " + key(p.Name, p.Size), nil
	}
	return "", nil
}

func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// conclude says what was made and what of it may surprise.
func (w *workplace) conclude() error {
	set, err := tokenset.Open(w.r.Dir)
	if err != nil {
		return err
	}
	m := set.Manifest
	fmt.Fprintf(w.o.Log, "token set %s: %s\n", w.o.Output, summary(set))
	if m.Duplicates > 0 {
		fmt.Fprintf(w.o.Log, "%d documents were left out as the equals of others\n", m.Duplicates)
	}
	if m.Omitted != nil && m.Omitted.Total() > 0 {
		fmt.Fprintf(w.o.Log, "warning: %d bad documents were left out (%s); the manifest names them; the first: %s\n", m.Omitted.Total(), kinds(m.Omitted), m.Omitted.Named[0])
	}
	if w.o.Validation > 0 && set.Rows(tokenset.Validation) == 0 {
		fmt.Fprintf(w.o.Log, "warning: the validation split is empty: its documents do not fill one sequence of %d tokens; a larger --validation, or more text, would\n", w.o.SeqLen)
	}
	return nil
}

// kinds lists what was omitted, by kind.
func kinds(o *tokenset.Omitted) string {
	var list []string
	for kind, n := range o.Bad {
		list = append(list, fmt.Sprintf("%s: %d", kind, n))
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

func summary(set *tokenset.Set) string {
	var parts []string
	var dropped int64
	for _, split := range []tokenset.Split{tokenset.Train, tokenset.Validation} {
		c := set.Manifest.Splits[split]
		if c == nil {
			continue
		}
		parts = append(parts, fmt.Sprintf("%s %d sequences of %d tokens from %d documents in %d shards", split, c.Rows, set.Manifest.SeqLen, c.Documents, len(c.Shards)))
		dropped += c.TokensDropped
	}
	return strings.Join(slices.Concat(parts, []string{fmt.Sprintf("%d tokens over", dropped)}), "; ")
}
