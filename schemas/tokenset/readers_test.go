//go:build peer

package tokenset

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// pandas, pyarrow, DuckDB and Hugging Face datasets read a token set with no
// help of ours, in a Python that has them:
//
//	SCAVENGE_PYTHON=venv/bin/python go test -tags peer ./schemas/tokenset -run Readers -v
func TestOtherReadersSeeTheSame(t *testing.T) {
	python := os.Getenv("SCAVENGE_PYTHON")
	if python == "" {
		t.Fatal("SCAVENGE_PYTHON is not set: a Python with pandas, pyarrow, duckdb and datasets")
	}
	dir := t.TempDir()
	set(t, dir, 40, 0, 25, 4500) // the last one of several pages
	card := "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train-*.parquet\n  - split: validation\n    path: validation-*.parquet\n---\n"
	if err := os.WriteFile(filepath.Join(dir, "README.md"), []byte(card), 0o666); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, "testdata/readers.py", dir, t.TempDir())
	cmd.Env = append(os.Environ(), "HF_HUB_OFFLINE=1", "HF_HOME="+t.TempDir())
	var problems bytes.Buffer
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, problems.Bytes())
	}
	lines := 0
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); lines++ {
		var got struct {
			Reader, Version         string
			Split                   Split
			Rows, Tokens, Sum, Last int64
			First                   []int32
		}
		if err := d.Decode(&got); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s %s: %s: %d rows", got.Reader, got.Version, got.Split, got.Rows)
		var sum int64
		ids := s.IDs(got.Split)
		for _, id := range ids {
			for _, token := range sequence(id) {
				sum += int64(token)
			}
		}
		if n := int64(len(ids)); got.Rows != n || got.Tokens != n*seqLen || got.Sum != sum || got.Last != ids[n-1] || !slices.Equal(got.First, sequence(ids[0])) {
			t.Errorf("%s, %s: %+v; want %d rows, sum %d, last %d, first %v", got.Reader, got.Split, got, n, sum, ids[n-1], sequence(ids[0]))
		}
	}
	if lines != 10 {
		t.Errorf("%d answers, want 10", lines)
	}
}
