// Package transforms holds the Beam transforms that the pipelines are made of.
// What flows between their stages is descriptors only (a group of files, a
// partition of sequences): text, tokens and activations stay inside the DoFn
// that reads, works and writes.
package transforms

import (
	"context"
	"crypto/rand"
	"sync"
	"sync/atomic"
)

// A Launch is one run of a pipeline as seen from the process that started it.
// DoFns that run in that process (they do with the in-process runner and in
// Beam's loopback mode) find it by its ID and through it stop when the launch
// is cancelled, count their progress, and leave the plain error that Beam
// would bury in its own. DoFns in other processes find nothing and do without.
type Launch struct {
	ID LaunchID

	// Notice is told what people should know; may be nil.
	Notice func(string)

	ctx    context.Context
	done   atomic.Int64
	tokens atomic.Int64
	taught taught

	first sync.Once
	begun chan struct{} // closed when the first task begins

	mu      sync.Mutex
	running int
	ended   *sync.Cond // a task ended
	err     error
}

// LaunchID is the part of a Launch that a DoFn carries to its worker.
type LaunchID string

var launches sync.Map // LaunchID → *Launch, those open in this process

// NewLaunch opens a launch that lasts until Close.
func NewLaunch(ctx context.Context) *Launch {
	l := &Launch{ID: LaunchID(rand.Text()), ctx: ctx, begun: make(chan struct{})}
	l.ended = sync.NewCond(&l.mu)
	launches.Store(l.ID, l)
	return l
}

// Close ends the launch: after a cancellation it waits until the DoFns in this
// process have cleaned up.
func (l *Launch) Close() {
	if l.ctx.Err() == nil {
		launches.Delete(l.ID)
		return
	}
	// A cancelled launch stays known: a runner in this process may still
	// begin tasks of it, which have to end at once.
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.running > 0 {
		l.ended.Wait()
	}
}

// Progress is how many units of the stage's work (bytes, sequences) and how
// many tokens the DoFns in this process have done.
func (l *Launch) Progress() (done, tokens int64) { return l.done.Load(), l.tokens.Load() }

// Begun is closed when a DoFn in this process has begun.
func (l *Launch) Begun() <-chan struct{} { return l.begun }

// Err is the first error of a DoFn in this process.
func (l *Launch) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// A Task is one element's processing in a DoFn.
type Task struct {
	launch *Launch // nil in other processes
	cancel context.CancelFunc
	stop   func() bool
	quiet  bool
}

// Begin starts a task of the launch. The context it returns is cancelled with
// the bundle's, ctx, and with the launch's. The caller defers End.
func (id LaunchID) Begin(ctx context.Context) (context.Context, *Task) {
	ctx, cancel := context.WithCancel(ctx)
	t := &Task{cancel: cancel, stop: func() bool { return true }}
	if l, ok := launches.Load(id); ok {
		t.launch = l.(*Launch)
		t.launch.first.Do(func() { close(t.launch.begun) })
		t.launch.mu.Lock()
		t.launch.running++
		t.launch.mu.Unlock()
		t.stop = context.AfterFunc(t.launch.ctx, cancel)
	}
	return ctx, t
}

// Advance adds to the launch's progress.
func (t *Task) Advance(done, tokens int64) {
	if t.launch != nil && !t.quiet {
		t.launch.done.Add(done)
		t.launch.tokens.Add(tokens)
	}
}

// Say tells people something, on the machine that launched the pipeline.
func (t *Task) Say(text string) {
	if t.launch != nil && t.launch.Notice != nil {
		t.launch.Notice(text)
	}
}

// quietly is the task without its progress: for work that is done again.
func (t *Task) quietly() *Task {
	q := *t
	q.quiet = true
	return &q
}

// End ends the task; err is the DoFn's named result.
func (t *Task) End(err *error) {
	t.stop()
	t.cancel()
	if t.launch == nil {
		return
	}
	t.launch.mu.Lock()
	defer t.launch.mu.Unlock()
	if t.launch.err == nil {
		t.launch.err = *err
	}
	t.launch.running--
	t.launch.ended.Broadcast()
}
