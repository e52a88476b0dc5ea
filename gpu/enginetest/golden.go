package enginetest

import (
	"embed"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/scavenge/scavenge/gpu"
	"github.com/scavenge/scavenge/schemas/checkpoint"
	"github.com/scavenge/scavenge/schemas/dtype"
	"github.com/scavenge/scavenge/schemas/safetensors"
)

//go:embed testdata
var testdata embed.FS

// SharedVariable names the environment variable that says where the folder
// with golden/ is; without it, a folder "shared" is looked for beside the
// working directory and its parents.
const SharedVariable = "SCAVENGE_SHARED"

// cases are folders of golden vectors, by name.
func cases(t *testing.T) map[string]string {
	t.Helper()
	built := t.TempDir()
	data, err := fs.Sub(testdata, "testdata")
	if err == nil {
		err = os.CopyFS(built, data)
	}
	if err != nil {
		t.Fatalf("unpack the built-in case: %v", err)
	}
	list := map[string]string{"micro": filepath.Join(built, "micro")}
	shared := os.Getenv(SharedVariable)
	if dir, err := os.Getwd(); shared == "" && err == nil {
		for ; ; dir = filepath.Dir(dir) {
			if _, err := os.Stat(filepath.Join(dir, "shared", "golden")); err == nil {
				shared = filepath.Join(dir, "shared")
				break
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	if shared == "" {
		t.Logf("no shared golden vectors (%s): the built-in case only", SharedVariable)
		return list
	}
	found, err := filepath.Glob(filepath.Join(shared, "golden", "*", "expected.safetensors"))
	if err != nil || len(found) == 0 {
		t.Fatalf("%s holds no golden/*/expected.safetensors", shared)
	}
	for _, f := range found {
		list[filepath.Base(filepath.Dir(f))] = filepath.Dir(f)
	}
	return list
}

// golden compares both models with PyTorch's: outputs, losses, every gradient
// of every objective, and ten steps of three kinds of training.
func (s suite) golden(t *testing.T) {
	for name, dir := range cases(t) {
		t.Run(name, func(t *testing.T) {
			g := s.read(t, dir)
			t.Run("Teacher", g.teacherAgrees)
			t.Run("Student", g.studentAgrees)
			t.Run("Layers", g.layersAgree)
			t.Run("TenSteps", g.curvesAgree)
			if e := g.worst; e.name != "" {
				t.Logf("largest error: %.2g (%s)", e.value, e.name)
			}
		})
	}
}

// vectors is one case, opened on an engine.
type vectors struct {
	suite
	engine           gpu.Engine
	expected         map[string][]float32
	curves           map[string][]float64
	batch            gpu.Batch
	student, teacher *checkpoint.Model
	worst            struct {
		name  string
		value float64
	}
}

func (s suite) read(t *testing.T, dir string) *vectors {
	t.Helper()
	g := &vectors{suite: s, engine: s.engine(t), expected: map[string][]float32{}}
	tensors, _, err := safetensors.Read(filepath.Join(dir, "expected.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range tensors {
		if x.Type == dtype.Int32 {
			g.batch.Rows, g.batch.Length = x.Shape[0], x.Shape[1]
			for i := 0; i < len(x.Data); i += 4 {
				g.batch.Tokens = append(g.batch.Tokens, int32(binary.LittleEndian.Uint32(x.Data[i:])))
			}
			continue
		}
		v := make([]float32, len(x.Data)/4)
		if err := dtype.Decode(v, x.Type, x.Data); err != nil {
			t.Fatalf("%s: %v", x.Name, err)
		}
		g.expected[x.Name] = v
	}
	data, err := os.ReadFile(filepath.Join(dir, "training.json"))
	if err != nil {
		t.Fatal(err)
	}
	var training struct {
		Curves map[string][]float64 `json:"losses_before_each_step_then_after_the_last"`
	}
	if err := json.Unmarshal(data, &training); err != nil {
		t.Fatal(err)
	}
	g.curves = training.Curves
	if g.teacher, err = checkpoint.Load(filepath.Join(dir, "teacher")); err != nil {
		t.Fatal(err)
	}
	if g.student, err = checkpoint.Load(filepath.Join(dir, "student")); err != nil {
		t.Fatal(err)
	}
	return g
}

// agree compares one tensor with its expected values.
func (g *vectors) agree(t *testing.T, name string, got []float32, tol float64) {
	t.Helper()
	want, ok := g.expected[name]
	if !ok {
		t.Errorf("%s: the golden vectors have no such tensor", name)
		return
	}
	near(t, name, got, want, tol)
	if e, err := distance(got, want); err == nil && e > g.worst.value {
		g.worst.name, g.worst.value = name, e
	}
}

// outputs compares a model's hidden states and logits.
func (g *vectors) outputs(t *testing.T, m gpu.Model, tag string) {
	t.Helper()
	layers := make([]int, m.Config().Layers)
	for i := range layers {
		layers[i] = i
	}
	for i, h := range hidden(t, m, g.batch, layers...) {
		g.agree(t, fmt.Sprintf("%s.hidden.%d", tag, i), h, g.tol.Output)
	}
	logits, err := m.Logits(g.batch)
	if err != nil {
		t.Fatal(err)
	}
	g.agree(t, tag+".logits", logits, g.tol.Output)
}

// objective compares a step's loss and gradients, which must be those of
// exactly the weights that were expected.
func (g *vectors) objective(t *testing.T, m gpu.Model, tag string, s gpu.Step) {
	t.Helper()
	s.Batch = g.batch
	r, grads := gradients(t, m, s)
	g.agree(t, tag+".loss", []float32{float32(r.Loss)}, g.tol.Output)
	norm := 0.0
	var errors []float64
	for name, v := range grads {
		g.agree(t, tag+".grad."+name, v, g.tol.Gradient)
		if e, err := distance(v, g.expected[tag+".grad."+name]); err == nil {
			errors = append(errors, e)
		}
		for _, x := range v {
			norm += float64(x) * float64(x)
		}
	}
	sort.Float64s(errors)
	if n := len(errors); n > 0 && !(errors[n/2] <= g.tol.Median) {
		t.Errorf("%s: half of the gradients are off by more than %.3g, at most %g is allowed", tag, errors[n/2], g.tol.Median)
	}
	if norm = math.Sqrt(norm); math.Abs(r.Norm-norm) > 1e-5*norm {
		t.Errorf("%s: norm is %g, that of the gradients %g", tag, r.Norm, norm)
	}
	for name := range g.expected {
		if w, ok := strings.CutPrefix(name, tag+".grad."); ok && grads[w] == nil {
			t.Errorf("%s: no gradient of %s", tag, w)
		}
	}
}

func (g *vectors) teacherAgrees(t *testing.T) {
	m := g.model(t, g.engine, g.teacher)
	defer m.Close()
	g.outputs(t, m, "teacher")
	g.objective(t, m, "teacher", gpu.Step{Objective: gpu.CrossEntropy})
	scores, err := m.Score(g.batch)
	if err != nil {
		t.Fatal(err)
	}
	mean := 0.0
	for _, v := range scores {
		mean += float64(v) / float64(len(scores))
	}
	g.agree(t, "teacher.loss", []float32{float32(mean)}, g.tol.Output)
}

func (g *vectors) studentAgrees(t *testing.T) {
	m, teacher := g.model(t, g.engine, g.student), g.model(t, g.engine, g.teacher)
	defer m.Close()
	defer teacher.Close()
	g.outputs(t, m, "student")
	g.objective(t, m, "ce", gpu.Step{Objective: gpu.CrossEntropy})
	g.objective(t, m, "kl", gpu.Step{Objective: gpu.SoftTargets, Teacher: teacher, Temperature: 2, SoftWeight: 1})
}

// layerTarget is the teacher's expected output of a layer.
func (g *vectors) layerTarget(layer int) gpu.Target {
	return encode(layer, g.expected[fmt.Sprintf("teacher.hidden.%d", layer)])
}

func (g *vectors) layersAgree(t *testing.T) {
	m := g.model(t, g.engine, g.student)
	defer m.Close()
	var all []gpu.Target
	for i := range g.student.Config.Layers {
		all = append(all, g.layerTarget(i))
		g.objective(t, m, fmt.Sprintf("layer%d", i), gpu.Step{Objective: gpu.LayerMSE, Layer: i, Targets: all[i:]})
	}
	g.objective(t, m, "joint", gpu.Step{Objective: gpu.JointMSE, Targets: all})
}

// rate is the golden curves' schedule: linear warm-up over 2.5% of the steps,
// at least one, cosine decay over all to a tenth; step from 1.
func rate(step, total int, peak float64) float64 {
	warm := max(1, int(math.RoundToEven(float64(total)*0.025)))
	if step <= warm {
		return peak * float64(step) / float64(warm)
	}
	return peak * (0.1 + 0.9*0.5*(1+math.Cos(math.Pi*float64(step-warm)/float64(max(1, total-warm)))))
}

// curvesAgree trains for ten steps. The golden curves are of float64 weights,
// and these models are chaotic: AdamW moves every weight of a filter by about
// the rate whatever its gradient's size, and three sines of frequency 14 turn
// the last bit of a weight into the fourth digit of a loss. PyTorch itself in
// float64, but with weights rounded to float32 after each step, is off by 1e-7
// after one step, 1e-4 after three and up to 6% after ten. So Start bounds the
// losses before the first three updates, Curve the rest; an engine that keeps
// float64 has to follow the curve to its end, and updates (training.go) checks
// each single update.
func (g *vectors) curvesAgree(t *testing.T) {
	kinds := map[string]gpu.Step{
		"layer0_mse":               {Objective: gpu.LayerMSE, Layer: 0, Targets: []gpu.Target{g.layerTarget(0)}},
		"layer1_mse_layer0_frozen": {Objective: gpu.LayerMSE, Layer: 1, Targets: []gpu.Target{g.layerTarget(1)}},
		"fine_tune_ce":             {Objective: gpu.CrossEntropy},
	}
	var names []string
	for name := range g.curves {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		want, s := g.curves[name], kinds[name]
		s.Batch = g.batch
		m := g.model(t, g.engine, g.student)
		worst := 0.0
		for i, w := range want {
			var loss float64
			if i < len(want)-1 {
				s.Rate = rate(i+1, len(want)-1, 1e-3)
				loss = step(t, m, s).Loss
			} else {
				r, _ := gradients(t, m, s)
				loss = r.Loss
			}
			e := math.Abs(loss-w) / math.Abs(w)
			worst = max(worst, e)
			tol := g.tol.Curve
			if i < 3 {
				tol = min(tol, g.tol.Start)
			}
			if !(e <= tol) {
				t.Errorf("%s: loss after %d steps is %.8g, want %.8g: off by %.3g, at most %.3g is allowed", name, i, loss, w, e, tol)
			}
		}
		t.Logf("%s: largest error of the curve %.2g", name, worst)
		m.Close()
	}
}
