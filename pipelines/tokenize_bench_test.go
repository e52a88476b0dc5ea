package pipelines

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/scavenge/scavenge/schemas/tokenizer"
	"github.com/scavenge/scavenge/transforms"
)

// BenchmarkTokenize is the speed of the whole pipeline, JSON lines under zstd
// to Parquet, beside that of the tokenizer alone over the same documents in
// memory, each on all cores. Bytes are those of the text. On a machine that is
// shared compare MB/cpu-s, the text for a second of processor time.
//
//	go test ./pipelines -run xxx -bench Tokenize -benchtime 3x
func BenchmarkTokenize(b *testing.B) {
	const data = "../../shared/data/"
	inputs, err := filepath.Glob(data + "corpus/web-0000[01].jsonl.zst")
	if err != nil || len(inputs) == 0 {
		b.Skip("no ../shared")
	}
	tok, err := tokenizer.Load(data + "tokenizer/20B_tokenizer.json")
	if err != nil {
		b.Fatal(err)
	}
	var docs [][]byte
	var size int64
	err = transforms.Documents(context.Background(), inputs, 1<<40, func(text string) bool {
		docs = append(docs, []byte(text))
		size += int64(len(text))
		return true
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("tokenizer alone", func(b *testing.B) {
		b.SetBytes(size)
		defer perSecond(b, size)()
		for b.Loop() {
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
	})
	docs = nil
	b.Run("pipeline", func(b *testing.B) {
		b.SetBytes(size)
		defer perSecond(b, size)()
		for b.Loop() {
			b.StopTimer()
			output := filepath.Join(b.TempDir(), "set")
			os.RemoveAll(output)
			b.StartTimer()
			err := Tokenize(context.Background(), TokenizeOptions{Inputs: inputs, Tokenizer: data + "tokenizer/20B_tokenizer.json", Output: output, Quiet: true, Log: new(bytes.Buffer)})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}

// perSecond reports the bytes of each loop for a second of processor time.
func perSecond(b *testing.B, size int64) (stop func()) {
	used := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := used()
	return func() { b.ReportMetric(float64(size)*float64(b.N)*1e3/float64(used()-before), "MB/cpu-s") }
}
