package tokenizer

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// shared is the folder of large real inputs; tests that need it are skipped
// where it is absent. testdata holds a small set of the same kind.
const shared = "../../../shared/data"

// golden is one case of Hugging Face tokenizers' output.
type golden struct {
	Variant string  `json:"variant"` // of testdata/variants.json
	Text    string  `json:"text"`
	IDs     []int32 `json:"ids"`
	Decoded *string `json:"decoded"`
}

func readGolden(t testing.TB, path string) []golden {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var cases []golden
	for d := json.NewDecoder(bufio.NewReader(f)); d.More(); {
		var c golden
		if err := d.Decode(&c); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		cases = append(cases, c)
	}
	if len(cases) == 0 {
		t.Fatalf("%s: no cases", path)
	}
	return cases
}

func checkGolden(t *testing.T, tok *Tokenizer, cases []golden) {
	t.Helper()
	bad := 0
	for _, c := range cases {
		got := tok.Encode(c.Text)
		if !slices.Equal(got, c.IDs) {
			if bad++; bad <= 3 {
				t.Errorf("%.200q:\n got %.40v\nwant %.40v", c.Text, got, c.IDs)
			}
			continue
		}
		if text, err := tok.Decode(got); err != nil {
			t.Errorf("decoding %.200q: %v", c.Text, err)
		} else if c.Decoded != nil && text != *c.Decoded {
			t.Errorf("decoding %.200q: %.200q, want %.200q", c.Text, text, *c.Decoded)
		}
	}
	if bad > 3 {
		t.Errorf("%d of %d cases differ", bad, len(cases))
	}
}

func neox(t testing.TB) *Tokenizer {
	t.Helper()
	path := filepath.Join(shared, "tokenizer/20B_tokenizer.json")
	if _, err := os.Stat(path); err != nil {
		t.Skip("no ../shared")
	}
	tok, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestNeoXAgreesWithHuggingFace(t *testing.T) {
	tok := neox(t)
	checkGolden(t, tok, readGolden(t, filepath.Join(shared, "tokenizer/golden.jsonl")))
	if tok.Vocab() != 50277 {
		t.Errorf("Vocab() = %d, want 50277", tok.Vocab())
	}
	if id, ok := tok.EndOfText(); id != 0 || !ok {
		t.Errorf("EndOfText() = %d, %v", id, ok)
	}
	if want := "56ac4821e129d2c520fdaba60abd920fa852ada51b45c0dd52bbb6bd8c985ade"; tok.Fingerprint() != want {
		t.Errorf("Fingerprint() = %s", tok.Fingerprint())
	}
}

func TestNeoXOnWholeFiles(t *testing.T) {
	tok := neox(t)
	for _, c := range []struct {
		file   string
		tokens int
		sum    string // of the ids as little-endian uint16
	}{
		{"wikitext/wiki.test.raw", 287159, "abaec7c8eaf1f0006ef0c54e94d8d9821f2630b67d76527a5893c60ebc1c7961"},
		{"owt/openwebtext_train_rows_0-99.txt", 113183, "cc323039ca978bdc9a49348dc441cb577ac21d12c666b97ec77ea5c8666d892e"},
	} {
		text, err := os.ReadFile(filepath.Join(shared, c.file))
		if err != nil {
			t.Fatal(err)
		}
		ids := tok.AppendEncode(nil, text)
		h := sha256.New()
		for _, id := range ids {
			h.Write(binary.LittleEndian.AppendUint16(nil, uint16(id)))
		}
		if got := hex.EncodeToString(h.Sum(nil)); len(ids) != c.tokens || got != c.sum {
			t.Errorf("%s: %d tokens, sha256 %s; want %d, %s", c.file, len(ids), got, c.tokens, c.sum)
		}
		if back, err := tok.Decode(ids); err != nil || back != string(text) {
			t.Errorf("%s: decoding does not give the file back (%v)", c.file, err)
		}
	}
}
