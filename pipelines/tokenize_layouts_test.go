package pipelines

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go"
	"github.com/ulikunitz/xz"

	"github.com/scavenge/scavenge/schemas/tokenset"
	"github.com/scavenge/scavenge/transforms"
)

func xzipped(t *testing.T, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := xz.NewWriter(&b)
	if err == nil {
		_, err = w.Write(content)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipOf(content string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write([]byte(content))
	w.Close()
	return b.String()
}

type file struct {
	name    string
	content []byte
}

func tarred(t *testing.T, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Size: int64(len(f.content)), Mode: 0o644, Format: tar.FormatUSTAR}); err != nil {
			t.Fatal(err)
		}
		w.Write(f.content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layouts puts the documents into a folder in each of the layouts that text is
// published in, and gives what --input each is named by.
func layouts(t *testing.T, dir string, docs []string) map[string][]string {
	t.Helper()
	put := func(name string, content []byte) string {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o666); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var subsets []file // the published archive: 15 documents in each of its xz
	for at := 0; at < len(docs); at += 15 {
		var members []file
		for i, doc := range docs[at:min(at+15, len(docs))] {
			members = append(members, file{fmt.Sprintf("%07d-%032x.txt", at+i, at+i), []byte(doc)})
		}
		subsets = append(subsets, file{fmt.Sprintf("openwebtext/urlsf_subset00-%d_data.xz", at/15), xzipped(t, tarred(t, members...))})
	}
	var plain, pile bytes.Buffer
	var texts []struct {
		Text string `parquet:"text"`
	}
	half := 0 // where the second half of the documents begins
	for i, doc := range docs {
		if i == len(docs)/2 {
			half = plain.Len()
		}
		for _, out := range []struct {
			w *bytes.Buffer
			v any
		}{{&plain, map[string]string{"text": doc}}, {&pile, map[string]any{"text": doc, "meta": map[string]any{"pile_set_name": "OpenWebText2", "n": i}}}} {
			e := json.NewEncoder(out.w)
			e.SetEscapeHTML(i%2 == 0)
			if err := e.Encode(out.v); err != nil {
				t.Fatal(err)
			}
		}
		texts = append(texts, struct {
			Text string `parquet:"text"`
		}{doc})
		put(fmt.Sprintf("folder/%d/%d.txt", i%7, i), []byte(doc))
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, part := range [][]byte{plain.Bytes()[:half], plain.Bytes()[half:]} {
		put(fmt.Sprintf("lines/%d.jsonl", 9-i), part) // the second half comes first
	}
	for _, s := range subsets {
		put("extracted/"+s.name, s.content)
	}
	for i := range 2 {
		n := len(texts) / 2
		var b bytes.Buffer
		w := parquet.NewGenericWriter[struct {
			Text string `parquet:"text"`
		}](&b, parquet.MaxRowsPerRowGroup(16), parquet.Compression(&parquet.Snappy))
		if _, err := w.Write(texts[i*n : n+i*(len(texts)-n)]); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		put(fmt.Sprintf("data/train-%05d-of-00002.parquet", i), b.Bytes())
	}
	return map[string][]string{
		"the original archive":      {put("openwebtext.tar.xz", xzipped(t, tarred(t, subsets...)))},
		"its xz archives":           {filepath.Join(dir, "extracted/openwebtext/*_data.xz")},
		"the Hub's tar":             {put("urlsf_subset00.tar", tarred(t, subsets...))},
		"the Hub's Parquet":         {filepath.Join(dir, "data/*.parquet")},
		"JSON lines, zstd":          {put("pile.jsonl.zst", z.EncodeAll(pile.Bytes(), nil))},
		"JSON lines, gzip":          {put("a.jsonl.gz", []byte(gzipOf(plain.String())))},
		"JSON lines, xz":            {put("a.jsonl.xz", xzipped(t, plain.Bytes()))},
		"JSON lines in two files":   {filepath.Join(dir, "lines")},
		"plain files in folders":    {filepath.Join(dir, "folder")},
		"standard input, lines":     {Stdin},
		"half of it here and there": {filepath.Join(dir, "data/train-00000-*"), filepath.Join(dir, "lines/8.jsonl")},
	}
}

// The same documents give the same token set to the byte, whatever they are
// wrapped in and whatever order and groups they come in.
func TestTheSameDocumentsInEveryLayoutGiveTheSameTokenSet(t *testing.T) {
	c := newCorpus(t)
	docs := append(c.docs, "twice", "twice", "a line\nof \"several\" \\ and é 日本 😀 \u2028</script>")
	for i := range 3 {
		docs = append(docs, strings.Repeat(fmt.Sprint("long ", i), 10000))
	}
	var want map[string]string
	var corpusOf string
	all := layouts(t, t.TempDir(), docs)
	names := []string{"JSON lines, zstd"}
	for name := range all {
		if name != names[0] {
			names = append(names, name)
		}
	}
	var lines bytes.Buffer
	for _, doc := range docs {
		json.NewEncoder(&lines).Encode(map[string]string{"text": doc})
	}
	for i, name := range names {
		o := c.options(fmt.Sprint("set", i))
		o.Inputs, o.GroupBytes, o.RunTokens, o.ShardTokens = all[name], 4096<<(i%3), 500<<i, 400
		o.Sequences, o.Subsets = 100, []transforms.Subset{{Name: "small", Tokens: 500}}
		o.Stdin = bytes.NewReader(lines.Bytes())
		set := tokenize(t, o)
		got := files(t, o.Output)
		delete(got, tokenset.ManifestFile) // it names the inputs
		if want == nil {
			want, corpusOf = got, set.Manifest.Corpus
			if n := set.Manifest.Splits[tokenset.Train]; len(n.Shards) < 4 || n.Documents+set.Manifest.Splits[tokenset.Validation].Documents != int64(len(docs)) {
				t.Fatalf("%+v", n)
			}
			continue
		}
		if set.Manifest.Corpus != corpusOf {
			t.Errorf("%s: other documents", name)
		}
		sameFiles(t, got, want)
		if t.Failed() {
			t.Fatalf("in %s", name)
		}
	}
}

// The samples of the published layouts hold the same documents, the text of
// the originals cleaned as the Hub's loader does.
func TestRealSamplesInEveryLayoutGiveTheSameTokenSet(t *testing.T) {
	const data = "../../shared/data/"
	if _, err := os.Stat(data); err != nil {
		t.Skip("no ../shared")
	}
	formats := data + "owt/formats/"
	want := map[string]map[string]string{}
	for input, documents := range map[string]string{"openwebtext/*.xz": "OpenWebText", "urlsf_subset00.tar": "OpenWebText", "plain_text/*.parquet": "OpenWebText",
		"pile_style.jsonl.zst": "OpenWebText2", "openwebtext2_style.jsonl.zst": "OpenWebText2"} {
		o := TokenizeOptions{Inputs: []string{formats + input}, Tokenizer: data + "tokenizer/20B_tokenizer.json", Output: filepath.Join(t.TempDir(), "set"), SeqLen: 256, Validation: 0.1,
			Clean: transforms.CleanOpenWebText, ShardTokens: 16384, Quiet: true, Log: new(bytes.Buffer)}
		set := tokenize(t, o)
		got := files(t, o.Output)
		delete(got, tokenset.ManifestFile)
		if want[documents] == nil {
			want[documents] = got
			if n := set.Manifest.Splits[tokenset.Train].Documents + set.Manifest.Splits[tokenset.Validation].Documents; n != 40 {
				t.Errorf("%d documents, want 40", n)
			}
			continue
		}
		sameFiles(t, got, want[documents])
		if t.Failed() {
			t.Fatalf("in %s", input)
		}
	}
}
