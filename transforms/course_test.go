package transforms

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// growing is a lesson over a growing token set without parts.
func growing(t *testing.T, partitions int) Lesson {
	t.Helper()
	l := lesson(t, broker(t), partitions)
	l.Dataset, l.Sink.Layers = t.TempDir(), []int{1, 3}
	return l
}

// grow makes a part.
func grow(t *testing.T, l Lesson, n int64, rows ...int64) string {
	t.Helper()
	dir := filepath.Join(l.Dataset, tokenset.PartName(n))
	tokenSet(t, dir, int(n)+1, rows...)
	return dir
}

// Parts of any size, also none, are taught one after the other as they come, each
// by two workers; and then the stream is ended.
func TestGrowingTokenSetIsTaughtAsItGrows(t *testing.T) {
	l := growing(t, 3)
	l.Workers, l.Follow = 2, true
	parts := [][]int64{{2}, {9, 4}, {0}, {7}}
	grow(t, l, 0, parts[0]...)
	if err := l.Sink.Prepare(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	launch := NewLaunch(ctx)
	var waits atomic.Int64
	launch.Notice = func(said string) {
		if strings.Contains(said, "waiting for "+l.Dataset) {
			waits.Add(1)
		}
	}
	ended := make(chan error, l.Workers)
	following := l
	for w := range l.Workers {
		go func() { ended <- (&teachFn{Lesson: following, Launch: launch.ID}).ProcessElement(ctx, w) }()
	}
	k := connected(t, l.Sink)
	records := int64(0)
	for n := range int64(len(parts)) {
		if n > 0 {
			grow(t, l, n, parts[n]...)
		}
		for _, rows := range parts[n] {
			records += 2 * rows
		}
		records += 2 * 3 // the epoch's end, in each partition of both topics
		for total(t, k) != records {
			select {
			case err := <-ended:
				t.Fatalf("part %d: it ended: %v", n, err)
			case <-time.After(20 * time.Millisecond):
			}
		}
		l.Epochs = n + 1
		complete(t, l)
	}
	for waits.Load() < int64(len(parts)) { // it says so before it waits, and after the part's end
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	for range l.Workers {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled: %v", err)
		}
	}
	launch.Close()
	if n := waits.Load(); n != int64(len(parts)) {
		t.Errorf("it said %d times that it waits, want once for each of %d parts", n, len(parts))
	}
	l.Follow = false
	for range 2 {
		if n, err := give(t.Context(), l); err != nil || n != 0 {
			t.Fatalf("%d sequences computed to end the stream; %v", n, err)
		}
		complete(t, l)
	}
	// and goes on behind its end, up to the middle of a part
	grow(t, l, 4, 6)
	l.Epochs, l.Last = 5, 4
	if n, err := give(t.Context(), l); err != nil || n != 4 {
		t.Fatalf("%d sequences computed; %v", n, err)
	}
	lanesOf(t, l, func(at lane, all []entry) {
		if got, want := once(all), lessonOf(t, l, at.partition); !slices.Equal(got, want) {
			t.Fatalf("%v:\n got %v\nwant %v", at, all, want)
		}
	})
}

// A part that does not fit ends the lesson, with its own line and behind all that
// came before it.
func TestPartThatDoesNotFitEndsTheLessonBehindTheOthers(t *testing.T) {
	for want, spoil := range map[string]func(t *testing.T, part string){
		"another tokenizer": func(t *testing.T, part string) {
			set, err := tokenset.Open(part)
			if err != nil {
				t.Fatal(err)
			}
			set.Manifest.Tokenizer.SHA256 = strings.Repeat("cd", 32)
			if err := tokenset.WriteManifest(part, set.Manifest); err != nil {
				t.Fatal(err)
			}
		},
		"part-00002: shard train-00000-of-00001.parquet: ": func(t *testing.T, part string) {
			path := filepath.Join(part, tokenset.ShardName(tokenset.Train, 0, 1))
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for i := range data[:len(data)/2] { // pages
				data[i] ^= 1
			}
			if err := os.WriteFile(path, data, 0o666); err != nil {
				t.Fatal(err)
			}
		},
		"part-00002: shard train-00000-of-00001.parquet is missing": func(t *testing.T, part string) {
			if err := os.Remove(filepath.Join(part, tokenset.ShardName(tokenset.Train, 0, 1))); err != nil {
				t.Fatal(err)
			}
		},
	} {
		l := growing(t, 2)
		l.Follow = true
		grow(t, l, 0, 5)
		grow(t, l, 1, 6)
		spoil(t, grow(t, l, 2, 7))
		_, err := give(t.Context(), l)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want one line with %q", err, want)
		}
		l.Epochs = 2
		complete(t, l)
	}
}

// The order of another seed is seen at a partition's first sequence, also behind
// epochs of which the partition has none; and so is a part that is gone.
func TestOtherLessonsOfAGrowingTokenSetAreRefused(t *testing.T) {
	l := growing(t, 3)
	grow(t, l, 0, 1)
	grow(t, l, 1, 0)
	part := grow(t, l, 2, 12)
	l.Epochs = 3
	if _, err := give(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	complete(t, l)
	aside := filepath.Join(t.TempDir(), "aside")
	for want, change := range map[string]func(l *Lesson){
		"another --seed":    func(l *Lesson) { l.Seed++ },
		"another token set": func(l *Lesson) { l.Dataset = t.TempDir(); grow(t, *l, 0, 1); grow(t, *l, 1, 0); grow(t, *l, 2, 11) },
		"it goes as far as epoch 2: token set " + part + ": not there yet": func(*Lesson) {
			if err := os.Rename(part, aside); err != nil {
				t.Fatal(err)
			}
		},
	} {
		x := l
		change(&x)
		_, err := give(t.Context(), x)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), l.Sink.Run+".layer-1: partition ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v, want one line with %q", err, want)
		}
		os.Rename(aside, part)
	}
	complete(t, l)
}

func TestOnlyWhatGrowsIsFollowed(t *testing.T) {
	l := lesson(t, "127.0.0.1:1", 1)
	series := t.TempDir()
	tokenSet(t, filepath.Join(series, tokenset.PartName(0)), 0, 3)
	for _, c := range []struct {
		dir    string
		follow bool
		want   string
	}{
		{l.Dataset, false, ""}, {series, true, ""}, {series, false, ""}, {l.Dataset, true, "does not grow"},
		{t.TempDir(), true, "has no part-00000 yet"}, {t.TempDir(), false, "not a whole token set"}, {filepath.Join(series, "none"), true, "no such folder"},
	} {
		course, first, err := OpenCourse(c.dir, c.follow)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, follow %v: %v, want %q", c.dir, c.follow, err, c.want)
		}
		if _, grows := course.(*tokenset.Series); err == nil && (grows != (c.dir == series) || first.Rows(tokenset.Train) == 0) {
			t.Errorf("%s, follow %v: it grows: %v", c.dir, c.follow, grows)
		}
	}
}

// What a topic holds in the end is not known where more and more is sent: it has
// to keep all of it.
func TestEndlessTopicsHaveToKeepEverything(t *testing.T) {
	l := growing(t, 1)
	l.Sink.Layers, l.Sink.TopicBytes = []int{0}, Endless
	topic := activation.Topic(l.Sink.Run, 0)
	makeTopic(t, connected(t, l.Sink), topic, map[string]string{retentionMs: "-1", retentionBytes: "1000000000000"})
	if err := l.Sink.Prepare(t.Context(), nil); err == nil || !strings.Contains(err.Error(), topic+": its retention.bytes is 1000000000000, and the token set grows") {
		t.Errorf("error %v", err)
	}
	l.Sink.AllowRetention = true
	if err := l.Sink.Prepare(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// A lane that was given more than is to be sent now, and no end, is told of.
func TestUnendedStreamIsToldOf(t *testing.T) {
	l := lesson(t, broker(t), 1)
	l.Sink.Layers = []int{1}
	partly(t, l, activation.EndOfEpoch)
	launch := NewLaunch(t.Context())
	defer launch.Close()
	var said []string
	launch.Notice = func(s string) { said = append(said, s) }
	topic := activation.Topic(l.Sink.Run, 1)
	for _, c := range []struct {
		sequences int64
		told      bool
	}{{45, true}, {60, false}, {45, false}} { // 60 ends it
		said = nil
		if err := (&teachFn{Lesson: l.upTo(c.sequences), Launch: launch.ID}).ProcessElement(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if told := len(said) == 1 && strings.HasPrefix(said[0], "topic "+topic+": partition 0 holds more"); told != c.told || len(said) > 1 {
			t.Errorf("%d sequences: it said %q", c.sequences, said)
		}
	}
	complete(t, l)
}
