package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/scavenge/scavenge/schemas/durable"
)

// Lease is for how long a lock that is an object is held without a sign of its
// holder.
var Lease = 30 * time.Second

// Lock takes the lock that the file p stands for. On the local disk it ends
// with the process. An object's is a lease, which is renewed by writing it
// again: another process waits for as long as a lease lasts whether that
// happens, which notice is told, and takes it over where it does not. The
// context that is returned ends when the lock is lost, as it may be for a
// process that was stopped for long, and with ctx.
func Lock(ctx context.Context, p string, notice func(string)) (held context.Context, unlock func() error, err error) {
	if !Remote(p) {
		unlock, err := durable.Lock(p)
		return ctx, unlock, err
	}
	b, name, err := bucketOf(ctx, p)
	if err != nil {
		return nil, nil, err
	}
	host, _ := os.Hostname()
	l := &lease{bucket: b, name: name, path: p, owner: fmt.Sprintf("%s %d %s", host, os.Getpid(), rand.Text())}
	if err := l.write(ctx, ""); errors.Is(err, ErrConflict) {
		if err = l.takeOver(ctx, notice); errors.Is(err, ErrConflict) {
			err = durable.ErrLocked
		}
		if err != nil {
			return nil, nil, failed("lock", p, err)
		}
	} else if err != nil {
		return nil, nil, failed("lock", p, err)
	}
	held, cancel := context.WithCancelCause(ctx)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		l.keep(stop, cancel)
	}()
	return held, func() error {
		close(stop)
		<-stopped
		cancel(nil)
		if l.lost {
			return nil
		}
		return Remove(context.WithoutCancel(ctx), p)
	}, nil
}

// A lease is a lock that is an object.
type lease struct {
	bucket     Bucket
	name, path string
	owner      string
	version    string
	written    int
	lost       bool
}

// write makes or renews the lease, if the object there is of the given version.
func (l *lease) write(ctx context.Context, version string) error {
	ctx, cancel := context.WithTimeout(ctx, Lease)
	defer cancel()
	l.written++
	text := fmt.Sprintf("%s %d\n", l.owner, l.written)
	v, err := l.bucket.Swap(ctx, l.name, version, []byte(text))
	if errors.Is(err, ErrConflict) { // it may be our own, of a try whose answer was lost
		i, e := l.bucket.Stat(ctx, l.name)
		if e != nil {
			return errors.Join(err, e)
		}
		r, e := l.bucket.Read(ctx, l.name, i.Version, 0, i.Size)
		if e != nil {
			return err
		}
		defer r.Close()
		if have, e := io.ReadAll(io.LimitReader(r, 1<<12)); e != nil || string(have) != text {
			return err
		}
		v, err = i.Version, nil
	}
	if err == nil {
		l.version = v
	}
	return err
}

// takeOver waits whether the lease that is there is renewed.
func (l *lease) takeOver(ctx context.Context, notice func(string)) error {
	first, err := l.bucket.Stat(ctx, l.name)
	if errors.Is(err, fs.ErrNotExist) { // given back just now
		return l.write(ctx, "")
	} else if err != nil {
		return err
	}
	if notice != nil {
		notice(fmt.Sprintf("%s is there: waiting %v for a sign of another process at work", l.path, Lease))
	}
	for until := time.Now().Add(Lease); time.Now().Before(until); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(Lease / 8):
		}
		i, err := l.bucket.Stat(ctx, l.name)
		if errors.Is(err, fs.ErrNotExist) {
			return l.write(ctx, "")
		} else if err != nil {
			return err
		}
		if i.Version != first.Version {
			return durable.ErrLocked
		}
	}
	return l.write(ctx, first.Version)
}

// keep renews the lease until stop. One that could not be renewed for as long
// as it lasts is lost.
func (l *lease) keep(stop <-chan struct{}, cancel context.CancelCauseFunc) {
	renewed := time.Now()
	for {
		select {
		case <-stop:
			return
		case <-time.After(Lease / 4):
		}
		began := time.Now()
		err := l.write(context.Background(), l.version)
		switch {
		case err == nil:
			renewed = began
		case errors.Is(err, ErrConflict) || time.Since(renewed) > Lease:
			l.lost = true
			cancel(failed("lock", l.path, fmt.Errorf("lost: another process may be at work here: %w", err)))
			return
		}
	}
}
