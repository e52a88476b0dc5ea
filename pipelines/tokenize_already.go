package pipelines

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/scavenge/scavenge/schemas/store"
	"github.com/scavenge/scavenge/schemas/tokenset"
	"github.com/scavenge/scavenge/transforms"
)

// finished says that the folder is a whole token set of these inputs and
// options, or what of it is not.
func (w *workplace) finished(ctx context.Context) (other string, whole bool, err error) {
	st, err := store.Stat(ctx, store.Join(w.r.Dir, tokenset.ManifestFile))
	if errors.Is(err, fs.ErrNotExist) {
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
	if other, err = w.otherInputs(ctx, m, st.Modified); err != nil || other != "" {
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
// from: of another name or size or, if it was written to since, content. made
// is when the set was.
func (w *workplace) otherInputs(ctx context.Context, m *tokenset.Manifest, made int64) (string, error) {
	if len(m.Inputs) == 1 && m.Inputs[0].Files > 0 {
		return w.otherOfMany(ctx, m.Inputs[0], made)
	}
	key := func(name string, bytes int64) string { return fmt.Sprint(store.Base(name), " of ", bytes, " bytes") }
	i := 0
	for p, err := range transforms.Pieces(w.inputs.Groups()) {
		if err != nil {
			return "", err
		}
		if p.Start > 0 {
			continue
		}
		if i == len(m.Inputs) {
			return "input: without " + key(p.Name, p.Size), nil
		}
		in := m.Inputs[i]
		if have := key(in.Name, in.Bytes); have != key(p.Name, p.Size) {
			return "input: " + have, nil
		}
		if p.Version != "" && p.Version != in.Version || p.Version == "" && p.Modified > made {
			sum, err := fileSum(ctx, p.Path)
			if err != nil {
				return "", fmt.Errorf("input: %w", err)
			}
			if sum != in.SHA256 {
				return "input: " + in.Name + " was changed", nil
			}
		}
		i++
	}
	if i < len(m.Inputs) {
		return "input: " + key(m.Inputs[i].Name, m.Inputs[i].Bytes), nil
	}
	return "", nil
}

// otherOfMany is otherInputs where a manifest does not list the files: all are
// read if any was written to since.
func (w *workplace) otherOfMany(ctx context.Context, in tokenset.Input, made int64) (string, error) {
	all := func(contents bool) (newer bool, out tokenset.Input, err error) {
		var list transforms.Inputs
		for p, err := range transforms.Pieces(w.inputs.Groups()) {
			if err != nil {
				return false, out, err
			}
			if p.Start > 0 {
				continue
			}
			newer = newer || p.Version != "" || p.Modified > made
			file := tokenset.Input{Name: p.Name, Bytes: p.Size, Version: p.Version}
			if contents && p.Version == "" && (p.End == p.Size || p.Modified > made) { // what was read in pieces has no sum
				if file.SHA256, err = fileSum(ctx, p.Path); err != nil {
					return false, out, fmt.Errorf("input: %w", err)
				}
			}
			list.Add(file)
		}
		return newer, list.Result("")[0], nil
	}
	newer, now, err := all(false)
	if err == nil && (now.Files != in.Files || now.Bytes != in.Bytes || now.Names != in.Names) {
		return fmt.Sprintf("input: %d files of %d bytes, of some other names or sizes", in.Files, in.Bytes), nil
	}
	if err != nil || !newer {
		return "", err
	}
	if _, now, err = all(true); err == nil && now.SHA256 != in.SHA256 {
		return "input: one of " + in.Name + " was changed", nil
	}
	return "", err
}

func fileSum(ctx context.Context, path string) (string, error) {
	f, err := store.Open(ctx, path)
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
