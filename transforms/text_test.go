package transforms

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// collector keeps documents.
type collector struct {
	docs  []string
	bytes int64
}

func (c *collector) document(text []byte) error { c.docs = append(c.docs, string(text)); return nil }
func (c *collector) read(bytes int64)           { c.bytes += bytes }

func put(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// readAll plans one file and reads all its pieces in order.
func readAll(t *testing.T, path string, shardBytes int64) (c collector, replaced int64, err error) {
	t.Helper()
	groups, err := Plan([]string{path}, shardBytes)
	if err != nil {
		return c, 0, err
	}
	for _, g := range groups {
		for _, p := range g.Pieces {
			d, err := p.read(context.Background(), &c)
			if err != nil {
				return c, 0, err
			}
			replaced += d.Replaced
		}
	}
	return c, replaced, nil
}

func gzipped(s string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write([]byte(s))
	w.Close()
	return b.String()
}

func zstandard(s string) string {
	w, _ := zstd.NewWriter(nil)
	defer w.Close()
	return string(w.EncodeAll([]byte(s), nil))
}

func TestLayoutAndCompressionAreRecognised(t *testing.T) {
	lines := "{\"text\": \"one\", \"meta\": {\"n\": 1}}\n\n  {\"meta\": null, \"text\": \"t\\u00e9o\\n\"}\r\n{\"text\": \"\\ud83d\\ude00\"}"
	want := []string{"one", "téo\n", "😀"}
	for _, c := range []struct {
		name, content string
		want          []string
	}{
		{"a.jsonl", lines, want},
		{"a.jsonl.gz", gzipped(lines), want},
		{"a.jsonl.zst", zstandard(lines), want},
		{"two frames.jsonl.zst", zstandard(lines+"\n") + zstandard(`{"text": "more"}`), append(slices.Clone(want), "more")},
		{"two members.jsonl.gz", gzipped(lines+"\n") + gzipped(`{"text": "more"}`), append(slices.Clone(want), "more")},
		{"says gzip, is zstd.jsonl.gz", zstandard(lines), want},
		{"says nothing", zstandard(lines), want},
		{"says zstd, is plain.jsonl.zst", lines, want},
		{"byte order mark.jsonl", "\uFEFF" + lines, want},
		{"json in.txt", lines, []string{lines}},
		{"a.txt", "one\n\ntwo\r\n", []string{"one\n\ntwo\r\n"}},
		{"a.txt.gz", gzipped("text\n"), []string{"text\n"}},
		{"prose", "{\"not\": \"a document\"}\n", []string{"{\"not\": \"a document\"}\n"}},
	} {
		got, _, err := readAll(t, put(t, c.name, c.content), 1<<20)
		if err != nil || !slices.Equal(got.docs, c.want) {
			t.Errorf("%s: %q, %v; want %q", c.name, got.docs, err, c.want)
		}
		if got.bytes != int64(len(c.content)) {
			t.Errorf("%s: %d bytes of progress, the file has %d", c.name, got.bytes, len(c.content))
		}
	}
}

// However a file is cut, each line is read once, in order, by the piece in
// which it begins.
func TestPiecesOfAFileHoldEachLineOnce(t *testing.T) {
	var content strings.Builder
	var long []string
	for i := range 200 {
		doc := fmt.Sprint("document ", i, strings.Repeat(" word", i*i%37))
		if i == 100 {
			doc = strings.Repeat("a long line ", 40000) // over the read buffer and many pieces
		}
		long = append(long, doc)
		line, _ := json.Marshal(map[string]string{"text": doc})
		content.Write(line)
		if i < 199 {
			content.WriteString(strings.Repeat("\n", 1+i%3))
		}
	}
	for _, c := range []struct {
		content string
		want    []string
		sizes   []int64
	}{
		{"{\"text\":\"a\"}\n\n{\"text\":\"b\"}\n{\"text\":\"c\"}", []string{"a", "b", "c"}, []int64{1, 2, 3, 7, 13, 14, 15, 16}},
		{content.String(), long, []int64{4096, 65536, 300000, 1 << 30}},
	} {
		path := put(t, "a.jsonl", c.content)
		for _, size := range c.sizes {
			got, _, err := readAll(t, path, size)
			if err != nil || !slices.Equal(got.docs, c.want) {
				t.Errorf("pieces of %d bytes: %d documents, want %d; %v", size, len(got.docs), len(c.want), err)
			}
			if got.bytes > int64(len(c.content)) {
				t.Errorf("pieces of %d bytes: %d bytes of progress, the file has %d", size, got.bytes, len(c.content))
			}
		}
	}
}

func TestBadInputIsOneClearLine(t *testing.T) {
	lines := strings.Repeat("{\"text\": \"some text to compress\"}\n", 500)
	tar := make([]byte, 1024)
	copy(tar[257:], "ustar\x0000")
	for _, c := range []struct{ name, content, want string }{
		{"cut.jsonl.gz", gzipped(lines)[:60], "truncated"},
		{"cut.jsonl.zst", zstandard(lines)[:30], "truncated"},
		{"no end.txt.gz", gzipped(lines)[:len(gzipped(lines))-4], "truncated"},
		{"tail.txt.zst", zstandard("text") + "tail", "damaged"},
		{"a.jsonl", "{\"text\": \"fine\"}\n{\"text\": \"cut", "line 2"},
		{"b.jsonl", "{\"text\": \"fine\"}\n{\"txt\": \"\"}\n", "line 2: no \"text\""},
		{"c.jsonl", "{\"text\": 5}\n", "line 1"},
		{"d.txt.xz", "\xFD7zXZ\x00....", "xz"},
		{"d.bz2", "BZh9....", "bzip2"},
		{"d.parquet", "PAR1....", "Parquet"},
		{"d.tar", string(tar), "tar"},
		{"d.tar.gz", gzipped(string(tar)), "tar"},
		{"d.txt", "\xFF\xFEa\x00", "UTF-16"},
	} {
		path := put(t, c.name, c.content)
		_, _, err := readAll(t, path, 1<<20)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; want a line with the path and %q", c.name, err, c.want)
		}
	}
}

// Damage anywhere in an archive is an error or, where it only hits what a
// reader skips, leaves the text as it was.
func TestDamagedArchivesNeverGiveOtherText(t *testing.T) {
	text := strings.Repeat("some text to compress, ", 30)
	for name, whole := range map[string]string{"a.txt.gz": gzipped(text), "a.txt.zst": zstandard(text)} {
		for i := 4; i < len(whole); i += 3 {
			damaged := []byte(whole)
			damaged[i] ^= 0x55
			got, _, err := readAll(t, put(t, name, string(damaged)), 1<<20)
			if err == nil && (len(got.docs) != 1 || got.docs[0] != text) {
				t.Errorf("%s with byte %d changed: %.60q", name, i, got.docs)
			}
			if cut, _, err := readAll(t, put(t, name, whole[:i]), 1<<20); err == nil {
				t.Errorf("%s cut at %d: no error, %.60q", name, i, cut.docs)
			}
		}
	}
}

func TestInvalidUTF8IsReplacedAndCounted(t *testing.T) {
	got, n, err := readAll(t, put(t, "a.jsonl", "{\"text\": \"a\xff\xe4\xb8b\"}\n{\"text\": \"\xf0\x9f\"}\n"), 1<<20)
	if err != nil || n != 3 || !slices.Equal(got.docs, []string{"a\uFFFD\uFFFDb", "\uFFFD"}) {
		t.Errorf("%q, %d, %v", got.docs, n, err)
	}
	got, n, err = readAll(t, put(t, "a.txt", "caf\xe9"), 1<<20)
	if err != nil || n != 1 || !slices.Equal(got.docs, []string{"caf\uFFFD"}) {
		t.Errorf("%q, %d, %v", got.docs, n, err)
	}
}

func TestAFileThatGrowsIsAnError(t *testing.T) {
	path := put(t, "a.txt", "text")
	groups, err := Plan([]string{path}, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("more text"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := groups[0].Pieces[0].read(context.Background(), new(collector)); err == nil || !strings.Contains(err.Error(), "being written") {
		t.Errorf("%v", err)
	}
}

func TestPlanGroupsFilesInTheOrderOfTheirNames(t *testing.T) {
	dir := t.TempDir()
	for i, size := range []int{100, 200, 300, 1000, 50, 60} {
		os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.txt", i)), bytes.Repeat([]byte("x"), size), 0o666)
	}
	os.WriteFile(filepath.Join(dir, "big.jsonl"), bytes.Repeat([]byte("\n"), 1300), 0o666)
	os.Mkdir(filepath.Join(dir, "folder"), 0o777)
	groups, err := Plan([]string{filepath.Join(dir, "[3-9].txt"), filepath.Join(dir, "*"), filepath.Join(dir, "0.txt")}, 500)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i, g := range groups {
		var s []string
		for _, p := range g.Pieces {
			s = append(s, fmt.Sprintf("%s %d-%d", filepath.Base(p.Name), p.Start, p.End))
		}
		got = append(got, strings.Join(s, ", "))
		if g.Index != i || g.Of != len(groups) {
			t.Errorf("group %d says that it is %d of %d", i, g.Index, g.Of)
		}
	}
	want := []string{"0.txt 0-100, 1.txt 0-200", "2.txt 0-300", "3.txt 0-1000", "4.txt 0-50, 5.txt 0-60", "big.jsonl 0-433", "big.jsonl 433-866", "big.jsonl 866-1300"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestPlanRefusesWhatItCannotRead(t *testing.T) {
	dir := t.TempDir()
	os.Mkdir(filepath.Join(dir, "sub"), 0o777)
	for _, c := range []struct{ glob, want string }{
		{filepath.Join(dir, "none"), "no such file"}, {filepath.Join(dir, "*.txt"), "no such file"}, {dir, "a folder"},
		{filepath.Join(dir, "*"), "folders only"}, {"[", "glob"}, {os.DevNull, "not a regular file"},
	} {
		if _, err := Plan([]string{c.glob}, 100); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.glob) {
			t.Errorf("%s: %v, want %q", c.glob, err, c.want)
		}
	}
	if _, err := Plan(nil, 100); err == nil {
		t.Error("no globs: no error")
	}
}

func TestChosenIsAFairDrawOfSeedAndText(t *testing.T) {
	const n = 20000
	var train, both, other int
	for i := range n {
		text := fmt.Append(nil, "document ", i)
		a, b := chosen(1, "validation", text, 0.25), chosen(1, "sample", text, 0.25)
		if a != chosen(1, "validation", text, 0.25) {
			t.Fatal("two draws differ")
		}
		if a {
			train++
			if !chosen(1, "validation", text, 0.5) {
				t.Fatal("a larger share does not hold the smaller")
			}
		}
		if a && b {
			both++
		}
		if a && chosen(2, "validation", text, 0.25) {
			other++
		}
	}
	for what, c := range map[string][2]float64{"chosen": {float64(train) / n, 0.25}, "by two purposes": {float64(both) / n, 0.0625}, "by two seeds": {float64(other) / n, 0.0625}} {
		if c[0] < c[1]*0.9 || c[0] > c[1]*1.1 {
			t.Errorf("%s: %.4f, want about %.4f", what, c[0], c[1])
		}
	}
	if chosen(1, "sample", nil, 0) || !chosen(1, "sample", nil, 1) {
		t.Error("shares 0 and 1 are not none and all")
	}
}
