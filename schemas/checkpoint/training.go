package checkpoint

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/scavenge/scavenge/schemas/dtype"
	"github.com/scavenge/scavenge/schemas/durable"
	"github.com/scavenge/scavenge/schemas/safetensors"
)

// trainerVersion is the version of trainer.json that this package writes.
const trainerVersion = 1

// keep is how many checkpoints SaveTraining leaves in a run's folder: the
// newest, and the one before it.
const keep = 2

// Trainer is what a training run must know, beside weights and optimiser, to
// go on as if it had never stopped.
type Trainer struct {
	Version int    `json:"version"` // set by SaveTraining
	Kind    string `json:"kind"`    // the command: distill, finetune, pretrain

	Step      int64 `json:"step"`       // optimiser steps done
	Steps     int64 `json:"steps"`      // in the whole run, at most; 0: as many as come
	Layer     int   `json:"layer"`      // schedule position: the layer being trained (progressive distillation)
	LayerStep int64 `json:"layer_step"` // steps done on that layer

	LayerTokens int64    `json:"layer_tokens,omitempty"` // trained on with that layer
	HeldOut     *HeldOut `json:"held_out,omitempty"`     // nil: not evaluated yet with that layer

	Epoch int64 `json:"epoch"` // of the next sequence
	Index int64 `json:"index"` // of the next sequence, in the epoch's order
	Seen  int64 `json:"seen"`  // records used in this epoch
	// Offsets is the next offset to read, by topic and partition. A broker's
	// own committed offsets are only a report.
	Offsets map[string]map[int]int64 `json:"offsets,omitempty"`

	Seed    int64     `json:"seed"`
	Losses  []float64 `json:"losses,omitempty"` // the last ones, newest at the end
	Tokens  int64     `json:"tokens"`           // trained on so far
	Seconds float64   `json:"seconds"`          // spent training so far

	Teacher  string          `json:"teacher,omitempty"`   // fingerprint
	TokenSet string          `json:"token_set,omitempty"` // fingerprint
	Settings json.RawMessage `json:"settings,omitempty"`  // the options the run was started with
}

// HeldOut is what evaluations on sequences that are not trained on came to.
type HeldOut struct {
	Step   int64   `json:"step"`   // of the last one
	Loss   float64 `json:"loss"`   // then
	Best   float64 `json:"best"`   // of all of the layer that was better by enough than the best before
	Waited int     `json:"waited"` // evaluations since Best
}

// SaveTraining writes root/step-<t.Step>/ and then points root/latest to it.
// It leaves the two newest checkpoints up to this step, and any of a later
// step, in the folder. A nil o is an optimiser that has not stepped yet.
func SaveTraining(root string, m *Model, o *Optimizer, t Trainer) (dir string, err error) {
	t.Version = trainerVersion
	if o == nil {
		o = &Optimizer{}
	}
	name := stepName(t.Step)
	dir = filepath.Join(root, name)
	if err := m.Check(); err != nil {
		return "", fmt.Errorf("checkpoint %s: %w", dir, err)
	}
	if err := o.check(m.Config); err != nil {
		return "", fmt.Errorf("checkpoint %s: %w", dir, err)
	}
	if err := durable.Sweep(root); err != nil {
		return "", fmt.Errorf("checkpoint %s: %w", root, err)
	}
	if err := durable.WriteFolder(dir, func(tmp string) error {
		if err := m.write(tmp); err != nil {
			return err
		}
		if err := o.write(filepath.Join(tmp, OptimizerFile), m.Config); err != nil {
			return err
		}
		return writeJSON(filepath.Join(tmp, TrainerFile), t)
	}); err != nil {
		return "", fmt.Errorf("checkpoint: %w", err)
	}
	if err := durable.Link(name, filepath.Join(root, "latest")); err != nil {
		return "", fmt.Errorf("checkpoint: %w", err)
	}
	return dir, prune(root, t.Step)
}

// prune removes the checkpoints before the newest of those up to step.
func prune(root string, step int64) error {
	steps, err := stepsIn(root)
	if err != nil {
		return err
	}
	steps = slices.DeleteFunc(steps, func(s int64) bool { return s > step })
	for _, s := range steps[:max(0, len(steps)-keep)] {
		if err := os.RemoveAll(filepath.Join(root, stepName(s))); err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
	}
	return nil
}

func stepName(step int64) string { return fmt.Sprintf("step-%07d", step) }

// stepsIn lists the steps of the checkpoints in a run's folder, ascending.
func stepsIn(root string) ([]int64, error) {
	list, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", root, plain(err))
	}
	var steps []int64
	for _, e := range list {
		digits, ok := strings.CutPrefix(e.Name(), "step-")
		if s, err := strconv.ParseInt(digits, 10, 64); ok && err == nil && e.IsDir() && stepName(s) == e.Name() {
			steps = append(steps, s)
		}
	}
	slices.Sort(steps)
	return steps, nil
}

// Latest is the newest whole checkpoint of a run's folder: the one that latest
// points to, or without that link the one of the highest step. ok is false
// where there is none yet.
func Latest(root string) (dir string, ok bool, err error) {
	link := filepath.Join(root, "latest")
	if target, err := os.Readlink(link); err == nil {
		dir = target
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(root, dir)
		}
		if _, err := os.Stat(filepath.Join(dir, TrainerFile)); err == nil {
			return dir, true, nil
		}
	}
	steps, err := stepsIn(root)
	if err != nil || len(steps) == 0 {
		return "", false, err
	}
	return filepath.Join(root, stepName(steps[len(steps)-1])), true, nil
}

// LoadTraining reads a training checkpoint; dir may be a run's latest.
func LoadTraining(dir string) (*Model, *Optimizer, *Trainer, error) {
	data, err := os.ReadFile(filepath.Join(dir, TrainerFile))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("checkpoint %s: not one of a training run: %w", dir, plain(err))
	}
	t, err := parseTrainer(data)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("checkpoint %s: %s: %w", dir, TrainerFile, err)
	}
	m, err := Load(dir)
	if err != nil {
		return nil, nil, nil, err
	}
	o, err := readOptimizer(filepath.Join(dir, OptimizerFile), m.Config)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("checkpoint: %w", err)
	}
	return m, o, t, nil
}

func parseTrainer(data []byte) (*Trainer, error) {
	var t Trainer
	if err := json.Unmarshal(data, &t); err != nil {
		return nil, err
	}
	if t.Version != trainerVersion {
		return nil, fmt.Errorf("version %d: this program reads version %d", t.Version, trainerVersion)
	}
	if t.Step < 0 || t.LayerStep < 0 || t.Layer < 0 || t.Epoch < 0 || t.Index < 0 || t.Seen < 0 || t.Tokens < 0 {
		return nil, errors.New("a negative position")
	}
	for topic, parts := range t.Offsets {
		for p, off := range parts {
			if p < 0 || off < 0 {
				return nil, fmt.Errorf("offset %d of topic %s partition %d", off, topic, p)
			}
		}
	}
	return &t, nil
}

// Suffixes of an optimiser's tensors.
const (
	meanSuffix     = ".exp_avg"
	varianceSuffix = ".exp_avg_sq"
	stepSuffix     = ".step"
)

// check says what of a state does not belong to a model of configuration c.
func (o *Optimizer) check(c Config) error {
	if len(o.Mean) != len(o.Steps) || len(o.Variance) != len(o.Steps) {
		return fmt.Errorf("optimizer: %d means, %d variances and %d step counts", len(o.Mean), len(o.Variance), len(o.Steps))
	}
	sizes := map[string]int{}
	for _, s := range c.Specs() {
		sizes[s.Name] = s.Size()
	}
	for name, n := range o.Steps {
		size, ok := sizes[name]
		if !ok {
			return fmt.Errorf("optimizer: weight %s is unknown to a %s", name, c.Architecture)
		}
		if len(o.Mean[name]) != size || len(o.Variance[name]) != size {
			return fmt.Errorf("optimizer: weight %s: moments of %d and %d elements, want %d", name, len(o.Mean[name]), len(o.Variance[name]), size)
		}
		if n < 0 {
			return fmt.Errorf("optimizer: weight %s: step %d", name, n)
		}
	}
	return nil
}

func (o *Optimizer) write(path string, c Config) error {
	var list []safetensors.Info
	var write []func(io.Writer) error
	for _, s := range c.Specs() {
		n, ok := o.Steps[s.Name]
		if !ok {
			continue
		}
		for _, v := range []struct {
			suffix string
			values []float32
		}{{meanSuffix, o.Mean[s.Name]}, {varianceSuffix, o.Variance[s.Name]}} {
			list = append(list, safetensors.Info{Name: s.Name + v.suffix, Type: dtype.Float32, Shape: s.Shape, Bytes: 4 * int64(len(v.values))})
			write = append(write, func(w io.Writer) error { return writeFloats(w, v.values) })
		}
		list = append(list, safetensors.Info{Name: s.Name + stepSuffix, Type: dtype.Int64, Shape: []int{1}, Bytes: 8})
		write = append(write, func(w io.Writer) error { return binary.Write(w, binary.LittleEndian, n) })
	}
	return safetensors.WriteStream(path, list, nil, func(i int, w io.Writer) error { return write[i](w) })
}

func readOptimizer(path string, c Config) (*Optimizer, error) {
	f, err := safetensors.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	specs := map[string]Spec{}
	for _, s := range c.Specs() {
		specs[s.Name] = s
	}
	o := &Optimizer{Mean: map[string][]float32{}, Variance: map[string][]float32{}, Steps: map[string]int64{}}
	var buf []byte
	for i, t := range f.Tensors {
		if buf, err = f.Data(i, buf); err != nil {
			return nil, err
		}
		if name, ok := strings.CutSuffix(t.Name, stepSuffix); ok && t.Type == dtype.Int64 && len(buf) == 8 {
			o.Steps[name] = int64(binary.LittleEndian.Uint64(buf))
			continue
		}
		into := o.Mean
		name, ok := strings.CutSuffix(t.Name, meanSuffix)
		if !ok {
			into = o.Variance
			name, ok = strings.CutSuffix(t.Name, varianceSuffix)
		}
		s, known := specs[name]
		if !ok || !known {
			return nil, fmt.Errorf("%s: tensor %s is unknown", path, t.Name)
		}
		if t.Type != dtype.Float32 || !slices.Equal(t.Shape, s.Shape) {
			return nil, fmt.Errorf("%s: tensor %s is %s %v, want F32 %v", path, t.Name, t.Type, t.Shape, s.Shape)
		}
		v := make([]float32, s.Size())
		if err := dtype.Decode(v, t.Type, buf); err != nil {
			return nil, fmt.Errorf("%s: tensor %s: %w", path, t.Name, err)
		}
		into[name] = v
	}
	if err := o.check(c); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return o, nil
}
