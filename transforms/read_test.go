package transforms

import (
	"archive/tar"
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
	"github.com/parquet-go/parquet-go"
	"github.com/ulikunitz/xz"

	"github.com/scavenge/scavenge/schemas/tokenset"
)

// collector keeps documents.
type collector struct {
	docs  []string
	bytes int64
}

func (c *collector) document(text []byte) error { c.docs = append(c.docs, string(text)); return nil }
func (c *collector) read(bytes int64)           { c.bytes += bytes }

func put(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// readAll plans one file and reads all its pieces in order.
func readAll(t testing.TB, path string, groupBytes int64, rules Rules) (c collector, omitted tokenset.Omitted, err error) {
	t.Helper()
	groups, err := planned([]string{path}, groupBytes)
	if err != nil {
		return c, omitted, err
	}
	for _, g := range groups {
		for _, p := range g.Pieces {
			if _, err := p.read(context.Background(), &c, rules, &omitted); err != nil {
				return c, omitted, err
			}
		}
	}
	return c, omitted, nil
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

func xzipped(s string) string {
	var b bytes.Buffer
	w, _ := xz.NewWriter(&b)
	w.Write([]byte(s))
	w.Close()
	return b.String()
}

// bzipped is {"text": "one"} and {"text": "two"}, each on a line.
const bzipped = "\x42\x5a\x68\x39\x31\x41\x59\x26\x53\x59\xdb\xed\x69\xe6\x00\x00\x0e\x59\x80\x00\x10\x50\x00\x00\x10\x02\x01\x84\xca\x20\x00\x31\x03\x40\xd0\x12\xa6\x8f\x53\x4c\x9e\x8c\x45\x09\x91\x75\x45\xc8\xbe\x99\x1a\x52\x33\x86\x0b\xb9\x22\x9c\x28\x48\x6d\xf6\xb4\xf3\x00"

// tarred makes a tar of names and contents, in turns.
func tarred(members ...string) string {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(members); i += 2 {
		w.WriteHeader(&tar.Header{Name: members[i], Size: int64(len(members[i+1])), Mode: 0o644, Format: tar.FormatUSTAR})
		w.Write([]byte(members[i+1]))
	}
	w.Close()
	return b.String()
}

func parquetOf(texts ...string) string {
	type row struct {
		Text *string `parquet:"text"`
	}
	var b bytes.Buffer
	w := parquet.NewGenericWriter[row](&b, parquet.MaxRowsPerRowGroup(2), parquet.Compression(&parquet.Snappy))
	for i := range texts {
		r := row{&texts[i]}
		if texts[i] == "null" {
			r.Text = nil
		}
		w.Write([]row{r})
	}
	w.Close()
	return b.String()
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
		{"a.jsonl.xz", xzipped(lines), want},
		{"a.jsonl.bz2", bzipped, []string{"one", "two"}},
		{"two streams.xz", xzipped(lines+"\n") + xzipped(`{"text": "more"}`), append(slices.Clone(want), "more")},
		{"a.tar", tarred("b.txt", "from a tar", "c.jsonl", lines), append([]string{"from a tar"}, want...)},
		{"a.tar.gz", gzipped(tarred("d/b.txt", "from a tar", "d/e.gz", gzipped("zipped"))), []string{"from a tar", "zipped"}},
		{"owt.tar.xz", xzipped(tarred("o/1_data.xz", xzipped(tarred("0-a.txt", "one", "1-b.txt", "two")), "o/2_data.xz", xzipped(tarred("2-c.txt", "three")))), []string{"one", "two", "three"}},
		{"a.parquet", parquetOf("one", "téo\n", "😀"), want},
		{"says nothing either", parquetOf("one", "téo\n", "😀"), want},
		{"prose", "{\"not\": \"a document\"}\n", []string{"{\"not\": \"a document\"}\n"}},
	} {
		got, _, err := readAll(t, put(t, c.name, c.content), 1<<20, Rules{})
		if err != nil || !slices.Equal(got.docs, c.want) {
			t.Errorf("%s: %q, %v; want %q", c.name, got.docs, err, c.want)
		}
		if got.bytes != int64(len(c.content)) && !strings.HasPrefix(c.content, "PAR1") {
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
	var alternating strings.Builder // lines with escapes and without, over several buffers
	var both []string
	for i := range 2000 {
		doc := fmt.Sprint(i, strings.Repeat([]string{" plain", " with\nlines"}[i%2], 20+i*i%200))
		both = append(both, doc)
		line, _ := json.Marshal(map[string]string{"text": doc})
		alternating.Write(append(line, '\n'))
	}
	for _, c := range []struct {
		content string
		want    []string
		sizes   []int64
	}{
		{alternating.String(), both, []int64{100000, 1 << 30}},
		{"{\"text\":\"a\"}\n\n{\"text\":\"b\"}\n{\"text\":\"c\"}", []string{"a", "b", "c"}, []int64{1, 2, 3, 7, 13, 14, 15, 16}},
		{content.String(), long, []int64{4096, 65536, 300000, 1 << 30}},
	} {
		path := put(t, "a.jsonl", c.content)
		for _, size := range c.sizes {
			got, _, err := readAll(t, path, size, Rules{})
			if err != nil || !slices.Equal(got.docs, c.want) {
				t.Errorf("pieces of %d bytes: %d documents, want %d; %v", size, len(got.docs), len(c.want), err)
			}
			if got.bytes > int64(len(c.content)) {
				t.Errorf("pieces of %d bytes: %d bytes of progress, the file has %d", size, got.bytes, len(c.content))
			}
		}
	}
}

func TestAFileThatGrowsIsAnError(t *testing.T) {
	path := put(t, "a.txt", "text")
	groups, err := planned([]string{path}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("more text"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := groups[0].Pieces[0].read(context.Background(), new(collector), Rules{}, new(tokenset.Omitted)); err == nil || !strings.Contains(err.Error(), "written to") {
		t.Errorf("%v", err)
	}
}
