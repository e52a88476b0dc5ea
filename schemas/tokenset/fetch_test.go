package tokenset

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/scavenge/scavenge/schemas/store"
	"github.com/scavenge/scavenge/schemas/store/storetest"
)

// small writes a token set of two shards.
func small(t *testing.T, dir string) {
	t.Helper()
	m := &Manifest{Tokenizer: Tokenizer{Vocab: 1000}, SeqLen: 4, Splits: map[Split]*Counts{Train: {Documents: 1, Rows: 5, Tokens: 20}}}
	for i, rows := range []int{3, 2} {
		w, err := NewWriter(store.Join(dir, ShardName(Train, i, 2)), i, 4, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for r := range rows {
			if err := w.Append([]int32{int32(i), int32(r), 7, 999}); err != nil {
				t.Fatal(err)
			}
		}
		shard, err := w.Close()
		if err != nil {
			t.Fatal(err)
		}
		m.Splits[Train].Shards = append(m.Splits[Train].Shards, shard)
	}
	if err := WriteManifest(dir, m); err != nil {
		t.Fatal(err)
	}
}

func TestASetInABucketIsTheOneOnTheDisk(t *testing.T) {
	here := t.TempDir()
	small(t, here)
	t.Setenv(CacheVariable, t.TempDir())
	want, err := Open(here)
	if err != nil {
		t.Fatal(err)
	}
	for name, start := range map[string]func(testing.TB) *storetest.Server{"s3": storetest.S3, "gs": storetest.GS} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			dir := s.Root + "/sets/small"
			small(t, dir)
			got, err := Open(dir)
			if err != nil || got.Fingerprint() != want.Fingerprint() {
				t.Fatalf("%v, another fingerprint", err)
			}
			for _, id := range want.IDs(Train) {
				a, err := want.Sequence(Train, id)
				if err != nil {
					t.Fatal(err)
				}
				if b, err := got.Sequence(Train, id); err != nil || !reflect.DeepEqual(a, b) {
					t.Errorf("sequence %d: %v, %v; want %v", id, b, err, a)
				}
			}
			shard, notes, err := Describe(dir + "/" + ShardName(Train, 0, 2))
			if err != nil || shard != want.Manifest.Splits[Train].Shards[0] || len(notes) != 0 {
				t.Errorf("%+v, %v, %v", shard, notes, err)
			}

			data, err := os.ReadFile(filepath.Join(here, ShardName(Train, 1, 2)))
			if err != nil {
				t.Fatal(err)
			}
			data[len(data)/2] ^= 1
			s.Put(t, "sets/small/"+ShardName(Train, 1, 2), string(data))
			damaged, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			t.Setenv(CacheVariable, t.TempDir())
			for range 2 {
				if _, err := damaged.Sequence(Train, ID(1, 0)); err == nil || !strings.Contains(err.Error(), "sha256") || !strings.Contains(err.Error(), dir) {
					t.Errorf("a damaged shard: %v", err)
				}
				if kept, err := os.ReadDir(os.Getenv(CacheVariable)); err != nil || len(kept) > 0 {
					t.Errorf("it was kept: %v, %v", kept, err)
				}
			}
			s.Put(t, "sets/small/"+ShardName(Train, 1, 2), string(data[1:]))
			if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "truncated") {
				t.Errorf("a short shard: %v", err)
			}
			if err := store.Remove(context.Background(), dir+"/"+ShardName(Train, 1, 2)); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "is missing") {
				t.Errorf("a missing shard: %v", err)
			}
			if err := store.WriteFile(context.Background(), dir+"/"+ManifestFile, func(w io.Writer) error { return nil }); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(dir); err == nil {
				t.Error("an empty manifest: no error")
			}
		})
	}
}
