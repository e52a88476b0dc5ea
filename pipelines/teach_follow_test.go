package pipelines

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// growingInputs are teachInputs over a growing token set, whose first part has
// so many sequences; more makes the next one.
func growingInputs(t *testing.T, rows int) (o TeachOptions, more func(rows int) string) {
	t.Helper()
	o = teachInputs(t, 1)
	o.Dataset, o.Partitions, o.Batch = t.TempDir(), 2, 3
	parts := int64(0)
	more = func(rows int) string {
		part := filepath.Join(o.Dataset, tokenset.PartName(parts))
		if err := os.Rename(teachInputs(t, rows).Dataset, part); err != nil {
			t.Fatal(err)
		}
		parts++
		return part
	}
	more(rows)
	return o, more
}

// told calls use with each line that is written to it.
type told struct {
	mu   sync.Mutex
	text string
	use  func(line string)
}

func (w *told) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text += string(b)
	for {
		line, rest, whole := strings.Cut(w.text, "\n")
		if !whole {
			return len(b), nil
		}
		w.text = rest
		w.use(line)
	}
}

// ends are the control records of a partition of layer 1, in words.
func ends(t *testing.T, o TeachOptions, partition int) (list []string) {
	for _, r := range sent(t, o, partition) {
		if r.Control != 0 {
			list = append(list, fmt.Sprintf("%v %d: %d", r.Control, r.Epoch, r.Records))
		}
	}
	return list
}

// A growing token set is followed until Ctrl-C, part after part; the same command
// without --follow ends the stream, and sends nothing when it runs again.
func TestTeachFollowsAGrowingTokenSet(t *testing.T) {
	o, more := growingInputs(t, 5)
	o.Follow, o.Workers = true, 2
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sizes, waits := []int{5, 8, 2}, 0
	o.Log = &told{use: func(line string) {
		if !strings.Contains(line, "waiting for ") {
			return
		}
		if waits++; !strings.Contains(line, filepath.Join(o.Dataset, tokenset.PartName(int64(waits)))) {
			t.Errorf("it waits for part %d: %q", waits, line)
		}
		if waits < len(sizes) {
			more(sizes[waits])
		}
		if waits == len(sizes) {
			cancel()
		}
	}}
	if err := Teach(ctx, o); !errors.Is(err, ErrInterrupted) {
		t.Fatalf("error %v", err)
	}
	if waits != len(sizes) {
		t.Errorf("it said %d times that it waits, want once a part", waits)
	}
	o.Follow = false
	var before [2]int
	for run := range 2 {
		if err := Teach(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		series, err := tokenset.OpenSeries(o.Dataset)
		if err != nil {
			t.Fatal(err)
		}
		for p := range 2 {
			var want, got []int64
			var marks []string
			for epoch := range sizes {
				count := 0
				for _, id := range series.Order(tokenset.Train, o.Seed, int64(epoch)) {
					if activation.Partition(id, 2) == p {
						want, count = append(want, id), count+1
					}
				}
				if marks = append(marks, fmt.Sprintf("end of epoch %d: %d", epoch, count)); epoch == len(sizes)-1 {
					marks = append(marks, fmt.Sprintf("end of stream %d: %d", epoch, count))
				}
			}
			all := sent(t, o, p)
			for _, r := range taught(t, o, p) {
				got = append(got, r.SequenceID)
			}
			if !slices.Equal(got, want) {
				t.Errorf("partition %d: sequences %v, want %v", p, got, want)
			}
			if e := ends(t, o, p); !slices.Equal(e, marks) {
				t.Errorf("partition %d: %q, want %q", p, e, marks)
			}
			if run > 0 && len(all) != before[p] {
				t.Errorf("partition %d: %d records after the second run, %d after the first", p, len(all), before[p])
			}
			before[p] = len(all)
		}
	}
}

// A few sequences of a growing token set may end within one of its parts.
func TestTeachEndsWithinAPart(t *testing.T) {
	o, more := growingInputs(t, 5)
	more(8)
	o.Partitions = 1
	for _, sequences := range []int64{4, 5, 9} {
		o.Sequences = sequences
		if err := Teach(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		if n := len(taught(t, o, 0)); n != int(sequences) {
			t.Errorf("%d sequences, want %d", n, sequences)
		}
	}
	want := []string{"end of stream 0: 4", "end of epoch 0: 5", "end of stream 0: 5", "end of stream 1: 4"}
	if got := ends(t, o, 0); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestTeachRefusesWhatDoesNotGrow(t *testing.T) {
	good, more := growingInputs(t, 5)
	more(8)
	whole := teachInputs(t, 4)
	for want, change := range map[string]func(o *TeachOptions){
		"--epochs 2: token set":          func(o *TeachOptions) { o.Epochs = 2 },
		"--sequences 4 with --follow":    func(o *TeachOptions) { o.Follow, o.Sequences = true, 4 },
		"does not grow":                  func(o *TeachOptions) { o.Follow, o.Dataset = true, whole.Dataset },
		"has no part-00000 yet":          func(o *TeachOptions) { o.Follow, o.Dataset = true, t.TempDir() },
		"--sequences 14: the 2 parts of": func(o *TeachOptions) { o.Sequences = 14 },
	} {
		o := good
		change(&o)
		err := Teach(t.Context(), o)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want one line with %q", err, want)
		}
	}
}

// A part that is damaged ends the command with its line; the parts before it have
// been sent, and when it has been made again the same command goes on.
func TestTeachStopsAtADamagedPartBehindTheOthers(t *testing.T) {
	o, more := growingInputs(t, 5)
	part := more(8)
	o.Partitions = 1
	manifest := filepath.Join(part, tokenset.ManifestFile)
	data, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(manifest, data[:len(data)/2], 0o666); err != nil {
		t.Fatal(err)
	}
	for _, follow := range []bool{true, false} {
		o.Follow = follow
		if err := Teach(t.Context(), o); err == nil || !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %v, want a line with %s", err, part)
		}
		if got, want := ends(t, o, 0), []string{"end of epoch 0: 5"}; !slices.Equal(got, want) || len(taught(t, o, 0)) != 5 {
			t.Errorf("%d sequences and %q, want 5 and %q", len(taught(t, o, 0)), got, want)
		}
	}
	if err := os.WriteFile(manifest, data, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := Teach(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if got, want := ends(t, o, 0), []string{"end of epoch 0: 5", "end of epoch 1: 8", "end of stream 1: 8"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
