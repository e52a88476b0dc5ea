package transforms

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"reflect"
	"runtime"
	"sync"

	"github.com/apache/beam/sdks/v2/go/pkg/beam"
	"github.com/apache/beam/sdks/v2/go/pkg/beam/register"

	"github.com/scavenge/scavenge/schemas/store"
	"github.com/scavenge/scavenge/schemas/tokenizer"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

func init() {
	register.DoFn3x1[context.Context, int, func(int), error](&scanFn{})
	register.DoFn4x1[context.Context, int, func(*int) bool, func(int), error](&scannedFn{})
	register.DoFn3x1[context.Context, int, func(Result), error](&surveyFn{})
	register.DoFn4x1[context.Context, int, func(*Result) bool, func(int), error](&layOutFn{})
	register.DoFn3x1[context.Context, int, func(Result), error](&writeFn{})
	register.DoFn3x1[context.Context, int, func(*Result) bool, error](&completeFn{})
	register.Emitter1[int]()
	register.Emitter1[Result]()
	register.Iter1[int]()
	register.Iter1[Result]()
	beam.RegisterType(reflect.TypeFor[Result]())
}

// Result is what a task reports: a descriptor that crosses a stage.
type Result struct {
	Index int
	// The rest as JSON: Beam's coders know it by no other name.
	JSON []byte
}

// Tokenize makes a token set of the groups that SaveGroups has written down.
//
//	scan      a group of files → runs: tokenised documents, sorted by the hash
//	          of (seed, document)                            [every group]
//	survey    what all runs hold of a sixteenth of the hashes   [64 tasks]
//	lay out   from the exact counts: which sequences go into which shard
//	write     merge the runs' part of a shard, cut it into sequences [every shard]
//	complete  the manifest, last
//
// What crosses a stage is a number or a few counts; runs, groups and the
// layout are files in the set's work folder, which every worker sees. The
// order of the documents is that of their hashes, so that neither files, nor
// groups, nor workers show in the result. What an earlier run of the same
// recipe has finished is left as it is.
func Tokenize(s beam.Scope, launch LaunchID, r Recipe) {
	s = s.Scope("Tokenize")
	step := step{Recipe: r, Launch: launch}
	groups := make([]int, r.Groups)
	for i := range groups {
		groups[i] = i
	}
	scanned := beam.ParDo(s, &scanFn{step: step}, beam.Reshuffle(s, beam.CreateList(s, groups))) // without it all are one bundle
	ranges := beam.ParDo(s, &scannedFn{step}, beam.GroupByKey(s, beam.AddFixedKey(s, scanned)))
	surveyed := beam.ParDo(s, &surveyFn{step: step}, beam.Reshuffle(s, ranges))
	shards := beam.ParDo(s, &layOutFn{step}, beam.GroupByKey(s, beam.AddFixedKey(s, surveyed)))
	written := beam.ParDo(s, &writeFn{step: step}, beam.Reshuffle(s, shards))
	beam.ParDo0(s, &completeFn{step}, beam.GroupByKey(s, beam.AddFixedKey(s, written)))
}

// step is what each DoFn carries.
type step struct {
	Recipe Recipe
	Launch LaunchID
}

// working bounds what is worked on at once in this process: a runner may start
// many more bundles than there are cores, and each holds a run or a row group
// in memory.
var working = make(chan struct{}, runtime.GOMAXPROCS(0))

// begin starts a task when there is room for it. The caller defers end.
func (s *step) begin(ctx context.Context) (_ context.Context, task *Task, end func(*error), err error) {
	ctx, task = s.Launch.Begin(ctx)
	select {
	case working <- struct{}{}:
		return ctx, task, func(err *error) { <-working; task.End(err) }, nil
	case <-ctx.Done():
		err = ctx.Err()
		task.End(&err)
		return ctx, task, nil, err
	}
}

func saveJSON(ctx context.Context, path string, v any) error {
	return store.WriteFile(ctx, path, func(w io.Writer) error { return json.NewEncoder(w).Encode(v) })
}

func loadJSON(ctx context.Context, path string, v any) error {
	data, err := store.ReadFile(ctx, path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// SaveGroups writes the groups down for the workers.
func (r Recipe) SaveGroups(ctx context.Context, groups iter.Seq2[Group, error]) error {
	i := 0
	for g, err := range groups {
		if err == nil {
			err = saveJSON(ctx, r.groupPath(i), g)
		}
		if err != nil {
			return fmt.Errorf("token set: %w", err)
		}
		i++
	}
	return nil
}

// SavedGroups reads the first n of them back, one at a time.
func (r Recipe) SavedGroups(ctx context.Context, n int) iter.Seq2[Group, error] {
	return func(yield func(Group, error) bool) {
		for i := range n {
			var g Group
			err := loadJSON(ctx, r.groupPath(i), &g)
			if err != nil {
				err = fmt.Errorf("token set: %w", err)
			}
			if !yield(g, err) || err != nil {
				return
			}
		}
	}
}

func (r Recipe) groupPath(i int) string { return r.work(fmt.Sprintf("group-%05d.json", i)) }

// tokenizers keeps what this process has loaded, by fingerprint.
var tokenizers sync.Map

// LoadTokenizer reads a tokenizer.json that can end documents. The DoFns in
// this process need not read it again.
func LoadTokenizer(ctx context.Context, path string) (*tokenizer.Tokenizer, error) {
	data, err := store.ReadFile(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	sum := sha256.Sum256(data)
	if t, ok := tokenizers.Load(hex.EncodeToString(sum[:])); ok {
		return t.(*tokenizer.Tokenizer), nil
	}
	t, err := tokenizer.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("tokenizer %s: %w", path, err)
	}
	if _, ok := t.EndOfText(); !ok {
		return nil, fmt.Errorf("tokenizer %s: it has no token %s to end documents with", path, tokenizer.EndOfText)
	}
	tokenizers.Store(t.Fingerprint(), t)
	return t, nil
}

func loadTokenizer(ctx context.Context, path, fingerprint string) (*tokenizer.Tokenizer, error) {
	if t, ok := tokenizers.Load(fingerprint); ok {
		return t.(*tokenizer.Tokenizer), nil
	}
	t, err := LoadTokenizer(ctx, path)
	if err != nil {
		return nil, err
	}
	if t.Fingerprint() != fingerprint {
		return nil, fmt.Errorf("tokenizer %s: not the file that this run was started with: its sha256 is %s, that was %s", path, t.Fingerprint(), fingerprint)
	}
	return t, nil
}

// scannedFn waits for all groups, and hands out the survey.
type scannedFn struct{ step }

func (fn *scannedFn) ProcessElement(ctx context.Context, _ int, each func(*int) bool, emit func(int)) (err error) {
	ctx, task := fn.Launch.Begin(ctx)
	defer task.End(&err)
	done := make([]bool, fn.Recipe.Groups)
	var i int
	for each(&i) {
		if i < 0 || i >= len(done) {
			return fmt.Errorf("token set %s: group %d of %d", fn.Recipe.Dir, i, len(done))
		}
		done[i] = true // a runner that retries may give one twice
	}
	for i, ok := range done {
		if !ok {
			return fmt.Errorf("token set %s: group %d of %d was not read", fn.Recipe.Dir, i, len(done))
		}
	}
	var all gathered
	for i := range fn.Recipe.Groups {
		var s scanned
		if err := loadJSON(ctx, fn.Recipe.scannedPath(i), &s); err != nil {
			return fmt.Errorf("token set: %w", err)
		}
		all.Runs = append(all.Runs, s.Runs...)
		all.Omitted.Merge(&s.Omitted)
	}
	if err := saveJSON(ctx, fn.Recipe.gatheredPath(), all); err != nil {
		return err
	}
	for i := range surveys {
		emit(i)
	}
	return nil
}

// gathered is what all groups gave.
type gathered struct {
	Runs    []string
	Omitted tokenset.Omitted
}

func (r Recipe) gatheredPath() string { return r.work("gathered.json") }

func (r Recipe) gathered(ctx context.Context) (g gathered, err error) {
	if err := loadJSON(ctx, r.gatheredPath(), &g); err != nil {
		return g, fmt.Errorf("token set: %w", err)
	}
	return g, nil
}

// results gathers n tasks' reports.
func results[T any](dir string, n int, each func(*Result) bool) ([]T, error) {
	all, seen := make([]T, n), make([]bool, n)
	var r Result
	for each(&r) {
		if r.Index < 0 || r.Index >= n {
			return nil, fmt.Errorf("token set %s: task %d of %d", dir, r.Index, n)
		}
		if err := json.Unmarshal(r.JSON, &all[r.Index]); err != nil {
			return nil, err
		}
		seen[r.Index] = true // a runner that retries may give one twice; they are equal
	}
	for i, ok := range seen {
		if !ok {
			return nil, fmt.Errorf("token set %s: task %d of %d was not done", dir, i, n)
		}
	}
	return all, nil
}

func newResult(index int, v any) (Result, error) {
	data, err := json.Marshal(v)
	return Result{Index: index, JSON: data}, err
}
