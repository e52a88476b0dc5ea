package tokenset

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const seqLen, vocab = 16, 300

// sequence is what the test sets hold: Zipf-like ids that depend on id alone.
func sequence(id int64) []int32 {
	r := rand.New(rand.NewPCG(uint64(id), 9))
	z := rand.NewZipf(r, 1.2, 5, vocab-1)
	v := make([]int32, seqLen)
	for i := range v {
		v[i] = int32(z.Uint64())
	}
	return v
}

func shard(t testing.TB, dir string, split Split, i, n int, rows int64) Shard {
	t.Helper()
	w, err := NewWriter(filepath.Join(dir, ShardName(split, i, n)), i, seqLen, vocab)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	w.Note("plan", "test")
	for row := range rows {
		if err := w.Append(sequence(ID(i, row))); err != nil {
			t.Fatal(err)
		}
	}
	s, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// set writes a token set with train shards of the given rows and one
// validation shard of three.
func set(t testing.TB, dir string, rows ...int64) *Manifest {
	t.Helper()
	train, validation := &Counts{}, &Counts{}
	for i, n := range rows {
		train.Shards = append(train.Shards, shard(t, dir, Train, i, len(rows), n))
		train.Rows += n
	}
	validation.Shards = []Shard{shard(t, dir, Validation, 0, 1, 3)}
	validation.Rows = 3
	train.Tokens, validation.Tokens = train.Rows*seqLen, 3*seqLen
	m := &Manifest{Tokenizer: Tokenizer{SHA256: strings.Repeat("ab", 32), Vocab: vocab}, SeqLen: seqLen, Seed: 1, Sample: 1,
		Splits: map[Split]*Counts{Train: train, Validation: validation}}
	if err := WriteManifest(dir, m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestEverySequenceComesBack(t *testing.T) {
	dir := t.TempDir()
	set(t, dir, 40, 0, 25, 7)
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, ids := range [][]int64{s.IDs(Train), s.Order(Train, 3, 0)} {
		if len(ids) != 72 {
			t.Fatalf("%d ids, want 72", len(ids))
		}
		for _, id := range ids {
			got, err := s.Sequence(Train, id)
			if err != nil {
				t.Fatal(err)
			}
			if want := sequence(id); !slices.Equal(got, want) {
				t.Fatalf("sequence %d: %v, want %v", id, got, want)
			}
		}
	}
	for _, id := range []int64{-1, 40, ID(1, 0), ID(4, 0), 1 << 62} {
		if _, err := s.Sequence(Train, id); err == nil || !strings.Contains(err.Error(), fmt.Sprint("no sequence ", id)) {
			t.Errorf("sequence %d: %v", id, err)
		}
	}
}

func TestSameRowsGiveTheSameBytes(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	set(t, a, 500, 20)
	set(t, b, 500, 20)
	list, err := os.ReadDir(a)
	if err != nil || len(list) != 4 {
		t.Fatal(list, err)
	}
	for _, e := range list {
		x, _ := os.ReadFile(filepath.Join(a, e.Name()))
		y, _ := os.ReadFile(filepath.Join(b, e.Name()))
		if !bytes.Equal(x, y) {
			t.Errorf("%s differs", e.Name())
		}
	}
}

func TestOrderIsAPermutationThatSeedAndEpochDecide(t *testing.T) {
	dir := t.TempDir()
	set(t, dir, 40, 25, 7)
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for seed := range int64(3) {
		for epoch := range int64(3) {
			ids := s.Order(Train, seed, epoch)
			key := fmt.Sprint(ids)
			name := fmt.Sprintf("seed %d epoch %d", seed, epoch)
			if other, ok := seen[key]; ok {
				t.Errorf("%s has the order of %s", name, other)
			}
			seen[key] = name
			switches := 0
			for i := 1; i < len(ids); i++ {
				if ids[i]>>32 != ids[i-1]>>32 {
					switches++
				}
			}
			if switches != 2 {
				t.Errorf("%s: %d changes of shard, want 2", name, switches)
			}
			slices.Sort(ids)
			if !slices.Equal(ids, s.IDs(Train)) {
				t.Errorf("%s: not a permutation: %v", name, ids)
			}
		}
	}
	// The order is part of the format: a run must go on after an upgrade.
	if got, want := fmt.Sprint(s.Order(Validation, 1, 0), s.Order(Validation, 1, 1), s.Order(Train, 7, 2)[:4]), "[2 0 1] [2 0 1] [4294967317 4294967312 4294967303 4294967315]"; got != want {
		t.Errorf("order %s, want %s", got, want)
	}
}

func TestDescribeReadsTheManifestsLineBack(t *testing.T) {
	dir := t.TempDir()
	want := shard(t, dir, Train, 2, 4, 33)
	got, notes, err := Describe(filepath.Join(dir, want.Name))
	if err != nil {
		t.Fatal(err)
	}
	if got != want || notes["plan"] != "test" {
		t.Errorf("got %+v %v, want %+v", got, notes, want)
	}
	cut := filepath.Join(dir, "cut.parquet")
	raw, _ := os.ReadFile(filepath.Join(dir, want.Name))
	os.WriteFile(cut, raw[:len(raw)-9], 0o666)
	if _, _, err := Describe(cut); err == nil || !strings.Contains(err.Error(), "cut.parquet") {
		t.Errorf("a truncated file: %v", err)
	}
}

func TestFolderWithoutManifestIsNoTokenSet(t *testing.T) {
	dir := t.TempDir()
	shard(t, dir, Train, 0, 1, 5)
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "not a whole token set") {
		t.Errorf("error %v", err)
	}
	if _, err := Open(filepath.Join(dir, "nowhere")); err == nil || !strings.Contains(err.Error(), "no such folder") {
		t.Errorf("error %v", err)
	}
}

func TestWriterRefusesRowsOfAnotherLengthAndLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	w, err := NewWriter(filepath.Join(dir, "a.parquet"), 0, seqLen, vocab)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Append(make([]int32, seqLen+1)); err == nil {
		t.Error("a row of seqLen+1 tokens was taken")
	}
	w.Abort()
	if list, _ := os.ReadDir(dir); len(list) != 0 {
		t.Errorf("left %v", list)
	}
}

func TestLostOrShortShardIsNamedAtOpen(t *testing.T) {
	dir := t.TempDir()
	m := set(t, dir, 10, 10)
	name := m.Splits[Train].Shards[1].Name
	path := filepath.Join(dir, name)
	raw, _ := os.ReadFile(path)
	os.WriteFile(path, raw[:len(raw)/2], 0o666)
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "truncated") {
		t.Errorf("half a shard: %v", err)
	}
	os.Remove(path)
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), name+" is missing") {
		t.Errorf("no shard: %v", err)
	}
	if err := WriteManifest(dir, m); err == nil {
		t.Error("a manifest was written for a set with a shard missing")
	}
}

// Sets of version 1 were written by an older program, and are kept here.
func TestSetsOfVersion1AreStillRead(t *testing.T) {
	s, err := Open("testdata/version1")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := s.Fingerprint(), "c5837ebf425b74997d74f62cfa077d891b0127e5a3d2e1c5f50e09e44ab6c55b"; got != want {
		t.Errorf("fingerprint %s, want %s: a run on it would not go on", got, want)
	}
	for split, rows := range map[Split]int{Train: 72, Validation: 3} {
		ids := s.Order(split, 3, 0)
		if len(ids) != rows {
			t.Fatalf("%s: %d ids, want %d", split, len(ids), rows)
		}
		for _, id := range ids {
			if got, err := s.Sequence(split, id); err != nil || !slices.Equal(got, sequence(id)) {
				t.Fatalf("%s: sequence %d: %v, %v; want %v", split, id, got, err, sequence(id))
			}
		}
		for i := range s.Manifest.Splits[split].Shards {
			if err := s.Verify(split, i); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestDecodeRefusesWhatTheManifestDoesNotSay(t *testing.T) {
	dir := t.TempDir()
	info := shard(t, dir, Train, 1, 2, 30)
	raw, _ := os.ReadFile(filepath.Join(dir, info.Name))
	for _, c := range []struct {
		rows                 int64
		shard, seqLen, vocab int
		want                 string
	}{
		{29, 1, seqLen, vocab, "30 rows, the manifest says 29"},
		{30, 0, seqLen, vocab, "row group 0: sequence_id"},
		{30, 1, seqLen / 2, vocab, "row group 0: "},
		{30, 1, seqLen * 2, vocab, "row group 0: "},
		{30, 1, seqLen, 10, "outside the vocabulary of 10"},
	} {
		_, err := decode(bytes.NewReader(raw), int64(len(raw)), c.rows, c.shard, c.seqLen, c.vocab)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestBadManifestsAreRefused(t *testing.T) {
	dir := t.TempDir()
	set(t, dir, 10, 5)
	raw, _ := os.ReadFile(filepath.Join(dir, ManifestFile))
	for name, c := range map[string]struct{ old, new, want string }{
		"version":        {`"version": 2`, `"version": 3`, "version 3"},
		"no index":       {`"index_bytes"`, `"bytes_of_index"`, "an index of 0 bytes"},
		"rows":           {`"rows": 15`, `"rows": 16`, "16 rows"},
		"negative shard": {`"rows": 5`, `"rows": -5`, "-5 rows"},
		"seq_len":        {`"seq_len": 16`, `"seq_len": 0`, "seq_len is 0"},
		"outside":        {`"train-00001-of-00002.parquet"`, `"../train-00001-of-00002.parquet"`, "name"},
		"same shard":     {`"train-00001-of-00002.parquet"`, `"train-00000-of-00002.parquet"`, "name"},
		"vocab":          {`"vocab": 300`, `"vocab": 0`, "vocabulary of 0"},
		"split":          {`"validation": {`, `"test": {`, `split "test"`},
	} {
		if !bytes.Contains(raw, []byte(c.old)) {
			t.Fatalf("%s: the manifest has no %s", name, c.old)
		}
		_, err := ParseManifest(bytes.Replace(raw, []byte(c.old), []byte(c.new), 1))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, err := ParseManifest(raw[:len(raw)/2]); err == nil {
		t.Error("half a manifest was read")
	}
}

// FuzzParseManifest: what parses can be walked, and written and read again.
func FuzzParseManifest(f *testing.F) {
	dir := f.TempDir()
	set(f, dir, 3)
	raw, err := os.ReadFile(filepath.Join(dir, ManifestFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"version":1,"seq_len":1,"tokenizer":{"vocab":1},"splits":{"train":null}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseManifest(data)
		if err != nil {
			return
		}
		for _, c := range m.Splits {
			for _, s := range c.Shards {
				if filepath.Dir(filepath.Join("set", s.Name)) != "set" {
					t.Fatalf("shard %q lies outside", s.Name)
				}
			}
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		n, err := ParseManifest(again)
		if err != nil || n.Fingerprint() != m.Fingerprint() {
			t.Fatalf("written and read again: %v", err)
		}
	})
}

func TestASubsetIsTheFirstShards(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a#b") // a folder may be called so
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	m := set(t, dir, 40, 25, 7)
	m.Subsets = []Subset{{Name: "small", Tokens: 600, Rows: 40, Shards: 1}, {Name: "distill", Tokens: 1000, Rows: 65, Shards: 2}}
	if err := WriteManifest(dir, m); err != nil {
		t.Fatal(err)
	}
	whole, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	prints := map[string]bool{whole.Fingerprint(): true}
	for name, rows := range map[string]int64{"small": 40, "distill": 65} {
		s, err := Open(dir + "#" + name)
		if err != nil {
			t.Fatal(err)
		}
		if prints[s.Fingerprint()] {
			t.Error("two sets of one fingerprint")
		}
		prints[s.Fingerprint()] = true
		if s.Rows(Train) != rows || len(s.Order(Train, 1, 0)) != int(rows) || s.Rows(Validation) != 3 || !slices.Equal(s.IDs(Train), whole.IDs(Train)[:rows]) {
			t.Errorf("%s: %d rows", name, s.Rows(Train))
		}
		if err := s.Manifest.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := s.Sequence(Train, ID(2, 0)); err == nil {
			t.Errorf("%s has a sequence of the third shard", name)
		}
	}
	if _, err := Open(dir + "#none"); err == nil || !strings.Contains(err.Error(), "small, distill") {
		t.Errorf("%v", err)
	}
	for what, s := range map[string][]Subset{"rows": {{Name: "a", Rows: 41, Shards: 1}}, "shards": {{Name: "a", Rows: 72, Shards: 4}}, "order": {m.Subsets[1], m.Subsets[0]}, "name": {{Rows: 40, Shards: 1}}} {
		m.Subsets = s
		if err := m.Validate(); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}
