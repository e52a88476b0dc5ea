package transforms

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/scavenge/scavenge/schemas/store"
	"github.com/scavenge/scavenge/schemas/tokenizer"
	"github.com/scavenge/scavenge/schemas/tokenrun"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// DefaultRunTokens is when a run is written: what a worker that reads holds in
// memory, at two bytes a token where the vocabulary allows. The whole of
// OpenWebText makes about 300 runs.
const DefaultRunTokens = 32 << 20

// scanned is what a group gave: it is written when all its runs are there, and
// so says that they are.
type scanned struct {
	Runs    []string // names in the work folder
	Docs    int64
	Tokens  int64
	Sums    []string // sha256 of the pieces that are whole files; "" for others
	Omitted tokenset.Omitted
}

func (r Recipe) scannedPath(i int) string { return r.work(fmt.Sprintf("scanned-%05d.json", i)) }

// scanFn reads one group into runs.
type scanFn struct {
	step
	bundle bundle[int]
}

func (fn *scanFn) ProcessElement(ctx context.Context, i int, _ func(int)) error {
	return fn.bundle.start(ctx, &fn.step, func(ctx context.Context, task *Task) (int, error) {
		var g Group
		if err := loadJSON(ctx, fn.Recipe.groupPath(i), &g); err != nil {
			return i, err
		}
		if s, ok := fn.Recipe.finishedScan(ctx, i); ok {
			task.Advance(g.Bytes(), s.Tokens)
			return i, nil
		}
		return i, fn.Recipe.scan(ctx, i, g, task)
	})
}

func (fn *scanFn) FinishBundle(_ context.Context, emit func(int)) error {
	return fn.bundle.finish(emit)
}

// finishedScan is a group that was read, and whose runs are whole.
func (r Recipe) finishedScan(ctx context.Context, i int) (s scanned, ok bool) {
	if loadJSON(ctx, r.scannedPath(i), &s) != nil {
		return s, false
	}
	for _, name := range s.Runs {
		run, err := tokenrun.Open(r.work(name))
		if err != nil {
			return s, false
		}
		err = run.Verify()
		if run.Close(); err != nil {
			return s, false
		}
	}
	return s, true
}

// RunsOf lists the runs of a group that was read.
func (r Recipe) RunsOf(ctx context.Context, i int) []string {
	var s scanned
	if loadJSON(ctx, r.scannedPath(i), &s) != nil {
		return nil
	}
	return s.Runs
}

// scan reads a group. Where a file turns out to be damaged and the rules allow
// it, the group is read again without that file: what it gave before the place
// of the damage cannot be told from the rest any more, and need not be right.
func (r Recipe) scan(ctx context.Context, index int, g Group, task *Task) error {
	leftOut := map[int]*badDocument{}
	for {
		s := &scan{ctx: ctx, recipe: r, index: index, task: task, leftOut: leftOut}
		again, err := s.group(ctx, g)
		if err != nil || again {
			s.remove()
		}
		if err != nil {
			return err
		}
		if !again {
			return nil
		}
		task = s.task.quietly()
	}
}

// A scan turns documents into runs.
type scan struct {
	ctx     context.Context // of this group's reading
	recipe  Recipe
	index   int
	task    *Task
	leftOut map[int]*badDocument // pieces, by index
	tok     *tokenizer.Tokenizer
	end     int32
	build   *tokenrun.Builder
	tokens  []int32 // of one document
	out     scanned
}

// builders keeps the memory of runs between groups.
var builders = make(chan *tokenrun.Builder, cap(working))

func (s *scan) group(ctx context.Context, g Group) (again bool, err error) {
	if s.tok, err = loadTokenizer(ctx, s.recipe.Tokenizer, s.recipe.Fingerprint); err != nil {
		return false, err
	}
	s.end, _ = s.tok.EndOfText()
	if s.recipe.RunTokens == 0 {
		s.recipe.RunTokens = DefaultRunTokens
	}
	select {
	case s.build = <-builders:
	default:
	}
	if s.build != nil && s.build.Fits(s.tok.Vocab(), s.recipe.RunTokens) {
		s.build.Reset()
	} else {
		s.build = tokenrun.NewBuilder(s.tok.Vocab(), s.recipe.RunTokens)
	}
	defer func() {
		select {
		case builders <- s.build:
		default:
		}
	}()
	for i, p := range g.Pieces {
		if bad := s.leftOut[i]; bad != nil {
			s.out.Omitted.Add(bad.kind, p.Name+": "+bad.Error())
			s.out.Sums = append(s.out.Sums, "")
			continue
		}
		sum, err := p.read(ctx, s, s.recipe.Rules, &s.out.Omitted)
		var bad *badDocument
		if errors.As(err, &bad) && s.recipe.Rules.Skip {
			s.leftOut[i] = bad
			return true, nil
		}
		if err != nil {
			return false, err
		}
		s.out.Sums = append(s.out.Sums, sum)
	}
	if s.build.Len() > 0 {
		if err := s.write(); err != nil {
			return false, err
		}
	}
	return false, saveJSON(ctx, s.recipe.scannedPath(s.index), s.out)
}

func (s *scan) read(bytes int64) { s.task.Advance(bytes, 0) }

// document encodes one document and ends it with <|endoftext|>.
func (s *scan) document(text []byte) error {
	s.tokens = append(s.tok.AppendEncode(s.tokens[:0], text), s.end)
	id := idOf(text)
	s.build.Add(draw(s.recipe.Seed, forOrder, id), id, s.tokens)
	s.out.Docs++
	s.out.Tokens += int64(len(s.tokens))
	s.task.Advance(0, int64(len(s.tokens)))
	if cap(s.tokens) > keptTokens {
		s.tokens = nil
	}
	if s.build.Full() {
		return s.write()
	}
	return nil
}

// keptTokens is the size up to which the memory of a document is kept.
const keptTokens = 1 << 20

// write makes a run of what waits. Its name is new, so that two workers on one
// group, should a runner start them, do not meet.
func (s *scan) write() error {
	name := fmt.Sprintf("run-%05d-%02d-%s", s.index, len(s.out.Runs), rand.Text()[:8])
	if err := s.build.Write(s.recipe.work(name)); err != nil {
		return err
	}
	s.out.Runs = append(s.out.Runs, name)
	return nil
}

// remove removes the runs of a scan that came to nothing.
func (s *scan) remove() {
	for _, name := range s.out.Runs {
		store.Remove(context.WithoutCancel(s.ctx), s.recipe.work(name))
	}
}
