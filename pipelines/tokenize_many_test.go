package pipelines

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Of very many inputs the manifest has number and digests, and they are still
// told from others.
func TestManyInputsAreCountedAndNotListed(t *testing.T) {
	c := newCorpus(t)
	const n = 10003
	folder := filepath.Join(c.dir, "many")
	if err := os.Mkdir(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	name := func(i int) string { return filepath.Join(folder, fmt.Sprint(i, ".txt")) }
	for i := range n {
		if err := os.WriteFile(name(i), []byte(fmt.Sprint("number ", i)), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	o := c.options("set")
	o.Inputs, o.GroupBytes, o.RunTokens = []string{folder}, 0, 0
	set := tokenize(t, o)
	in := set.Manifest.Inputs
	if len(in) != 1 || in[0].Files != n || in[0].Name != folder || in[0].SHA256 == "" || in[0].Names == "" {
		t.Fatalf("the manifest has %d inputs, the first is %+v", len(in), in[0])
	}
	var card bytes.Buffer
	if err := Inspect(context.Background(), InspectOptions{Dataset: o.Output, Out: &card}); err != nil || !strings.Contains(card.String(), fmt.Sprint(n, " files of ")) {
		t.Errorf("%v: the card is\n%s", err, card.String())
	}
	again := func() error {
		o.Inputs = []string{filepath.Join(c.dir, "many", "*.txt")}
		return Tokenize(context.Background(), o)
	}
	if err := again(); err != nil {
		t.Error(err)
	}
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(name(77), later, later); err != nil {
		t.Fatal(err)
	}
	if err := again(); err != nil {
		t.Errorf("a file that was written again with the same text: %v", err)
	}
	if err := os.WriteFile(name(77), []byte("number 78"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(name(77), later, later); err != nil {
		t.Fatal(err)
	}
	if err := again(); err == nil || !strings.Contains(err.Error(), "was changed") {
		t.Errorf("another text: %v", err)
	}
	if err := os.Remove(name(77)); err != nil {
		t.Fatal(err)
	}
	if err := again(); err == nil || !strings.Contains(err.Error(), fmt.Sprint(n, " files of ")) {
		t.Errorf("a file less: %v", err)
	}
}

// An unfinished run is gone on with where the files are the same, and else the
// file that is not is named.
func TestAnotherFileIsNamed(t *testing.T) {
	c := newCorpus(t)
	for what, change := range map[string]func(){
		"b3.txt is new or was changed":              func() { c.put(t, "b3.txt", "other") },
		"b15.txt is new":                            func() { c.put(t, "b15.txt", "new") },
		"without " + filepath.Join(c.dir, "b2.txt"): func() { os.Remove(filepath.Join(c.dir, "b2.txt")) },
		"without " + filepath.Join(c.dir, "b9.txt"): func() { os.Remove(filepath.Join(c.dir, "b9.txt")) },
	} {
		for i, doc := range c.docs[50:] {
			c.put(t, fmt.Sprintf("b%d.txt", i), doc)
		}
		os.Remove(filepath.Join(c.dir, "b15.txt"))
		o := c.options("set")
		os.RemoveAll(o.Output)
		ctx, cancel := context.WithCancel(context.Background())
		cutAfterScan(t, o, ctx, cancel)
		cancel()
		change()
		if err := Tokenize(context.Background(), o); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %q", err, what)
		}
	}
}
