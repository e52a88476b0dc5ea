package checkpoint

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/scavenge/scavenge/schemas/dtype"
	"github.com/scavenge/scavenge/schemas/safetensors"
)

func teacherConfig() Config {
	return Config{Architecture: GPTNeoX, Vocab: 11, Dim: 8, Hidden: 16, Layers: 2, Context: 12, Eps: 1e-5,
		Attention: Attention{Heads: 2, RotaryPct: 0.5, RotaryBase: 10000}}
}

func studentConfig() Config {
	return teacherConfig().Student(Hyena{Width: 4, Features: 5, SineFreq: 14, Fast: 0.3, Slow: 1.5, Target: 0.01}, 12)
}

// random is a model whose weights are small multiples of 1/64, which every
// float type holds exactly.
func random(c Config, seed uint64) *Model {
	r := rand.New(rand.NewPCG(seed, 1))
	m := &Model{Config: c, Weights: map[string][]float32{}}
	for _, s := range c.Specs() {
		w := make([]float32, s.Size())
		for i := range w {
			w[i] = float32(r.IntN(129)-64) / 64
		}
		m.Weights[s.Name] = w
	}
	return m
}

func same(t *testing.T, got, want *Model) {
	t.Helper()
	if got.Config != want.Config {
		t.Fatalf("config\n got %+v\nwant %+v", got.Config, want.Config)
	}
	for _, s := range want.Config.Specs() {
		if !slices.Equal(got.Weights[s.Name], want.Weights[s.Name]) {
			t.Fatalf("weight %s differs: %v…, want %v…", s.Name, head(got.Weights[s.Name]), head(want.Weights[s.Name]))
		}
	}
	if len(got.Weights) != len(want.Weights) {
		t.Fatalf("%d weights, want %d", len(got.Weights), len(want.Weights))
	}
}

func head(v []float32) []float32 { return v[:min(4, len(v))] }

// tensors spells a model's weights in another float type.
func tensors(t *testing.T, m *Model, typ dtype.Type) []safetensors.Tensor {
	t.Helper()
	var list []safetensors.Tensor
	for _, s := range m.Config.Specs() {
		data, err := dtype.Encode(nil, typ, m.Weights[s.Name])
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, safetensors.Tensor{Name: s.Name, Type: typ, Shape: s.Shape, Data: data})
	}
	return list
}

// folder writes a checkpoint of the given config and tensors by hand.
func folder(t *testing.T, config string, list []safetensors.Tensor) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ConfigFile), []byte(config), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := safetensors.Write(filepath.Join(dir, ModelFile), list, nil); err != nil {
		t.Fatal(err)
	}
	return dir
}

func configJSON(t *testing.T, c Config) string {
	t.Helper()
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestLoadInvertsSave(t *testing.T) {
	for _, c := range []Config{teacherConfig(), studentConfig()} {
		m := random(c, 1)
		dir := filepath.Join(t.TempDir(), "runs", c.Architecture)
		for range 2 { // the second replaces the first
			if err := m.Save(dir); err != nil {
				t.Fatal(err)
			}
		}
		got, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, m)
		if list, _ := os.ReadDir(filepath.Dir(dir)); len(list) != 1 {
			t.Errorf("left beside the folder: %v", list)
		}
	}
}

func TestLoadTakesEveryFloatType(t *testing.T) {
	m := random(teacherConfig(), 2)
	config := configJSON(t, m.Config)
	for _, typ := range []dtype.Type{dtype.Float32, dtype.Float16, dtype.BFloat16} {
		got, err := Load(folder(t, config, tensors(t, m, typ)))
		if err != nil {
			t.Fatalf("%s: %v", typ, err)
		}
		same(t, got, m)
		if got.Fingerprint() != m.Fingerprint() {
			t.Errorf("%s: another fingerprint for the same weights", typ)
		}
	}
	list := tensors(t, m, dtype.Float32)
	for i, w := range m.Config.Specs() {
		list[i].Type, list[i].Data = dtype.Float64, nil
		for _, v := range m.Weights[w.Name] {
			b := math.Float64bits(float64(v))
			for s := 0; s < 64; s += 8 {
				list[i].Data = append(list[i].Data, byte(b>>s))
			}
		}
	}
	got, err := Load(folder(t, config, list))
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, m)
}

func TestLoadTakesOldBuffersAndTheNewNameOfTheOutput(t *testing.T) {
	m := random(teacherConfig(), 3)
	list := tensors(t, m, dtype.Float32)
	for i := range m.Config.Layers {
		b := Block(i) + "attention."
		list = append(list,
			safetensors.Tensor{Name: b + "bias", Type: "BOOL", Shape: []int{1, 1, 12, 12}, Data: make([]byte, 144)},
			safetensors.Tensor{Name: b + "masked_bias", Type: dtype.Float32, Shape: []int{}, Data: make([]byte, 4)},
			safetensors.Tensor{Name: b + "rotary_emb.inv_freq", Type: dtype.Float32, Shape: []int{1}, Data: make([]byte, 4)})
	}
	for i := range list {
		if list[i].Name == EmbedOut {
			list[i].Name = "lm_head.weight"
		}
	}
	got, err := Load(folder(t, configJSON(t, m.Config), list))
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, m)
}

func TestLoadReadsShards(t *testing.T) {
	m := random(studentConfig(), 4)
	list := tensors(t, m, dtype.BFloat16)
	dir := t.TempDir()
	index := map[string]map[string]string{"weight_map": {}}
	for i := range 3 {
		name := fmt.Sprintf("model-%05d-of-00003.safetensors", i+1)
		part := list[i*len(list)/3 : (i+1)*len(list)/3]
		for _, x := range part {
			index["weight_map"][x.Name] = name
		}
		if err := safetensors.Write(filepath.Join(dir, name), part, nil); err != nil {
			t.Fatal(err)
		}
	}
	data, _ := json.Marshal(index)
	os.WriteFile(filepath.Join(dir, IndexFile), data, 0o666)
	os.WriteFile(filepath.Join(dir, ConfigFile), []byte(configJSON(t, m.Config)), 0o666)
	got, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, m)

	os.Remove(filepath.Join(dir, "model-00002-of-00003.safetensors"))
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "model-00002-of-00003.safetensors") {
		t.Errorf("a missing shard: %v", err)
	}
	os.WriteFile(filepath.Join(dir, IndexFile), []byte(`{"weight_map":{"a":"../../etc/passwd"}}`), 0o666)
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "no safetensors file of this folder") {
		t.Errorf("a shard outside the folder: %v", err)
	}
}

func TestLoadNamesWhatIsWrong(t *testing.T) {
	m := random(teacherConfig(), 5)
	config := configJSON(t, m.Config)
	dense := Block(1) + "attention.dense.weight"
	index := func(list []safetensors.Tensor) int {
		return slices.IndexFunc(list, func(x safetensors.Tensor) bool { return x.Name == dense })
	}
	for name, c := range map[string]struct {
		change func(list []safetensors.Tensor) []safetensors.Tensor
		want   string
	}{
		"missing": {func(l []safetensors.Tensor) []safetensors.Tensor { return slices.Delete(l, index(l), index(l)+1) }, "weight " + dense + " is missing"},
		"unknown": {func(l []safetensors.Tensor) []safetensors.Tensor { l[index(l)].Name = "wte.weight"; return l }, "weight wte.weight is unknown"},
		"misshapen": {func(l []safetensors.Tensor) []safetensors.Tensor { l[index(l)].Shape = []int{4, 16}; return l },
			"weight " + dense + " has shape [4 16], want [8 8]"},
		"integers": {func(l []safetensors.Tensor) []safetensors.Tensor { l[index(l)].Type = dtype.Int32; return l }, "weight " + dense + " is of type I32"},
		"twice": {func(l []safetensors.Tensor) []safetensors.Tensor {
			x := l[len(l)-1]
			x.Name = "lm_head.weight"
			return append(l, x)
		}, "is there twice"},
	} {
		_, err := Load(folder(t, config, c.change(tensors(t, m, dtype.Float32))))
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one line with %q", name, err, c.want)
		}
	}
}

func TestLoadNamesMissingFiles(t *testing.T) {
	dir := t.TempDir()
	for _, step := range []struct {
		file, content, want string
	}{
		{"", "", ConfigFile},
		{ConfigFile, configJSON(t, teacherConfig()), "has neither " + ModelFile},
		{"pytorch_model.bin", "", "pickles"},
		{IndexFile, "{", IndexFile},
		{ModelFile, "short", "truncated"},
	} {
		if step.file != "" {
			if err := os.WriteFile(filepath.Join(dir, step.file), []byte(step.content), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), step.want) || !strings.Contains(err.Error(), dir) {
			t.Errorf("with %q: %v, want %q and the folder", step.file, err, step.want)
		}
	}
	if _, err := Load(filepath.Join(dir, "nowhere")); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("a folder that is not there: %v", err)
	}
}

func TestSaveLeavesForeignFoldersAlone(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.txt"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := random(teacherConfig(), 6).Save(dir); err == nil || !strings.Contains(err.Error(), "something else") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "thesis.txt")); err != nil {
		t.Error(err)
	}
}

func TestFingerprintSeesEveryWeightAndTheConfig(t *testing.T) {
	m := random(teacherConfig(), 7)
	seen := map[string]string{m.Fingerprint(): "itself"}
	for name, w := range m.Weights {
		w[len(w)-1]++
		if other, ok := seen[m.Fingerprint()]; ok {
			t.Errorf("a change of %s gives the fingerprint of %s", name, other)
		}
		seen[m.Fingerprint()] = name
		w[len(w)-1]--
	}
	m.Config.Eps = 1e-6
	if _, ok := seen[m.Fingerprint()]; ok {
		t.Error("a change of the config gives a fingerprint seen before")
	}
}

func TestBothSpellingsOfAConfigMeanTheSame(t *testing.T) {
	const common = `{"model_type":"gpt_neox","vocab_size":11,"hidden_size":8,"intermediate_size":16,"num_hidden_layers":2,
		"num_attention_heads":2,"max_position_embeddings":12,"layer_norm_eps":1e-5,"hidden_act":"gelu","use_parallel_residual":true,"tie_word_embeddings":false,`
	for _, tail := range []string{
		`"rotary_pct":0.5,"rotary_emb_base":10000}`,
		`"rope_parameters":{"partial_rotary_factor":0.5,"rope_theta":10000.0,"rope_type":"default"}}`,
	} {
		got, err := ParseConfig([]byte(common + tail))
		if err != nil {
			t.Fatalf("%s: %v", tail, err)
		}
		if !reflect.DeepEqual(got, teacherConfig()) {
			t.Errorf("%s\n gave %+v", tail, got)
		}
	}
	for change, want := range map[string]string{
		`"rope_parameters":{"rope_type":"yarn"}}`:          "yarn",
		`"rotary_pct":0.3}`:                                "rotary_pct",
		`"use_parallel_residual":false,"rotary_pct":0.5}`:  "use_parallel_residual",
		`"hidden_act":"gelu_new","rotary_pct":0.5}`:        "gelu_new",
		`"tie_word_embeddings":true,"rotary_pct":0.5}`:     "tie_word_embeddings",
		`"num_attention_heads":3,"rotary_pct":0.5}`:        "3 heads",
		`"model_type":"llama","rotary_pct":0.5}`:           "llama",
		`"rope_scaling":{"type":"linear"},"rotary_pct":1}`: "rope_scaling",
	} {
		if _, err := ParseConfig([]byte(common + change)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s gave %v, want %q", change, err, want)
		}
	}
}

// The models that transformers and PyTorch saved load, and what we save of
// them loads again.
func TestGoldenModelsLoad(t *testing.T) {
	const golden = "../../../shared/golden"
	if _, err := os.Stat(golden); err != nil {
		t.Skip("no golden models here")
	}
	for _, name := range []string{"tiny/teacher", "tiny/student", "small/teacher", "small/student"} {
		m, err := Load(filepath.Join(golden, name))
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(t.TempDir(), "model")
		if err := m.Save(dir); err != nil {
			t.Fatal(err)
		}
		again, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		same(t, again, m)
	}
}

// FuzzParseConfig: what parses is valid, has a countable number of weights,
// and means the same when written and read again.
func FuzzParseConfig(f *testing.F) {
	for _, c := range []Config{teacherConfig(), studentConfig()} {
		b, err := json.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"model_type":"gpt_neox","vocab_size":1,"hidden_size":2,"intermediate_size":1,"num_hidden_layers":1,"num_attention_heads":1,"max_position_embeddings":1,"rope_parameters":{"partial_rotary_factor":1,"rope_theta":1}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig(data)
		if err != nil {
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatalf("parsed but invalid: %v", err)
		}
		b, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseConfig(b)
		if err != nil || again != c {
			t.Fatalf("written and read again: %+v, %v; was %+v", again, err, c)
		}
	})
}

// FuzzParseIndex: the shards that an index names are files of its own folder.
func FuzzParseIndex(f *testing.F) {
	f.Add([]byte(`{"metadata":{"total_size":8},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}`))
	f.Add([]byte(`{"weight_map":{"a":"../b"}}`))
	f.Add([]byte(`{"weight_map":{"a":".."}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		files, err := parseIndex(data)
		if err != nil {
			return
		}
		for _, name := range files {
			if filepath.Dir(filepath.Join("dir", name)) != "dir" {
				t.Fatalf("%q lies outside", name)
			}
		}
	})
}
