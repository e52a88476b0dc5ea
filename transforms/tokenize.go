package transforms

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"

	"github.com/apache/beam/sdks/v2/go/pkg/beam"
	"github.com/apache/beam/sdks/v2/go/pkg/beam/register"

	"github.com/scavenge/scavenge/schemas/tokenizer"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

func init() {
	register.DoFn3x1[context.Context, Group, func(Written), error](&tokenizeFn{})
	register.DoFn3x1[context.Context, int, func(*Written) bool, error](&completeFn{})
	register.Emitter1[Written]()
	register.Iter1[Written]()
	beam.RegisterType(reflect.TypeFor[Group]())
	beam.RegisterType(reflect.TypeFor[Written]())
}

// Recipe says how text becomes a token set. Its paths are absolute and seen by
// every worker.
type Recipe struct {
	Dir         string // of the token set; it exists
	Tokenizer   string // path of tokenizer.json
	Fingerprint string // of that file
	SeqLen      int
	Seed        int64
	Sample      float64 // share of the documents that is taken
	Validation  float64 // share of those that goes to the validation split
}

// Tokenize writes, for each group, its train and its validation shard, and
// completes the token set with its manifest when all are there. Shards that an
// earlier run of the same recipe finished are left as they are.
func Tokenize(s beam.Scope, launch LaunchID, r Recipe, groups []Group) {
	s = s.Scope("Tokenize")
	plan := beam.Reshuffle(s, beam.CreateList(s, groups)) // without it all groups are one bundle
	written := beam.ParDo(s, &tokenizeFn{Recipe: r, Launch: launch}, plan)
	beam.ParDo0(s, &completeFn{Recipe: r, Launch: launch, Of: len(groups)}, beam.GroupByKey(s, beam.AddFixedKey(s, written)))
}

// Written describes a group's finished shards: the second descriptor that
// crosses a stage.
type Written struct {
	Index int
	// Train, Validation and Inputs as JSON: Beam's coders know them by no other name.
	JSON []byte
}

// made is what Written carries.
type made struct {
	Train, Validation shardNote
	Inputs            []tokenset.Input // the files that begin in the group
}

// shardNote is a shard and what its Parquet rows do not say.
type shardNote struct {
	Shard tokenset.Shard
	Note  note
}

// note is kept in each shard's file, so that a rerun knows the shard for its
// own and what to say of it.
type note struct {
	Recipe    string   `json:"recipe"` // hash of all that the shard's content depends on
	Documents int64    `json:"documents"`
	Dropped   int64    `json:"tokens_dropped"`
	Replaced  int64    `json:"replaced,omitempty"` // invalid UTF-8 in the group's input
	Inputs    []string `json:"inputs,omitempty"`   // sha256 of the group's whole files, "" for parts
}

// noteKey is the note's key in the Parquet file's metadata.
const noteKey = "scavenge"

// tokenizeFn makes one group's shards.
type tokenizeFn struct {
	Recipe Recipe
	Launch LaunchID
}

// working bounds the groups that are worked on at once in this process: a
// runner may start many more bundles than there are cores, and each holds a
// row group of two shards in memory.
var working = make(chan struct{}, runtime.GOMAXPROCS(0))

func (fn *tokenizeFn) ProcessElement(ctx context.Context, g Group, emit func(Written)) (err error) {
	ctx, task := fn.Launch.Begin(ctx)
	defer task.End(&err)
	select {
	case working <- struct{}{}:
		defer func() { <-working }()
	case <-ctx.Done():
		return ctx.Err()
	}
	m, ok := fn.Recipe.finished(g)
	if ok {
		task.Advance(g.Bytes(), (m.Train.Shard.Rows+m.Validation.Shard.Rows)*int64(fn.Recipe.SeqLen))
	} else if m, err = fn.Recipe.tokenize(ctx, g, task); err != nil {
		return err
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	emit(Written{Index: g.Index, JSON: data})
	return nil
}

// shardPaths are a group's two shards.
func (r Recipe) shardPaths(g Group) (train, validation string) {
	return filepath.Join(r.Dir, tokenset.ShardName(tokenset.Train, g.Index, g.Of)),
		filepath.Join(r.Dir, tokenset.ShardName(tokenset.Validation, g.Index, g.Of))
}

// hash identifies what a group's shards are made from. Folders do not count:
// the same files elsewhere give the same shards, byte for byte.
func (r Recipe) hash(g Group) string {
	h := sha256.New()
	fmt.Fprintf(h, "%d %s %d %d %g %g %d %d\n", tokenset.Version, r.Fingerprint, r.SeqLen, r.Seed, r.Sample, r.Validation, g.Index, g.Of)
	for _, p := range g.Pieces {
		fmt.Fprintf(h, "%q %d %d %d %s\n", filepath.Base(p.Name), p.Size, p.Start, p.End, p.Layout)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// finished is a group whose two shards are there already, from the same
// recipe, and whose input has not been written to since.
func (r Recipe) finished(g Group) (m made, ok bool) {
	train, validation := r.shardPaths(g)
	want := r.hash(g)
	for _, s := range []struct {
		path string
		into *shardNote
	}{{train, &m.Train}, {validation, &m.Validation}} {
		st, err := os.Stat(s.path)
		if err != nil {
			return m, false
		}
		for _, p := range g.Pieces {
			if in, err := os.Stat(p.Path); err != nil || in.ModTime().After(st.ModTime()) {
				return m, false
			}
		}
		shard, notes, err := tokenset.Describe(s.path)
		if err != nil || json.Unmarshal([]byte(notes[noteKey]), &s.into.Note) != nil || s.into.Note.Recipe != want {
			return m, false
		}
		s.into.Shard = shard
	}
	if len(m.Train.Note.Inputs) != len(g.Pieces) {
		return m, false
	}
	m.Inputs = inputs(g, m.Train.Note.Inputs)
	return m, true
}

// inputs lists the files that begin in the group.
func inputs(g Group, sums []string) (list []tokenset.Input) {
	for i, p := range g.Pieces {
		if p.Start == 0 {
			list = append(list, tokenset.Input{Name: p.Name, Bytes: p.Size, SHA256: sums[i]})
		}
	}
	return list
}

// tokenize reads a group's documents and writes its shards.
func (r Recipe) tokenize(ctx context.Context, g Group, task *Task) (m made, err error) {
	tok, err := loadTokenizer(r.Tokenizer, r.Fingerprint)
	if err != nil {
		return m, err
	}
	p := &packer{recipe: r, tok: tok, task: task}
	trainPath, validationPath := r.shardPaths(g)
	for _, s := range []struct {
		path string
		into *split
	}{{trainPath, &p.train}, {validationPath, &p.validation}} {
		if s.into.w, err = tokenset.NewWriter(s.path, g.Index, r.SeqLen); err != nil {
			return m, err
		}
		defer s.into.w.Abort()
	}
	train := note{Recipe: r.hash(g)}
	validation := train
	for _, piece := range g.Pieces {
		d, err := piece.read(ctx, p)
		if err != nil {
			return m, err
		}
		train.Inputs = append(train.Inputs, d.SHA256)
		train.Replaced += d.Replaced
	}
	if m.Train, err = p.train.close(train); err != nil {
		return m, err
	}
	if m.Validation, err = p.validation.close(validation); err != nil {
		return m, err
	}
	m.Inputs = inputs(g, train.Inputs)
	return m, nil
}

// tokenizers keeps what this process has loaded, by fingerprint.
var tokenizers sync.Map

func loadTokenizer(path, fingerprint string) (*tokenizer.Tokenizer, error) {
	if t, ok := tokenizers.Load(fingerprint); ok {
		return t.(*tokenizer.Tokenizer), nil
	}
	t, err := tokenizer.Load(path)
	if err != nil {
		return nil, err
	}
	if t.Fingerprint() != fingerprint {
		return nil, fmt.Errorf("tokenizer %s: not the file that this run was started with: its sha256 is %s, that was %s", path, t.Fingerprint(), fingerprint)
	}
	tokenizers.Store(fingerprint, t)
	return t, nil
}

// A packer turns documents into sequences of the two splits.
type packer struct {
	recipe     Recipe
	tok        *tokenizer.Tokenizer
	task       *Task
	train      split
	validation split
}

// split is one shard in the making.
type split struct {
	w         *tokenset.Writer
	documents int64
	tokens    []int32 // not yet a whole sequence
}

func (p *packer) read(bytes int64) { p.task.Advance(bytes, 0) }

// document encodes one document, ends it with <|endoftext|>, and cuts whole
// sequences off. Empty documents are left out.
func (p *packer) document(text []byte) error {
	if len(text) == 0 || !chosen(p.recipe.Seed, "sample", text, p.recipe.Sample) {
		return nil
	}
	s := &p.train
	if chosen(p.recipe.Seed, "validation", text, p.recipe.Validation) {
		s = &p.validation
	}
	before := len(s.tokens)
	s.tokens = p.tok.AppendEncode(s.tokens, text)
	end, _ := p.tok.EndOfText()
	s.tokens = append(s.tokens, end)
	s.documents++
	p.task.Advance(0, int64(len(s.tokens)-before))
	n, whole := p.recipe.SeqLen, s.tokens
	for ; len(whole) >= n; whole = whole[n:] {
		if err := s.w.Append(whole[:n]); err != nil {
			return err
		}
	}
	s.tokens = append(s.tokens[:0], whole...)
	return nil
}

// close finishes the shard with its note.
func (s *split) close(n note) (shardNote, error) {
	n.Documents, n.Dropped = s.documents, int64(len(s.tokens))
	data, err := json.Marshal(n)
	if err != nil {
		return shardNote{}, err
	}
	s.w.Note(noteKey, string(data))
	shard, err := s.w.Close()
	return shardNote{shard, n}, err
}

// chosen draws, for a document, with the given chance. The draw is a function
// of the seed, what it is for, and the text, and so of nothing else: not of
// the order, the file or the shard.
func chosen(seed int64, what string, text []byte, chance float64) bool {
	if chance <= 0 || chance >= 1 {
		return chance >= 1
	}
	h := sha256.New()
	h.Write(binary.LittleEndian.AppendUint64(nil, uint64(seed)))
	h.Write([]byte(what + "\x00"))
	h.Write(text)
	u := binary.LittleEndian.Uint64(h.Sum(nil))
	return float64(u>>11)/(1<<53) < chance
}

// completeFn writes the manifest, last, when every group's shards are there.
type completeFn struct {
	Recipe Recipe
	Launch LaunchID
	Of     int
}

func (fn *completeFn) ProcessElement(ctx context.Context, _ int, each func(*Written) bool) (err error) {
	_, task := fn.Launch.Begin(ctx)
	defer task.End(&err)
	all := make([]*made, fn.Of)
	var w Written
	for each(&w) {
		m := new(made)
		if err := json.Unmarshal(w.JSON, m); err != nil {
			return err
		}
		if w.Index < 0 || w.Index >= fn.Of {
			return fmt.Errorf("token set %s: shard %d of %d", fn.Recipe.Dir, w.Index, fn.Of)
		}
		all[w.Index] = m // a runner that retries may give one twice; they are equal
	}
	for i, m := range all {
		if m == nil {
			return fmt.Errorf("token set %s: shard %d of %d was not made", fn.Recipe.Dir, i, fn.Of)
		}
	}
	return fn.Recipe.complete(all)
}

func (r Recipe) complete(all []*made) error {
	tok, err := loadTokenizer(r.Tokenizer, r.Fingerprint)
	if err != nil {
		return err
	}
	end, ok := tok.EndOfText()
	if !ok {
		return fmt.Errorf("tokenizer %s: no %s", r.Tokenizer, tokenizer.EndOfText)
	}
	train, validation := new(tokenset.Counts), new(tokenset.Counts)
	m := &tokenset.Manifest{
		Tokenizer: tokenset.Tokenizer{SHA256: r.Fingerprint, Vocab: tok.Vocab(), EndOfText: end},
		SeqLen:    r.SeqLen, Seed: r.Seed, Sample: r.Sample, Validation: r.Validation,
		Splits: map[tokenset.Split]*tokenset.Counts{tokenset.Train: train, tokenset.Validation: validation},
	}
	var shards []string
	for _, g := range all {
		add(train, g.Train, r.SeqLen)
		add(validation, g.Validation, r.SeqLen)
		shards = append(shards, g.Train.Shard.Name, g.Validation.Shard.Name)
		m.Inputs = append(m.Inputs, g.Inputs...)
		m.Replaced += g.Train.Note.Replaced
	}
	if train.Rows == 0 { // nothing to train on: leave nothing behind
		err := fmt.Errorf("token set %s: the %d documents for training have %d tokens, less than one sequence of %d", r.Dir, train.Documents, train.TokensDropped, r.SeqLen)
		if train.Documents+validation.Documents == 0 {
			err = fmt.Errorf("token set %s: the input has no text, or the sample none of it", r.Dir)
		} else if len(all) > 1 {
			err = fmt.Errorf("token set %s: none of %d shards has one sequence of %d tokens: larger shards or shorter sequences are needed", r.Dir, len(all), r.SeqLen)
		}
		return errors.Join(append([]error{err}, removeAll(r.Dir, shards)...)...)
	}
	if validation.Rows == 0 { // a split without sequences has no shards
		var names []string
		for _, s := range validation.Shards {
			names = append(names, s.Name)
		}
		if errs := removeAll(r.Dir, names); len(errs) > 0 {
			return errs[0]
		}
		validation.Shards = nil
	}
	return tokenset.WriteManifest(r.Dir, m)
}

func removeAll(dir string, names []string) (errs []error) {
	for _, name := range names {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errs
}

// add counts a shard in.
func add(c *tokenset.Counts, s shardNote, seqLen int) {
	c.Documents += s.Note.Documents
	c.Rows += s.Shard.Rows
	c.Tokens += s.Shard.Rows * int64(seqLen)
	c.TokensDropped += s.Note.Dropped
	c.Shards = append(c.Shards, s.Shard)
}

// RemoveOthers removes the shards that an unfinished run with another number
// of groups left in the folder: readers of Parquet take all files that match
// train-*. Files that no such run wrote stay.
func (r Recipe) RemoveOthers(groups int) error {
	for _, s := range []tokenset.Split{tokenset.Train, tokenset.Validation} {
		names, err := filepath.Glob(filepath.Join(globQuote(r.Dir), string(s)+"-?????-of-?????.parquet"))
		if err != nil {
			return fmt.Errorf("token set %s: %w", r.Dir, err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, fmt.Sprintf("-of-%05d.parquet", groups)) {
				continue
			}
			if _, notes, err := tokenset.Describe(name); err != nil || notes[noteKey] == "" {
				return fmt.Errorf("token set %s: %s is there, which this program did not write: name another --output, or remove it", r.Dir, filepath.Base(name))
			}
			if err := os.Remove(name); err != nil {
				return fmt.Errorf("token set %s: %w", r.Dir, err)
			}
		}
	}
	return nil
}

// globQuote makes a path match only itself in a glob.
func globQuote(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}
