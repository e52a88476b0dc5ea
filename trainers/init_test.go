package trainers

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/scavenge/scavenge/schemas/checkpoint"
)

func teacherConfig() checkpoint.Config {
	return checkpoint.Config{Architecture: checkpoint.GPTNeoX, Vocab: 96, Dim: 16, Hidden: 32, Layers: 2, Context: 24, Eps: 1e-5,
		Attention: checkpoint.Attention{Heads: 4, RotaryPct: 0.5, RotaryBase: 10000}}
}

func studentConfig() checkpoint.Config {
	h := checkpoint.DefaultHyena()
	h.Width, h.Features = 8, 5
	return teacherConfig().Student(h, 16)
}

func random(t testing.TB, c checkpoint.Config, seed int64) *checkpoint.Model {
	t.Helper()
	m, err := RandomModel(c, seed)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	return m
}

// spread adds noise to every weight, so that none is zero or one.
func spread(m *checkpoint.Model) *checkpoint.Model {
	for name, w := range m.Weights {
		noise := make([]float32, len(w))
		newGenerator(7, name).normal(noise, 0.1)
		for i := range w {
			w[i] += noise[i]
		}
	}
	return m
}

func meanStd(w []float32) (mean, std float64) {
	for _, v := range w {
		mean += float64(v) / float64(len(w))
	}
	for _, v := range w {
		std += (float64(v) - mean) * (float64(v) - mean) / float64(len(w))
	}
	return mean, math.Sqrt(std)
}

func TestRandomWeightsHaveTheirDistributions(t *testing.T) {
	c := studentConfig()
	c.Vocab, c.Dim, c.Hidden, c.Hyena.Width, c.Hyena.Features = 500, 128, 512, 64, 33
	m := random(t, c, 3)
	b := checkpoint.Block(1)
	into := 0.02 / math.Sqrt(2*2)
	for name, want := range map[string]float64{
		checkpoint.EmbedIn: 0.02, checkpoint.EmbedOut: 0.02,
		b + "hyena.in_proj.weight": 0.02, b + "mlp.dense_h_to_4h.weight": 0.02,
		b + "hyena.out_proj.weight": into, b + "mlp.dense_4h_to_h.weight": into,
		b + "hyena.filter.bias":         1,
		b + "hyena.short_filter.weight": 1 / math.Sqrt(3) / math.Sqrt(3), b + "hyena.short_filter.bias": 1 / math.Sqrt(3) / math.Sqrt(3),
		b + "hyena.filter.mlp.0.weight": 1 / math.Sqrt(33) / math.Sqrt(3),
		b + "hyena.filter.mlp.3.weight": 1 / math.Sqrt(64) / math.Sqrt(3), b + "hyena.filter.mlp.1.bias": 1 / math.Sqrt(64) / math.Sqrt(3),
	} {
		w := m.Weights[name]
		mean, std := meanStd(w)
		bound := 5 / math.Sqrt(float64(len(w)))
		if math.Abs(mean) > bound*want || math.Abs(std/want-1) > bound {
			t.Errorf("%s: mean %.4g, deviation %.4g, want 0 and %.4g", name, mean, std, want)
		}
	}
	for name, want := range map[string]float32{
		b + "input_layernorm.weight": 1, checkpoint.FinalScale: 1, b + "post_attention_layernorm.bias": 0, b + "hyena.in_proj.bias": 0,
		b + "hyena.out_proj.bias": 0, b + "mlp.dense_4h_to_h.bias": 0, b + "hyena.filter.freq": 14,
	} {
		if i := slices.IndexFunc(m.Weights[name], func(v float32) bool { return v != want }); i >= 0 {
			t.Errorf("%s: element %d is %g, want %g", name, i, m.Weights[name][i], want)
		}
	}
	limit := float32(1 / math.Sqrt(3))
	if w := m.Weights[b+"hyena.short_filter.weight"]; slices.Max(w) > limit || slices.Min(w) < -limit {
		t.Errorf("short filter reaches from %g to %g, beyond ±1/√3", slices.Min(w), slices.Max(w))
	}
}

func TestRandomWeightsAreAFunctionOfSeedAndName(t *testing.T) {
	a, b, other := random(t, studentConfig(), 1), random(t, studentConfig(), 1), random(t, studentConfig(), 2)
	if a.Fingerprint() != b.Fingerprint() {
		t.Error("the same seed gave other weights")
	}
	if a.Fingerprint() == other.Fingerprint() {
		t.Error("another seed gave the same weights")
	}
	deeper := studentConfig()
	deeper.Layers = 5
	name := checkpoint.Block(0) + "hyena.in_proj.weight"
	if !slices.Equal(random(t, deeper, 1).Weights[name], a.Weights[name]) {
		t.Errorf("%s depends on the other weights", name)
	}
	if slices.Equal(a.Weights[name], a.Weights[checkpoint.Block(1)+"hyena.in_proj.weight"]) {
		t.Error("two blocks begin alike")
	}
}

func TestStartsTakeWhatTheyShould(t *testing.T) {
	teacher := spread(random(t, teacherConfig(), 5))
	outside := func(s checkpoint.Spec) bool { return s.Layer < 0 }
	notMixer := func(s checkpoint.Spec) bool { return !strings.Contains(s.Name, ".hyena.") }
	for start, taken := range map[Init]func(checkpoint.Spec) bool{
		InitTeacher: notMixer, InitAttention: notMixer, InitEmbeddings: outside, InitRandom: func(checkpoint.Spec) bool { return false },
	} {
		m, err := NewStudent(studentConfig(), teacher, start, 1)
		if err != nil {
			t.Fatal(err)
		}
		blank := random(t, studentConfig(), 1)
		for _, s := range m.Config.Specs() {
			want := blank.Weights[s.Name]
			if taken(s) {
				want = teacher.Weights[s.Name]
			} else if start == InitAttention && !strings.Contains(s.Name, ".filter.") {
				continue // TestAttentionStartKeepsTheProjections
			}
			if !slices.Equal(m.Weights[s.Name], want) {
				t.Errorf("start %s: %s is not as it should be", start, s.Name)
			}
		}
	}
}

func TestAttentionStartKeepsTheProjections(t *testing.T) {
	teacher := spread(random(t, teacherConfig(), 5))
	m, err := NewStudent(studentConfig(), teacher, InitAttention, 1)
	if err != nil {
		t.Fatal(err)
	}
	const d, heads, hd = 16, 4, 4
	x := make([]float32, d)
	newGenerator(1, "x").normal(x, 1)
	apply := func(m *checkpoint.Model, name string) []float32 { // name.weight · x + name.bias
		y := slices.Clone(m.Weights[name+".bias"])
		for i := range y {
			for j, v := range x {
				y[i] += m.Weights[name+".weight"][i*d+j] * v
			}
		}
		return y
	}
	for i := range 2 {
		a, h := checkpoint.Block(i)+"attention.", checkpoint.Block(i)+"hyena."
		qkv, z := apply(teacher, a+"query_key_value"), apply(m, h+"in_proj")
		for part := range 3 {
			for head := range heads {
				for k := range hd {
					// transformers: view(heads, 3·hd), then q, k, v = split(hd)
					want, got := qkv[head*3*hd+part*hd+k], z[part*d+head*hd+k]
					if got != want {
						t.Fatalf("layer %d: %c of head %d, dimension %d: %g, want %g", i, "qkv"[part], head, k, got, want)
					}
				}
			}
		}
		if !slices.Equal(apply(m, h+"out_proj"), apply(teacher, a+"dense")) {
			t.Errorf("layer %d: out_proj is not dense", i)
		}
		if w := m.Weights[h+"short_filter.weight"]; !slices.Equal(w[:6], []float32{0, 0, 1, 0, 0, 1}) || slices.Max(m.Weights[h+"short_filter.bias"]) != 0 {
			t.Errorf("layer %d: the short filter does not let its input through: %v", i, w[:6])
		}
	}
}

func TestStudentThatDoesNotFitIsRefused(t *testing.T) {
	teacher := random(t, teacherConfig(), 5)
	c := studentConfig()
	c.Dim = 32
	if _, err := NewStudent(c, teacher, InitTeacher, 1); err == nil || !strings.Contains(err.Error(), "hidden_size is 32 in the student, 16 in the teacher") {
		t.Errorf("another width: %v", err)
	}
	if _, err := NewStudent(studentConfig(), random(t, studentConfig(), 1), InitTeacher, 1); err == nil || !strings.Contains(err.Error(), "hyena_neox") {
		t.Errorf("a student as teacher: %v", err)
	}
	if _, err := NewStudent(studentConfig(), nil, InitAttention, 1); err == nil {
		t.Error("no teacher: no error")
	}
	if _, err := NewStudent(studentConfig(), teacher, "weights", 1); err == nil || !strings.Contains(err.Error(), `"weights"`) {
		t.Errorf("unknown start: %v", err)
	}
}
