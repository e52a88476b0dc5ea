package transforms

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/scavenge/scavenge/schemas/tokenset"
)

// bad is input with something bad in it.
type bad struct {
	name, content string
	kind, want    string   // as it is counted, and a part of what is said
	left          []string // the documents that are taken when bad ones are skipped
}

func badInputs() []bad {
	lines := strings.Repeat("{\"text\": \"some text to compress\"}\n", 500)
	tar := tarred("a.txt", "first", "b.txt", "second")
	nested := func(archive string) string { return tarred("0.txt", "before", "d/1.xz", archive, "2.txt", "after") }
	around := []string{"before", "after"}
	inner := xzipped(tarred("x.txt", "inside", "y.txt", "inside too"))
	flipped := []byte(inner)
	flipped[len(flipped)/2] ^= 0x10
	bomb := gzipped(strings.Repeat("\x20", bombBytes+1<<20))
	return []bad{
		{"cut.jsonl.gz", gzipped(lines)[:60], badCut, "truncated", nil},
		{"cut.jsonl.zst", zstandard(lines)[:30], badCut, "truncated", nil},
		{"cut.jsonl.xz", xzipped(lines)[:60], badCut, "truncated", nil},
		{"no end.txt.gz", gzipped(lines)[:len(gzipped(lines))-4], badCut, "truncated", nil},
		{"tail.txt.zst", zstandard("text") + "tail", badDamaged, "damaged", nil},
		{"cut.tar", tar[:700], badCut, "truncated", nil},
		{"cut between members.tar", tar[:2048], badCut, "truncated", nil},
		{"cut.tar.xz", xzipped(tar)[:60], badCut, "truncated", nil},
		{"cut inside.tar", nested(inner[:len(inner)-20]), badCut, "d/1.xz: truncated", around},
		{"damaged inside.tar", nested(string(flipped)), badDamaged, "d/1.xz: damaged", around},
		{"cut tar inside.tar", nested(xzipped(tar[:700])), badCut, "d/1.xz: truncated", around},
		{"bomb.txt.gz", bomb, badBomb, "decompression bomb", nil},
		{"bomb inside.tar", nested(bomb), badBomb, "d/1.xz: a decompression bomb", around},
		{"bomb of bombs.gz", gzipped(bomb), badBomb, "decompression bomb", nil},
		{"deep.tar", strings.Repeat("", 1) + deep(), badTooDeep, "archives in one another", []string{"shallow"}},
		{"dictionary.xz", strings.Replace(xzipped("text"), "\x21\x01\x16", "\x21\x01\x28", 1), badDamaged, "dictionary", nil},
		{"up.tar", tarred("../up.txt", "bad", "ok.txt", "good"), badName, "leads out", []string{"good"}},
		{"root.tar", tarred("/etc/passwd", "bad", "ok.txt", "good"), badName, "leads out", []string{"good"}},
		{"windows.tar", tarred(`..\up.txt`, "bad", "ok.txt", "good"), badName, "leads out", []string{"good"}},
		{"link.tar", linked(), badFile, "link: a link", []string{"good"}},
		{"picture.tar", tarred("a.zip", "PK\x03\x04....", "ok.txt", "good"), badForm, "a.zip: it is a zip archive", []string{"good"}},
		{"d.zip", "PK\x03\x04....", badForm, "zip", nil},
		{"d.txt", "\xFF\xFEa\x00", badForm, "UTF-16", nil},
		{"a.jsonl", "{\"text\": \"fine\"}\n{\"text\": \"cut", badJSON, "line 2", []string{"fine"}},
		{"b.jsonl", "{\"txt\": \"\"}\n{\"text\": \"fine\"}\n", badNoText, "line 1: no \"text\"", []string{"fine"}},
		{"c.jsonl", "{\"text\": 5}\n{\"text\": \"fine\"}", badJSON, "line 1", []string{"fine"}},
		{"half.jsonl", "{\"text\": \"fine\"}\n{\"text\": \"\\ud83d!\"}", badUTF8, "line 2: half of a surrogate", []string{"fine"}},
		{"latin1.jsonl", "{\"text\": \"caf\xe9\"}\n{\"text\": \"fine\"}", badUTF8, "line 1: invalid UTF-8 at byte 13", []string{"fine"}},
		{"latin1.txt", "caf\xe9", badUTF8, "invalid UTF-8 at byte 3", nil},
		{"nul.txt", "a\x00b", badNUL, "NUL byte at byte 1", nil},
		{"nul.jsonl", "{\"text\": \"a\\u0000\"}\n{\"text\": \"fine\"}", badNUL, "line 1: NUL", []string{"fine"}},
		{"long.txt", strings.Repeat("long ", 300), badLong, "more than 1000 bytes", nil},
		{"long.jsonl", "{\"text\": \"" + strings.Repeat("long ", 300) + "\"}\n{\"text\": \"fine\"}", badLong, "line 1: a document of more than 1000", []string{"fine"}},
		{"endless.jsonl", "{\"text\": \"" + strings.Repeat("long ", 300000) + "\"}\n{\"text\": \"fine\"}", badLong, "line 1: a line of 1500013 bytes", []string{"fine"}},
		{"long.tar", tarred("a.txt", strings.Repeat("long ", 300), "ok.txt", "good"), badLong, "a.txt: a document of more than 1000", []string{"good"}},
		{"null.parquet", parquetOf("a", "null", "b"), badNoText, "row 1: no \"text\"", []string{"a", "b"}},
		{"bytes.parquet", parquetOf("a", "b\xff", "c\x00", "d"), badUTF8, "row 1: invalid UTF-8", []string{"a", "d"}},
		{"cut.parquet", parquetOf("a", "b")[:40], badDamaged, "Parquet", nil},
	}
}

// deep is a document, and one that lies in more archives than are opened.
func deep() string {
	s := "deep down"
	for range maxDepth + 1 {
		s = gzipped(s)
	}
	return tarred("a.txt", "shallow", "b.gz", s)
}

func linked() string {
	s := []byte(tarred("link", "", "ok.txt", "good"))
	s[156] = '2' // a symbolic link; its checksum goes up by as much as the letter
	sum := 0
	copy(s[148:156], "        ")
	for _, c := range s[:512] {
		sum += int(c)
	}
	copy(s[148:], fmt.Sprintf("%06o\x00 ", sum))
	return string(s)
}

func TestBadInputIsOneClearLineOrSkippedAndCounted(t *testing.T) {
	for _, c := range badInputs() {
		path := put(t, c.name, c.content)
		rules := Rules{MaxDocument: 1000}
		_, _, err := readAll(t, path, 1<<20, rules)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; want a line with the path and %q", c.name, err, c.want)
		}
		rules.Skip = true
		got, omitted, err := readAll(t, path, 1<<20, rules)
		var whole *badDocument
		if errors.As(err, &whole) { // the file is left out, by who reads it
			if c.left != nil {
				t.Errorf("%s: all of it is given up: %v", c.name, err)
			}
			got.docs = nil
			omitted.Add(whole.kind, path+": "+whole.Error())
		} else if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if !slices.Equal(got.docs, c.left) {
			t.Errorf("%s: %.80q are left, want %q", c.name, got.docs, c.left)
		}
		if omitted.Bad[c.kind] == 0 || !strings.Contains(strings.Join(omitted.Named, "\n"), c.want) || !strings.Contains(omitted.Named[0], path) {
			t.Errorf("%s: counted as %v, named %q; want %s and %q", c.name, omitted.Bad, omitted.Named, c.kind, c.want)
		}
	}
}

func TestEmptyDocumentsAreCounted(t *testing.T) {
	got, omitted, err := readAll(t, put(t, "a.jsonl", "{\"text\": \"\"}\n{\"text\": \"a\"}\n\n{\"text\": \"\"}"), 1<<20, Rules{})
	if err != nil || omitted.Empty != 2 || omitted.Total() != 0 || !slices.Equal(got.docs, []string{"a"}) {
		t.Errorf("%q, %+v, %v", got.docs, omitted, err)
	}
}

// Damage anywhere in an archive is an error or, where it only hits what a
// reader skips, leaves the text as it was.
func TestDamagedArchivesNeverGiveOtherText(t *testing.T) {
	text := strings.Repeat("some text to compress, ", 30)
	for name, whole := range map[string]string{"a.txt.gz": gzipped(text), "a.txt.zst": zstandard(text), "a.txt.xz": xzipped(text), "a.tar.xz": xzipped(tarred("a.txt", text))} {
		for i := 6; i < len(whole); i += 3 {
			damaged := []byte(whole)
			damaged[i] ^= 0x55
			got, _, err := readAll(t, put(t, name, string(damaged)), 1<<20, Rules{})
			if err == nil && (len(got.docs) != 1 || got.docs[0] != text) {
				t.Errorf("%s with byte %d changed: %.60q", name, i, got.docs)
			}
			if cut, _, err := readAll(t, put(t, name, whole[:i]), 1<<20, Rules{}); err == nil {
				t.Errorf("%s cut at %d: no error, %.60q", name, i, cut.docs)
			}
		}
	}
}

func TestCleaningIsTheHubLoaders(t *testing.T) {
	for text, want := range map[string]string{
		"a\nb\n\nc":                 "a\nb\n\nc",
		"\n\n a\n\n\nb \n\n\n\n\nc": "a\n\nb \n\nc",
		"a\n\n\n\n":                 "a",
		"\u00a0\u3000a\u2028\x1c":   "a",
		"\ufeffa\u200b":             "\ufeffa\u200b",
		" \n\n\n\n ":                "",
		"a\n\n\n\nb\n\n\nc\n\n d":   "a\n\nb\n\nc\n\n d",
		"\n\n\n":                    "",
	} {
		if got := cleanOpenWebText([]byte(text)); string(got) != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// Of any input, bad documents skipped, what comes out is valid text within the
// limits, the same each time, and nothing but a damaged file is an error.
func FuzzRead(f *testing.F) {
	for _, c := range badInputs() {
		if len(c.content) < 1<<16 {
			f.Add([]byte(c.content), layout(c.name) == layoutLines)
		}
	}
	f.Add([]byte("{\"text\": \"a\", \"meta\": {\"n\": [1, 2.5e-3, null]}}\n\n{\"text\": \"b\\n\"}"), true)
	f.Add([]byte(xzipped(tarred("o/1.xz", xzipped(tarred("a.txt", "one"))))), false)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte, lines bool) {
		name := filepath.Join(dir, "a")
		if lines {
			name += ".jsonl"
		}
		if err := os.WriteFile(name, data, 0o666); err != nil {
			t.Fatal(err)
		}
		rules := Rules{MaxDocument: 1000, Skip: true, Clean: CleanOpenWebText}
		once, first, err := readAll(t, name, 1<<20, rules)
		var whole *badDocument
		if err != nil && !errors.As(err, &whole) {
			t.Fatalf("not said to be bad: %v", err)
		}
		for _, doc := range once.docs {
			if len(doc) == 0 || len(doc) > 1000 || !utf8.ValidString(doc) || strings.Contains(doc, "\x00") {
				t.Fatalf("taken: %.80q", doc)
			}
		}
		if total := first.Total(); total < int64(len(first.Named)) {
			t.Fatalf("%d bad, %d named", total, len(first.Named))
		}
		if twice, second, _ := readAll(t, name, 1<<20, rules); !slices.Equal(once.docs, twice.docs) || first.Total() != second.Total() {
			t.Fatalf("%q and then %q", once.docs, twice.docs)
		}
	})
}

// A document that cannot be handed on is no bad document: a full disk must
// end a run, whatever is to be skipped.
func TestAnErrorOfTheReceiverIsNotSkipped(t *testing.T) {
	full := errors.New("no space left on device")
	for name, content := range map[string]string{"a.jsonl": "{\"text\": \"a\"}", "a.txt.gz": gzipped("a"), "a.tar.xz": xzipped(tarred("a.txt", "a")),
		"b.tar": tarred("a.xz", xzipped(tarred("a.txt", "a"))), "a.parquet": parquetOf("a")} {
		groups, err := planned([]string{put(t, name, content)}, 0)
		if err != nil {
			t.Fatal(err)
		}
		var omitted tokenset.Omitted
		_, err = groups[0].Pieces[0].read(context.Background(), failing{full}, Rules{Skip: true}, &omitted)
		var whole *badDocument
		if !errors.Is(err, full) || errors.As(err, &whole) || omitted.Total() != 0 {
			t.Errorf("%s: %v, %+v", name, err, omitted)
		}
	}
}

type failing struct{ err error }

func (f failing) document([]byte) error { return f.err }
func (f failing) read(int64)            {}
