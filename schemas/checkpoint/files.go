package checkpoint

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/scavenge/scavenge/schemas/dtype"
	"github.com/scavenge/scavenge/schemas/durable"
	"github.com/scavenge/scavenge/schemas/safetensors"
)

// Files of a checkpoint folder.
const (
	ConfigFile    = "config.json"
	ModelFile     = "model.safetensors"
	IndexFile     = "model.safetensors.index.json"
	OptimizerFile = "optimizer.safetensors"
	TrainerFile   = "trainer.json"
)

// newest is the folder that dir means: itself where it is a checkpoint, the
// newest of its checkpoints where it is a training run's folder.
func newest(dir string) (string, error) {
	if _, err := os.Stat(filepath.Join(dir, ConfigFile)); err == nil {
		return dir, nil
	}
	latest, ok, err := Latest(dir)
	if err != nil || !ok {
		return dir, err
	}
	return latest, nil
}

// LoadConfig reads the config.json of a checkpoint, or of the newest one in a
// training run's folder.
func LoadConfig(dir string) (Config, error) {
	dir, err := newest(dir)
	if err != nil {
		return Config{}, err
	}
	data, err := os.ReadFile(filepath.Join(dir, ConfigFile))
	if err != nil {
		return Config{}, fmt.Errorf("checkpoint %s: %w", dir, plain(err))
	}
	c, err := ParseConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("checkpoint %s: %w", dir, err)
	}
	return c, nil
}

// Load reads a model: config.json and model.safetensors, or the shards that
// model.safetensors.index.json names. dir may also be a training run's folder,
// whose newest checkpoint is meant. Weights of any float type become float32.
// It accepts the folders of Hugging Face GPT-NeoX models, buffers of old
// versions included, and names a weight that is missing, unknown or misshapen.
func Load(dir string) (*Model, error) {
	dir, err := newest(dir)
	if err != nil {
		return nil, err
	}
	c, err := LoadConfig(dir)
	if err != nil {
		return nil, err
	}
	files, err := weightFiles(dir)
	if err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", dir, err)
	}
	l := newLoader(c.Specs())
	for _, name := range files {
		if err := l.read(filepath.Join(dir, name), known); err != nil {
			return nil, fmt.Errorf("checkpoint: %w", err)
		}
	}
	if name := l.missing(); name != "" {
		return nil, fmt.Errorf("checkpoint %s: weight %s is missing", dir, name)
	}
	return &Model{Config: c, Weights: l.values}, nil
}

// plain shortens "open /long/path: no such file" where the path is already told.
func plain(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return fmt.Errorf("%s: %w", filepath.Base(p.Path), p.Err)
	}
	return err
}

// weightFiles names the safetensors files of a folder, relative to it.
func weightFiles(dir string) ([]string, error) {
	if _, err := os.Stat(filepath.Join(dir, ModelFile)); err == nil {
		return []string{ModelFile}, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, plain(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, IndexFile))
	if errors.Is(err, os.ErrNotExist) {
		if old, _ := filepath.Glob(filepath.Join(dir, "pytorch_model*.bin")); len(old) > 0 {
			return nil, fmt.Errorf("has %s, which are Python pickles: convert them to %s first", filepath.Base(old[0]), ModelFile)
		}
		return nil, fmt.Errorf("has neither %s nor %s", ModelFile, IndexFile)
	} else if err != nil {
		return nil, plain(err)
	}
	return parseIndex(data)
}

// parseIndex reads which shards an index names.
func parseIndex(data []byte) ([]string, error) {
	var index struct {
		Weights map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("%s: %w", IndexFile, err)
	}
	var files []string
	for weight, name := range index.Weights {
		if name != filepath.Base(name) || filepath.Ext(name) != ".safetensors" {
			return nil, fmt.Errorf("%s: weight %s is in %q, which is no safetensors file of this folder", IndexFile, weight, name)
		}
		if !slices.Contains(files, name) {
			files = append(files, name)
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s: names no weights", IndexFile)
	}
	sort.Strings(files)
	return files, nil
}

// known gives a weight the name that Specs has for it, or "" for a buffer of
// an older version of transformers that no engine needs.
func known(name string) string {
	switch {
	case name == "lm_head.weight": // transformers 5 in memory; its files keep embed_out
		return EmbedOut
	case strings.HasSuffix(name, ".attention.bias"), strings.HasSuffix(name, ".attention.masked_bias"), strings.HasSuffix(name, "rotary_emb.inv_freq"):
		return ""
	}
	return name
}

// loader gathers float tensors of given shapes from files.
type loader struct {
	specs  []Spec
	byName map[string]Spec
	values map[string][]float32
	buf    []byte
}

func newLoader(specs []Spec) *loader {
	l := &loader{specs: specs, byName: map[string]Spec{}, values: map[string][]float32{}}
	for _, s := range specs {
		l.byName[s.Name] = s
	}
	return l
}

func (l *loader) read(path string, rename func(string) string) error {
	f, err := safetensors.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for i, t := range f.Tensors {
		name := rename(t.Name)
		if name == "" {
			continue
		}
		s, ok := l.byName[name]
		switch {
		case !ok:
			return fmt.Errorf("%s: weight %s is unknown", path, t.Name)
		case l.values[name] != nil:
			return fmt.Errorf("%s: weight %s is there twice", path, t.Name)
		case !slices.Equal(t.Shape, s.Shape):
			return fmt.Errorf("%s: weight %s has shape %v, want %v", path, t.Name, t.Shape, s.Shape)
		}
		switch t.Type {
		case dtype.Float32, dtype.Float16, dtype.BFloat16, dtype.Float64:
		default:
			return fmt.Errorf("%s: weight %s is of type %s, want a float type", path, t.Name, t.Type)
		}
		if l.buf, err = f.Data(i, l.buf); err != nil {
			return err
		}
		w := make([]float32, s.Size())
		if err := dtype.Decode(w, t.Type, l.buf); err != nil {
			return fmt.Errorf("%s: weight %s: %w", path, t.Name, err)
		}
		l.values[name] = w
	}
	return nil
}

func (l *loader) missing() string {
	for _, s := range l.specs {
		if l.values[s.Name] == nil {
			return s.Name
		}
	}
	return ""
}

// Save makes the folder dir of config.json and model.safetensors (float32),
// replacing a checkpoint that is there. Anything else there is an error.
func (m *Model) Save(dir string) error {
	if err := m.Check(); err != nil {
		return fmt.Errorf("checkpoint %s: %w", dir, err)
	}
	if err := replaceable(dir); err != nil {
		return fmt.Errorf("checkpoint %s: %w", dir, err)
	}
	return durable.WriteFolder(dir, m.write)
}

// replaceable keeps Save from deleting a folder that it has not made.
func replaceable(dir string) error {
	list, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(list) == 0 {
		return nil
	}
	if err != nil {
		return plain(err)
	}
	if _, err := os.Stat(filepath.Join(dir, ConfigFile)); err != nil {
		return errors.New("the folder is there and holds something else")
	}
	return nil
}

func (m *Model) write(dir string) error {
	if err := writeJSON(filepath.Join(dir, ConfigFile), m.Config); err != nil {
		return err
	}
	var list []safetensors.Info
	var values [][]float32
	for _, s := range m.Config.Specs() {
		list = append(list, safetensors.Info{Name: s.Name, Type: dtype.Float32, Shape: s.Shape, Bytes: 4 * int64(s.Size())})
		values = append(values, m.Weights[s.Name])
	}
	return safetensors.WriteStream(filepath.Join(dir, ModelFile), list, nil, func(i int, w io.Writer) error {
		return writeFloats(w, values[i])
	})
}

// writeFloats writes little-endian float32 in pieces that fit the caches.
func writeFloats(w io.Writer, v []float32) error {
	const piece = 1 << 14
	buf := make([]byte, 0, 4*min(piece, len(v)))
	for len(v) > 0 {
		n := min(piece, len(v))
		var err error
		if buf, err = dtype.Encode(buf[:0], dtype.Float32, v[:n]); err != nil {
			return err
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
		v = v[n:]
	}
	return nil
}

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return durable.WriteFile(path, func(w io.Writer) error {
		_, err := w.Write(append(data, '\n'))
		return err
	})
}

// Fingerprint identifies a model by what it computes: the hex sha256 of its
// configuration and of its weights as float32 in the order of Specs. The type
// and the division of the files it came from do not matter.
func (m *Model) Fingerprint() string {
	h := sha256.New()
	config, err := json.Marshal(m.Config)
	if err != nil { // a NaN; no model that passed Check has one
		config = fmt.Append(nil, m.Config)
	}
	h.Write(config)
	for _, s := range m.Config.Specs() {
		fmt.Fprintf(h, "\n%s %v\n", s.Name, s.Shape)
		writeFloats(h, m.Weights[s.Name]) // a hash does not fail
	}
	return hex.EncodeToString(h.Sum(nil))
}
