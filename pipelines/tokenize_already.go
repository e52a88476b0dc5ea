package pipelines

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/scavenge/scavenge/schemas/tokenset"
	"github.com/scavenge/scavenge/transforms"
)

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
