package pipelines

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/scavenge/scavenge/transforms"
)

// BenchmarkTokenize is the speed of the whole pipeline, JSON lines under zstd
// to Parquet, beside that of the tokenizer alone over the same documents in
// memory, each on all cores. The two take turns, and what is printed are the
// medians: MB/s of text by the clock and for a second of processor time, of the
// tokenizer (alone-…) and of the pipeline, and the pipeline's share in percent.
// On a machine that is shared only the processor's count. Reading the
// tokenizer.json is not in it.
//
//	go test ./pipelines -run xxx -bench Tokenize -benchtime 5x
func BenchmarkTokenize(b *testing.B) {
	const data = "../../shared/data/"
	inputs, err := filepath.Glob(data + "corpus/web-0*.jsonl.zst")
	if err != nil || len(inputs) == 0 {
		b.Skip("no ../shared")
	}
	tok, err := transforms.LoadTokenizer(context.Background(), data+"tokenizer/20B_tokenizer.json")
	if err != nil {
		b.Fatal(err)
	}
	var docs [][]byte
	var size float64
	err = transforms.Documents(context.Background(), inputs, 1<<40, func(text string) bool {
		docs = append(docs, []byte(text))
		size += float64(len(text)) / 1e6
		return true
	})
	if err != nil {
		b.Fatal(err)
	}
	alone := func() {
		var next atomic.Int64
		var all sync.WaitGroup
		for range runtime.GOMAXPROCS(0) {
			all.Go(func() {
				var ids []int32
				for i := next.Add(1) - 1; i < int64(len(docs)); i = next.Add(1) - 1 {
					ids = tok.AppendEncode(ids[:0], docs[i])
				}
			})
		}
		all.Wait()
	}
	dir := b.TempDir()
	pipeline := func() {
		err := Tokenize(context.Background(), TokenizeOptions{Inputs: inputs, Tokenizer: data + "tokenizer/20B_tokenizer.json", Output: filepath.Join(dir, "set"), Quiet: true, Log: new(bytes.Buffer)})
		if err != nil {
			b.Fatal(err)
		}
	}
	figures := map[string][]float64{}
	for b.Loop() {
		clock, processor := measured(alone)
		clockAll, processorAll := measured(pipeline)
		for unit, v := range map[string]float64{"alone-MB/s": size / clock, "alone-MB/cpu-s": size / processor, "MB/s": size / clockAll, "MB/cpu-s": size / processorAll,
			"%": 100 * clock / clockAll, "%cpu": 100 * processor / processorAll} {
			figures[unit] = append(figures[unit], v)
		}
		os.RemoveAll(filepath.Join(dir, "set"))
	}
	for unit, v := range figures {
		slices.Sort(v)
		b.ReportMetric(v[len(v)/2], unit)
	}
}

// measured is how long a call takes, in seconds by the clock and of processor
// time. It begins with the garbage of earlier ones collected.
func measured(call func()) (clock, processor float64) {
	runtime.GC()
	used := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			panic(err) // the arguments are right
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before, start := used(), time.Now()
	call()
	return time.Since(start).Seconds(), float64(used()-before) / 1e9
}
