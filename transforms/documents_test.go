package transforms

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestDocumentsComeInOrderAndEndAtTheLimit(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"b.jsonl": "{\"text\":\"second\"}\n{\"text\":\"third\"}\n", "a.txt": "first\nof all"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	for limit, want := range map[int64][]string{1 << 20: {"first\nof all", "second", "third"}, 1: {"first\nof all"}, 13: {"first\nof all", "second"}} {
		var got []string
		err := Documents(context.Background(), []string{filepath.Join(dir, "*")}, limit, func(text string) bool {
			got = append(got, text)
			return true
		})
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("limit %d: %q, %v; want %q", limit, got, err, want)
		}
	}
	n := 0
	if err := Documents(context.Background(), []string{filepath.Join(dir, "*")}, 1<<20, func(string) bool { n++; return n < 2 }); err != nil || n != 2 {
		t.Errorf("stopped after %d documents: %v", n, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Documents(ctx, []string{filepath.Join(dir, "*")}, 1<<20, func(string) bool { return true }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := Documents(context.Background(), []string{filepath.Join(dir, "none-*")}, 1, nil); err == nil || !strings.Contains(err.Error(), "none-") {
		t.Errorf("no match: %v", err)
	}
}
