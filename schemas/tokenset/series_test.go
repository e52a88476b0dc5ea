package tokenset

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func part(t *testing.T, dir string, n int64, rows ...int64) *Manifest {
	t.Helper()
	path := filepath.Join(dir, PartName(n))
	if err := os.MkdirAll(path, 0o777); err != nil {
		t.Fatal(err)
	}
	return set(t, path, rows...)
}

func TestASeriesGrowsByPartsWithIDsOfTheirOwn(t *testing.T) {
	dir := t.TempDir()
	sizes := [][]int64{{4, 3}, {5}, {2, 0, 6}, {}, {1}, {3}}
	part(t, dir, 0, sizes[0]...)
	s, err := OpenSeries(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Epoch(1); !errors.Is(err, ErrNoPart) {
		t.Errorf("part 1: %v, want ErrNoPart", err)
	}
	part(t, dir, 2, sizes[2]...) // out of turn
	if _, err := s.Epoch(2); !errors.Is(err, ErrNoPart) {
		t.Errorf("part 2 before part 1: %v, want ErrNoPart", err)
	}
	for n := int64(1); n < int64(len(sizes)); n++ {
		if n != 2 {
			part(t, dir, n, sizes[n]...)
		}
	}
	seen := map[int64]bool{}
	shards := int64(0)
	check := func(n int64) {
		p, err := s.Epoch(n)
		if err != nil {
			t.Fatal(err)
		}
		ids := s.Order(Train, 7, n)
		if int64(len(ids)) != p.Rows(Train) || n > 0 && len(sizes[n]) == 1 && len(ids) > 2 && slices.IsSorted(ids) {
			t.Errorf("part %d: order %v of %d", n, ids, p.Rows(Train))
		}
		for _, id := range ids {
			got, err := s.Sequence(Train, id)
			if want := sequence(id - shards<<32); err != nil || !slices.Equal(got, want) {
				t.Fatalf("part %d: sequence %d is %v, want %v; %v", n, id, got, want, err)
			}
			if seen[id] {
				t.Fatalf("part %d: sequence %d is in another part too", n, id)
			}
			seen[id] = true
		}
		shards += max(1, int64(len(sizes[n]))) // the validation split has one
	}
	for n := range int64(len(sizes)) {
		check(n)
	}
	if len(s.open) > keptParts {
		t.Errorf("%d parts are open", len(s.open))
	}
	clear(seen)
	if shards = 0; true { // one that was let go of
		check(0)
	}
	for _, id := range []int64{-1, 1 << 60, ID(int(100), 0)} {
		if _, err := s.Sequence(Train, id); err == nil {
			t.Errorf("sequence %d was found", id)
		}
	}
}

func TestASeriesRefusesWhatDoesNotBelongToIt(t *testing.T) {
	for what, c := range map[string]struct {
		change func(t *testing.T, dir string)
		want   string
	}{
		"no folder":        {func(t *testing.T, dir string) { os.RemoveAll(dir) }, "no such folder"},
		"no first part":    {func(t *testing.T, dir string) { os.RemoveAll(filepath.Join(dir, PartName(0))) }, "pipelines/tokenize --output"},
		"a part half made": {func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, PartName(0), ManifestFile)) }, "has no part-00000 yet"},
		"a whole set":      {func(t *testing.T, dir string) { set(t, dir, 3) }, "does not grow"},
		"another tokenizer": {func(t *testing.T, dir string) {
			m := part(t, dir, 1, 3)
			m.Tokenizer.SHA256 = strings.Repeat("cd", 32)
			if err := WriteManifest(filepath.Join(dir, PartName(1)), m); err != nil {
				t.Fatal(err)
			}
		}, "another tokenizer"},
	} {
		dir := t.TempDir()
		part(t, dir, 0, 3)
		c.change(t, dir)
		s, err := OpenSeries(dir)
		if err == nil {
			_, err = s.Epoch(1)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
}
