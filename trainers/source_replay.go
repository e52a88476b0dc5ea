package trainers

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/scavenge/scavenge/schemas/activation"
	"github.com/scavenge/scavenge/schemas/durable"
)

// Replay says where a replaying source keeps the first epoch.
type Replay struct {
	Dir   string // folder of the cache, one trainer's at a time
	Bytes int64  // that the caches of all its layers may take; 0: as the disk has
}

// NewReplaySource is a stream whose topics need hold the first epoch only: its
// records are kept in files, one a layer, and later epochs come from there. A
// record that is damaged there, or missing, is read from Kafka again. The files
// go when the plan's last sequence has been handed out.
func NewReplaySource(ctx context.Context, s Stream, r Replay, p Plan) (_ Source, err error) {
	if err := os.MkdirAll(r.Dir, 0o777); err != nil {
		return nil, fmt.Errorf("--cache: %w", err)
	}
	unlock, err := durable.Lock(filepath.Join(r.Dir, "lock"))
	if errors.Is(err, durable.ErrLocked) {
		return nil, fmt.Errorf("--cache %s: another trainer is at work in this folder", r.Dir)
	} else if err != nil {
		return nil, fmt.Errorf("--cache: %w", err)
	}
	p.Start.Offsets = nil // the cache knows better
	src, err := newStream(ctx, s, p, func(src *stream, t *topic, partitions int) error {
		h := sha256.New()
		fmt.Fprintln(h, t.name, partitions, src.Teacher, src.TokenSet, src.plan.Length, src.Dim, src.plan.Seed)
		c, err := openCache(filepath.Join(r.Dir, t.name+".cache"), [sha256.Size]byte(h.Sum(nil)))
		if err != nil {
			return err
		}
		t.shelf = &kept{cache: c, stream: src, topic: t, limits: r}
		// each partition goes on behind what the cache has of it, which is the
		// beginning of its part of the first epoch
		for number := range partitions {
			at := t.cursors[number]
			at.epoch, at.index = 0, 0
			for range c.count[number] {
				id := at.next().id
				if e, ok := c.entries[id]; !ok || e.partition != number || at.epoch > 0 {
					return errors.Join(fmt.Errorf("cache %s: sequence %d of partition %d is not where it should be: remove the file", c.path, id, number), c.close(false))
				}
				at.pass()
			}
			if c.count[number] > 0 {
				t.partitions[number].next.Store(c.next[number])
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	return &replay{src, unlock}, nil
}

type replay struct {
	Source
	unlock func() error
}

// Counts is the stream's.
func (r *replay) Counts() Counts { return r.Source.(counting).Counts() }

func (r *replay) Close() error { return errors.Join(r.Source.Close(), r.unlock()) }

// kept is the shelf of a replaying source.
type kept struct {
	*cache
	stream  *stream
	topic   *topic
	limits  Replay
	checked bool // that there is room for all
}

func (k *kept) get(ctx context.Context, id int64) (_ message, there bool, err error) {
	e, ok := k.entries[id]
	if !ok || e.size == 0 { // an empty message stands for a rejected one
		return message{}, ok, nil
	}
	m := message{offset: e.offset}
	if m.value, err = k.read(e, k.stream.memory.take(e.size)); err != nil {
		return m, true, err
	}
	if m.record, err = activation.Unmarshal(m.value); err == nil {
		err = k.is(m.record, id)
	}
	if err == nil {
		return m, true, nil
	}
	k.stream.notice("cache %s: sequence %d: %v: reading it from %s again", k.path, id, err, k.topic.name)
	if m, _, err = k.stream.reread(ctx, k.topic.name, e.partition, e.offset); err != nil {
		return m, true, err
	}
	if err = m.bad; err == nil {
		err = k.is(m.record, id)
	}
	if err != nil {
		return m, true, fmt.Errorf("topic %s: partition %d: offset %d: %w", k.topic.name, e.partition, e.offset, err)
	}
	return m, true, k.mend(e, m.value)
}

// is tells why a record is not a sequence's.
func (k *kept) is(r *activation.Record, id int64) error {
	if r.SequenceID != id {
		return fmt.Errorf("it is of sequence %d", r.SequenceID)
	}
	return k.stream.check(r, k.topic.layer)
}

func (k *kept) put(id int64, partition int, m message, wanted bool) error {
	if m.record == nil {
		return k.append(id, partition, m.offset, nil)
	}
	if err := k.fits(m.record); err != nil {
		return err
	}
	if err := k.append(id, partition, m.offset, m.value); err != nil {
		return err
	}
	if !wanted {
		k.stream.memory.give(m.value)
	}
	return nil
}

// fits refuses, before the first record is written, a cache that will be too
// large in the end.
func (k *kept) fits(r *activation.Record) error {
	if k.checked {
		return nil
	}
	s := k.stream
	records := min(s.order.length, s.plan.Total)
	need := records * int64(activation.MaxMessageBytes(r.Length, r.Dim, r.Type)+entryHead)
	all := need * int64(len(s.topics))
	if k.limits.Bytes > 0 && all > k.limits.Bytes {
		return fmt.Errorf("cache %s: %d records of %d layer(s) take up to %d bytes, --cache-bytes is %d: raise it, or take --source stream", k.path, records, len(s.topics), all, k.limits.Bytes)
	}
	free, ok := durable.Free(k.path)
	if ok && all-k.end*int64(len(s.topics)) > free {
		return fmt.Errorf("cache %s: %d records of %d layer(s) take up to %d bytes, the disk has %d left: name another one with --cache, or take --source stream", k.path, records, len(s.topics), all, free)
	}
	k.checked = true
	return nil
}

// full tells whether the whole epoch is there.
func (k *kept) full() bool { return int64(len(k.entries)) == k.stream.order.length }

func (k *kept) clear() {}

func (k *kept) close(whole bool) error { return k.cache.close(whole) }
