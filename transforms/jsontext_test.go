package transforms

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

// reference is jsonText by way of encoding/json, which cannot tell halves of
// surrogate pairs from U+FFFD.
func reference(line []byte) (text *string, ok bool) {
	var members map[string]json.RawMessage
	if json.Unmarshal(line, &members) != nil || members == nil {
		return nil, false
	}
	raw, there := members["text"]
	if there && json.Unmarshal(raw, &text) != nil {
		return nil, false
	}
	return text, true
}

func checkJSON(t *testing.T, line string) {
	t.Helper()
	want, ok := reference([]byte(line))
	got, surrogate, err := jsonText([]byte(line), new([]byte))
	if (err == nil) != ok {
		t.Fatalf("%.200q: %v, encoding/json takes it: %v", line, err, ok)
	}
	if err != nil {
		return
	}
	if (got == nil) != (want == nil) || want != nil && string(got) != *want {
		t.Fatalf("%.200q: %.100q, want %v", line, got, want)
	}
	if surrogate && !strings.Contains(*want, "\uFFFD") {
		t.Fatalf("%.200q: half a surrogate pair in %.100q", line, got)
	}
}

var jsonLines = []string{
	`{}`, `{"text": "a"}`, `{"text":"a\n\t\"\\\/\b\f\r\u00e9\ud83d\ude00"}`, `{"text": null}`, `{"text": ""}`, `{"Text": "other"}`, `{"te\u0078t": "escaped key"}`,
	`{"text": "first", "text": "last"}`, `{"a": [1, -2.5e+3, true, false, null, {"b": "]}"}, []], "text": "x", "c": {}}`, `{"text": 5}`, `{"text": ["a"]}`, `["text"]`, `"text"`, `{`, `{"text"`, `{"text":`,
	`{"text": "a`, `{"text": "a"`, `{"text": "a",}`, `{,}`, `{"text": "a"} x`, `{"text": "a\x"}`, `{"text": "\u12"}`, "{\"text\": \"a\tb\"}", `{"n": 01, "text": "a"}`, `{"n": 1., "text": "a"}`,
	`{"n": -, "text": "a"}`, `{"n": 1e, "text": "a"}`, `{"n": nul, "text": "a"}`, `{"n": [1,], "text": "a"}`, `{"text": "\ud83d"}`, `{"text": "\ude00\ud83d\ude00"}`, `{"text": "\ud83d\u0041"}`, `{"text": "\ud83d\ud83d\ude00"}`,
	`{"text": "0123456789abcdef\n0123456789abcdef0"}`, `{"text": "éééééééé日本語"}`, "  {\"text\"\t:\r\n\"a\" } ", `{"text": "` + strings.Repeat(`long \u00e9 `, 100) + `"}`,
}

func TestJSONTextIsEncodingJSONs(t *testing.T) {
	for _, line := range jsonLines {
		checkJSON(t, line)
	}
	for line, want := range map[string]bool{`{"text": "\ud83d"}`: true, `{"text": "\ud83d\ud83d\ude00"}`: true, `{"text": "\ud83d\ude00"}`: false, `{"text": "\ufffd"}`: false} {
		if _, surrogate, err := jsonText([]byte(line), new([]byte)); surrogate != want || err != nil {
			t.Errorf("%s: half a surrogate pair: %v, %v", line, surrogate, err)
		}
	}
	if _, _, err := jsonText([]byte(`{"a": `+strings.Repeat("[", 1e6)), new([]byte)); err == nil || !strings.Contains(err.Error(), "in one another") {
		t.Errorf("a million brackets: %v", err)
	}
}

func FuzzJSONText(f *testing.F) {
	for _, line := range jsonLines {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if !utf8.ValidString(line) || strings.Count(line, "[")+strings.Count(line, "{") > maxNesting {
			return
		}
		checkJSON(t, line)
	})
}

func BenchmarkJSONText(b *testing.B) {
	line, err := json.Marshal(map[string]string{"text": strings.Repeat("Some words of a line,\nand then some more of \"them\". ", 100), "source": "nowhere"})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(line)))
	var buf []byte
	for b.Loop() {
		jsonText(line, &buf)
	}
}
