package checkpoint

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/scavenge/scavenge/schemas/durable"
)

// trained is an optimiser that has updated the weights of block 0 alone.
func trained(m *Model, steps int64) *Optimizer {
	o := &Optimizer{Mean: map[string][]float32{}, Variance: map[string][]float32{}, Steps: map[string]int64{}}
	for i, s := range m.Config.Specs() {
		if s.Layer != 0 {
			continue
		}
		mean, variance := make([]float32, s.Size()), make([]float32, s.Size())
		for j := range mean {
			mean[j], variance[j] = float32(i)+1/float32(j+3), float32(steps)/float32(j+1)
		}
		o.Mean[s.Name], o.Variance[s.Name], o.Steps[s.Name] = mean, variance, steps
	}
	return o
}

func position(step int64) Trainer {
	return Trainer{Kind: "distill", Step: step, Steps: 100, Layer: 1, LayerStep: 3, Epoch: 2, Index: 40, Seen: 40,
		Offsets: map[string]map[int]int64{"run.layer-0": {0: 17, 1: 18}}, Seed: -5, Losses: []float64{1.0 / 3, 0.1}, Tokens: 1 << 40,
		Seconds: 1.5, Teacher: "ab", TokenSet: "cd", Settings: json.RawMessage(`{"peak":0.001}`)}
}

func TestLoadTrainingInvertsSaveTraining(t *testing.T) {
	root := filepath.Join(t.TempDir(), "run")
	if _, ok, err := Latest(root); ok || err != nil {
		t.Fatalf("before the first checkpoint: %v, %v", ok, err)
	}
	m := random(studentConfig(), 1)
	for step := int64(1); step <= 4; step++ {
		dir, err := SaveTraining(root, m, trained(m, step), position(step))
		if err != nil {
			t.Fatal(err)
		}
		if got, ok, err := Latest(root); got != dir || !ok || err != nil {
			t.Fatalf("latest is %s, %v, %v; want %s", got, ok, err, dir)
		}
	}
	got, o, pos, err := LoadTraining(filepath.Join(root, "latest"))
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, m)
	if want := trained(m, 4); !reflect.DeepEqual(o, want) {
		t.Errorf("optimiser\n got %v\nwant %v", o.Steps, want.Steps)
	}
	want := position(4)
	want.Version = trainerVersion
	var a, b any
	json.Unmarshal(pos.Settings, &a)
	json.Unmarshal(want.Settings, &b)
	if !reflect.DeepEqual(a, b) {
		t.Errorf("settings %s, want %s", pos.Settings, want.Settings)
	}
	pos.Settings, want.Settings = nil, nil
	if !reflect.DeepEqual(*pos, want) {
		t.Errorf("position\n got %+v\nwant %+v", *pos, want)
	}
	list, _ := os.ReadDir(root)
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	if want := []string{"latest", "step-0000003", "step-0000004"}; !slices.Equal(names, want) {
		t.Errorf("folder holds %v, want %v", names, want)
	}
}

// A run's folder stands for the newest of its checkpoints wherever a model is asked for.
func TestLoadOfARunFolderIsItsNewestCheckpoint(t *testing.T) {
	root := filepath.Join(t.TempDir(), "run")
	for step := int64(1); step <= 2; step++ {
		m := random(studentConfig(), uint64(step))
		if _, err := SaveTraining(root, m, nil, position(step)); err != nil {
			t.Fatal(err)
		}
		got, err := Load(root)
		if err != nil {
			t.Fatal(err)
		}
		if got.Fingerprint() != m.Fingerprint() {
			t.Errorf("after step %d the folder stands for another model", step)
		}
	}
	if c, err := LoadConfig(root); err != nil || c != studentConfig() {
		t.Errorf("config: %+v, %v", c, err)
	}
	empty := t.TempDir()
	if _, err := Load(empty); err == nil || !strings.Contains(err.Error(), empty) {
		t.Errorf("an empty folder: %v", err)
	}
}

func TestSaveTrainingTakesAnOptimiserThatHasNotStepped(t *testing.T) {
	root := t.TempDir()
	dir, err := SaveTraining(root, random(teacherConfig(), 1), nil, position(0))
	if err != nil {
		t.Fatal(err)
	}
	if _, o, _, err := LoadTraining(dir); err != nil || len(o.Steps) != 0 {
		t.Fatalf("%v, %v", o, err)
	}
}

// Whichever step of SaveTraining a process is killed at, the run's folder
// loads: the previous checkpoint or the new one, never a mixture. The writer
// that comes next clears what the killed one left.
func TestKilledAnywhereLeavesAWholeCheckpoint(t *testing.T) {
	if root := os.Getenv("CHECKPOINT_TEST_ROOT"); root != "" {
		killedWriter(root)
		return
	}
	// A checkpoint of a later step; then one of the same step, in place of its folder.
	for _, step := range []int64{2, 1} {
		olds, news := 0, 0
		for kill := 1; ; kill++ {
			root := t.TempDir()
			if _, err := SaveTraining(root, random(studentConfig(), 1), nil, position(1)); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(os.Args[0], "-test.run=^TestKilledAnywhereLeavesAWholeCheckpoint$")
			cmd.Env = append(os.Environ(), "CHECKPOINT_TEST_ROOT="+root, "CHECKPOINT_TEST_KILL="+strconv.Itoa(kill), "CHECKPOINT_TEST_STEP="+strconv.FormatInt(step, 10))
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signaled()
			if err != nil && !killed {
				t.Fatalf("writer: %v: %s", err, out)
			}
			dir, ok, err := Latest(root)
			if err != nil || !ok {
				t.Fatalf("killed at %d: no latest: %v", kill, err)
			}
			for _, d := range []string{dir, filepath.Join(root, "latest")} {
				m, o, _, err := LoadTraining(d)
				if err != nil {
					t.Fatalf("killed at %d: %v", kill, err)
				}
				if len(o.Steps) == 0 {
					same(t, m, random(studentConfig(), 1))
					olds++
				} else {
					same(t, m, random(studentConfig(), 2))
					news++
				}
			}
			if !killed {
				if kill < 12 || olds == 0 || news == 0 {
					t.Fatalf("step %d: %d kills, %d loads of the old checkpoint and %d of the new: the kills miss the writing", step, kill, olds, news)
				}
				break
			}
			if _, err := SaveTraining(root, random(studentConfig(), 3), nil, position(3)); err != nil {
				t.Fatalf("killed at %d: the next checkpoint: %v", kill, err)
			}
			list, _ := os.ReadDir(root)
			for _, e := range list {
				if strings.HasPrefix(e.Name(), ".") {
					t.Fatalf("killed at %d: %s is still there after the next checkpoint", kill, e.Name())
				}
			}
		}
	}
}

// killedWriter saves a checkpoint and kills itself, as the kernel would, at
// the step that the environment names.
func killedWriter(root string) {
	left, _ := strconv.Atoi(os.Getenv("CHECKPOINT_TEST_KILL"))
	step, _ := strconv.ParseInt(os.Getenv("CHECKPOINT_TEST_STEP"), 10, 64)
	durable.Fault = func(string, string) {
		if left--; left == 0 {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	m := random(studentConfig(), 2)
	if _, err := SaveTraining(root, m, trained(m, step), position(step)); err != nil {
		os.Stderr.WriteString(err.Error())
		os.Exit(1)
	}
	os.Exit(0)
}

func TestBadTrainingCheckpointsAreRefused(t *testing.T) {
	m := random(studentConfig(), 1)
	fresh := func() string {
		dir, err := SaveTraining(t.TempDir(), m, trained(m, 1), position(1))
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for name, c := range map[string]struct {
		file, content, want string
	}{
		"no trainer":         {TrainerFile, "", "JSON"},
		"another version":    {TrainerFile, `{"version":9}`, "version 9"},
		"negative":           {TrainerFile, `{"version":1,"step":-1}`, "negative"},
		"negative offset":    {TrainerFile, `{"version":1,"offsets":{"a":{"0":-2}}}`, "offset -2"},
		"broken optimiser":   {OptimizerFile, "xxxxxxxxxxxxxxxxxx", OptimizerFile},
		"truncated weights":  {ModelFile, "\x10\x00\x00\x00\x00\x00\x00\x00{}", ModelFile},
		"broken config":      {ConfigFile, "{", "config"},
		"config of a bigger": {ConfigFile, strings.Replace(configJSON(t, m.Config), `"hidden_size":8`, `"hidden_size":16`, 1), "shape"},
	} {
		dir := fresh()
		if err := os.WriteFile(filepath.Join(dir, c.file), []byte(c.content), 0o666); err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := LoadTraining(dir); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v, want %q and the folder", name, err, c.want)
		}
	}
	model := filepath.Join(t.TempDir(), "m")
	if err := m.Save(model); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := LoadTraining(model); err == nil || !strings.Contains(err.Error(), "not one of a training run") {
		t.Errorf("a plain model: %v", err)
	}
}

func TestSaveTrainingRefusesWhatCannotBeLoaded(t *testing.T) {
	m := random(studentConfig(), 1)
	for name, spoil := range map[string]func(o *Optimizer, p *Trainer){
		"unknown weight": func(o *Optimizer, _ *Trainer) {
			o.Steps["x"], o.Mean["x"], o.Variance["x"] = 1, nil, nil
		},
		"short moment": func(o *Optimizer, _ *Trainer) { o.Mean[Block(0)+"hyena.out_proj.bias"] = nil },
		"NaN loss":     func(_ *Optimizer, p *Trainer) { p.Losses = []float64{math.NaN()} },
	} {
		root := t.TempDir()
		o, p := trained(m, 1), position(1)
		spoil(o, &p)
		if _, err := SaveTraining(root, m, o, p); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		if list, _ := os.ReadDir(root); len(list) != 0 {
			t.Errorf("%s: left %v", name, list)
		}
	}
}

// FuzzParseTrainer: what parses has positions from which a run can go on.
func FuzzParseTrainer(f *testing.F) {
	p := position(7)
	p.Version = trainerVersion
	b, err := json.Marshal(p)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"offsets":{"t":{"-1":5}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parseTrainer(data)
		if err == nil && (p.Step < 0 || p.Index < 0) {
			t.Fatalf("%+v", p)
		}
	})
}
