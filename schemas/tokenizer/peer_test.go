//go:build peer

package tokenizer

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// The comparison with Hugging Face tokenizers itself, in a Python that has the
// package:
//
//	SCAVENGE_PYTHON=venv/bin/python go test -tags peer ./schemas/tokenizer -run Peer -v
//
// SCAVENGE_PEER_STRINGS is how many random strings (default 5,000), and
// SCAVENGE_PEER_MB how much of each corpus file (default 1; 0 is all of it).

// peer is the other tokenizer, in a process of its own.
type peer struct {
	in  *bufio.Writer
	out *bufio.Reader
}

func startPeer(t *testing.T) *peer {
	t.Helper()
	python := os.Getenv("SCAVENGE_PYTHON")
	if python == "" {
		t.Fatal("SCAVENGE_PYTHON is not set: a Python with the package tokenizers")
	}
	cmd := exec.Command(python, "testdata/peer.py", filepath.Join(shared, "tokenizer/20B_tokenizer.json"))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", python, err)
		}
	})
	return &peer{bufio.NewWriterSize(in, 1<<20), bufio.NewReaderSize(out, 1<<20)}
}

func (p *peer) send(t *testing.T, command string, docs []string) {
	t.Helper()
	fmt.Fprintln(p.in, command, len(docs))
	for _, d := range docs {
		binary.Write(p.in, binary.LittleEndian, uint32(len(d)))
		p.in.WriteString(d)
	}
	if err := p.in.Flush(); err != nil {
		t.Fatal(err)
	}
}

// compare encodes the documents both ways and says how many differ.
func (p *peer) compare(t *testing.T, tok *Tokenizer, what string, docs []string) (differ int) {
	t.Helper()
	p.send(t, "encode", docs)
	var ids []int32
	for _, d := range docs {
		var n uint32
		if err := binary.Read(p.out, binary.LittleEndian, &n); err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 4*n)
		if _, err := io.ReadFull(p.out, data); err != nil {
			t.Fatal(err)
		}
		want := make([]int32, n)
		for i := range want {
			want[i] = int32(binary.LittleEndian.Uint32(data[4*i:]))
		}
		if ids = tok.AppendEncode(ids[:0], []byte(d)); !slices.Equal(ids, want) {
			if differ++; differ <= 3 {
				t.Errorf("%s: %.200q:\n got %.40v\nwant %.40v", what, d, ids, want)
			}
		}
	}
	return differ
}

// tally is how much was compared.
type tally struct{ docs, bytes, differ int }

// batches compares what next yields, a few megabytes at a time.
func (p *peer) batches(t *testing.T, tok *Tokenizer, what string, each func(yield func(string) bool)) {
	t.Helper()
	var sum tally
	var batch []string
	size := 0
	flush := func() {
		sum.docs, sum.bytes = sum.docs+len(batch), sum.bytes+size
		sum.differ += p.compare(t, tok, what, batch)
		batch, size = batch[:0], 0
	}
	for doc := range each {
		batch, size = append(batch, doc), size+len(doc)
		if size > 4<<20 {
			flush()
		}
	}
	flush()
	t.Logf("%s: %d strings, %d bytes, %d differ", what, sum.docs, sum.bytes, sum.differ)
}

func setting(t *testing.T, name string, standard int) int {
	t.Helper()
	if s := os.Getenv(name); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return n
	}
	return standard
}

// alphabets are what random strings are drawn from: characters of every kind
// that normalizing or splitting treats in its own way.
var alphabets = [][]rune{
	[]rune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"), []rune("etaoin shrdlu "), []rune("0123456789٠١٢३४½²Ⅷ①"), []rune(" \t\n\r\v\f\u0085\u00a0\u1680\u2000\u2009\u2028\u2029\u202f\u205f\u3000"),
	[]rune("  \n"), []rune("'’.,;:!?\"()[]{}<>-–—_/\\|@#$%^&*+=~`"), []rune("éèüñçåÅøßœŁğışЯжщΩδאבגعربيहिन्दीไทย"), []rune("e\u0301a\u0300o\u0308\u0323\u0316\u0345\u0591\u093c\u09c7\u09be\u0b47\u0b56\u1100\u1161\u11a8\uac00"),
	[]rune("日本語中文字仮名한글ㄱㅏ"), []rune("😀👍🏽👨\u200d👩\u200d👧🇩🇪❤\ufe0f"), []rune("\x00\x01\x1f\x7f\u0080\u200b\u200e\u2060\ufeff\ufffd\ue000\U000e0001\U0010ffff"),
	[]rune("\u212b\u2126\u0958\ufb01\ufdfa\u01c4\U0001d15e\U0002f800\u0344\u2adc"),
}

var pieces = []string{"'s", "'re", "'ll", " the", " and", "<|endoftext|>", "<|padding|>", "<|", "|>", "http://", "\r\n", "    ", "                         ", "\n\n\n", "can't", "I'M"}

// randomString is a mix of a few alphabets, of pieces, or of any characters.
func randomString(r *rand.Rand) string {
	var b strings.Builder
	kinds := 1 + r.IntN(4)
	var use [][]rune
	for range kinds {
		use = append(use, alphabets[r.IntN(len(alphabets))])
	}
	for range r.IntN(60) {
		switch k := r.IntN(20); {
		case k == 0:
			b.WriteString(pieces[r.IntN(len(pieces))])
		case k == 1: // any character, surrogates aside
			c := rune(r.IntN(0x110000))
			if c >= 0xD800 && c < 0xE000 {
				c = 'x'
			}
			b.WriteRune(c)
		case k == 2: // a run of one
			a := use[r.IntN(kinds)]
			b.WriteString(strings.Repeat(string(a[r.IntN(len(a))]), r.IntN(30)))
		default:
			a := use[r.IntN(kinds)]
			b.WriteRune(a[r.IntN(len(a))])
		}
	}
	return b.String()
}

func TestPeerAgreesOnRandomStrings(t *testing.T) {
	tok, p := neox(t), startPeer(t)
	n := setting(t, "SCAVENGE_PEER_STRINGS", 5000)
	r := rand.New(rand.NewPCG(7, 7))
	p.batches(t, tok, "random Unicode strings", func(yield func(string) bool) {
		for range n {
			if !yield(randomString(r)) {
				return
			}
		}
	})
	p.batches(t, tok, "pathological strings", func(yield func(string) bool) {
		for _, s := range []string{"a", "^", " ", "ab", "\n", "\t ", "的", "e\u0301", "\u0301", "\u1100\u1161", "<|", "'s", "0", "😀", "\u00a0", "\r\n"} {
			for _, n := range []int{1000, 100000} {
				if !yield(strings.Repeat(s, n/len(s))) {
					return
				}
			}
		}
	})
}

// corpusFile yields the documents of a file of JSON lines, up to limit bytes.
func corpusFile(t *testing.T, path string, limit int) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		f, err := os.Open(path)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		z, err := zstd.NewReader(f)
		if err != nil {
			t.Error(err)
			return
		}
		defer z.Close()
		for d, size := json.NewDecoder(z), 0; limit == 0 || size < limit; {
			var row struct{ Text string }
			if err := d.Decode(&row); err == io.EOF {
				return
			} else if err != nil {
				t.Errorf("%s: %v", path, err)
				return
			}
			if size += len(row.Text); !yield(row.Text) {
				return
			}
		}
	}
}

func TestPeerAgreesOnTheCorpora(t *testing.T) {
	tok, p := neox(t), startPeer(t)
	limit := setting(t, "SCAVENGE_PEER_MB", 1) << 20
	for _, name := range []string{"wikitext/wiki.test.raw", "owt/openwebtext_train_rows_0-99.txt"} {
		text, err := os.ReadFile(filepath.Join(shared, name))
		if err != nil {
			t.Fatal(err)
		}
		p.batches(t, tok, name, func(yield func(string) bool) {
			if yield(string(text)) {
				for line := range strings.Lines(string(text)) {
					if !yield(line) {
						return
					}
				}
			}
		})
	}
	files, err := filepath.Glob(filepath.Join(shared, "*/*.jsonl.zst"))
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		p.batches(t, tok, filepath.Base(path), corpusFile(t, path, limit))
	}
}

// TestPeerSpeed times both on the same documents, in turns, in one run. It
// asserts nothing: the machine decides. Where others are at work on it, too,
// compare processor time.
func TestPeerSpeed(t *testing.T) {
	tok, p := neox(t), startPeer(t)
	var docs []string
	size := 0
	for doc := range corpusFile(t, filepath.Join(shared, "corpus/web-00000.jsonl.zst"), setting(t, "SCAVENGE_PEER_MB", 1)<<20) {
		docs, size = append(docs, doc), size+len(doc)
	}
	report := func(name string, clock, processor float64) {
		t.Logf("%6.2f MB/s, %6.2f MB for a second of processor time: %s", float64(size)/1e6/clock, float64(size)/1e6/processor, name)
	}
	used := func() float64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
	}
	p.send(t, "time", docs)
	var theirs struct {
		Versions string
		Seconds  map[string][2]float64
	}
	line, err := p.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &theirs)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d documents, %d bytes; tokenizers %s", len(docs), size, theirs.Versions)
	for name, seconds := range theirs.Seconds {
		report(name, seconds[0], seconds[1])
	}
	for _, name := range []string{"ours on one core, with an empty cache", "ours on one core, again"} {
		start, before := time.Now(), used()
		var ids []int32
		for _, d := range docs {
			ids = tok.AppendEncode(ids[:0], []byte(d))
		}
		report(name, time.Since(start).Seconds(), used()-before)
	}
}
