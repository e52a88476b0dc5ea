package trainers

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"path/filepath"
	"time"

	"github.com/scavenge/scavenge/infra/cluster"
	"github.com/scavenge/scavenge/schemas/activation"
)

// Where batches come from.
const (
	FromDataset = "dataset" // tokens from the token set's own files
	FromStream  = "stream"  // records on Kafka
	FromReplay  = "replay"  // the same, of the first epoch; later ones from a local cache
	FromInline  = "inline"  // the teacher runs beside the student
)

// defaultStall is longer than a broker takes to restart or a producer to start.
const defaultStall = 5 * time.Minute

// defaultCacheBytes holds a layer of 40 M tokens at Pythia-70M's width.
const defaultCacheBytes = 64 << 30

// Feed is how a run gets its records from Kafka.
type Feed struct {
	Source string // FromStream or FromReplay, or another that needs no Kafka
	cluster.Access
	Topic string        // the producer's run
	Stall time.Duration // longest wait for a record; 0: 5 minutes, and no limit where a stream is followed
	// BrokerTimeout is how long the brokers may be away; 0: 10 minutes.
	BrokerTimeout time.Duration
	Cache         Replay // FromReplay; Dir "": cache in the run's folder

	OnBadRecord string // BadRecordStop or BadRecordSkip; "": stop
}

// flags declares the options but --source.
func (f *Feed) flags(set *flag.FlagSet, layers string) {
	f.Access.Flags(set, "Kafka `addresses` host:port, comma-separated (pipelines/teach and infra/broker print theirs)")
	set.StringVar(&f.Topic, "topic", "", "`name` that pipelines/teach was given: "+layers)
	set.DurationVar(&f.Stall, "stall-timeout", 0, "longest `wait` for a record while the brokers answer (default 5m; with --follow none)")
	set.DurationVar(&f.BrokerTimeout, "broker-timeout", defaultPatience, "how long the brokers may be away")
	set.StringVar(&f.OnBadRecord, "on-bad-record", BadRecordStop, "what to do about a damaged record, which goes to topic <topic>.rejected: stop, or skip its sequence")
	set.StringVar(&f.Cache.Dir, "cache", "", "replay: `folder` of the cache (default cache in --run)")
	set.Int64Var(&f.Cache.Bytes, "cache-bytes", defaultCacheBytes, "replay: how many `bytes` the cache may take; 0: as many as the disk has")
}

// kafka tells whether records come from Kafka.
func (f Feed) kafka() bool { return f.Source == FromStream || f.Source == FromReplay }

// Validate says what of a feed from Kafka cannot be.
func (f Feed) Validate() error {
	switch {
	case !f.kafka():
		return nil
	case len(f.Brokers) == 0:
		return errors.New("--brokers is missing: an address that pipelines/teach or infra/broker printed (or take another --source, with no broker)")
	case f.Topic == "":
		return errors.New("--topic is missing: the name that pipelines/teach was given")
	case f.Stall < 0:
		return fmt.Errorf("--stall-timeout %v: want a positive time", f.Stall)
	case f.BrokerTimeout < 0:
		return fmt.Errorf("--broker-timeout %v: want a positive time", f.BrokerTimeout)
	case f.OnBadRecord != "" && f.OnBadRecord != BadRecordStop && f.OnBadRecord != BadRecordSkip:
		return fmt.Errorf("--on-bad-record %q: want %s or %s", f.OnBadRecord, BadRecordStop, BadRecordSkip)
	case f.Cache.Bytes < 0:
		return fmt.Errorf("--cache-bytes %d: want a number of bytes, or 0 for as many as the disk has", f.Cache.Bytes)
	}
	if err := f.Access.Validate(); err != nil {
		return err
	}
	if err := activation.CheckRun(f.Topic); err != nil {
		return fmt.Errorf("--topic: %w", err)
	}
	return nil
}

// open opens the source of a feed from Kafka for a run in a folder. want says
// which records they must be: Layers, Dim and the fingerprints of a Stream.
func (f Feed) open(ctx context.Context, dir string, want Stream, p Plan) (Source, error) {
	want.Access, want.Topic, want.Stall, want.BrokerTimeout, want.OnBadRecord = f.Access, f.Topic, f.Stall, f.BrokerTimeout, f.OnBadRecord
	var err error
	if want.Trainer, err = trainerName(dir); err != nil {
		return nil, err
	}
	switch {
	case want.Stall == 0 && p.Follow:
		want.Stall = math.MaxInt64
	case want.Stall == 0:
		want.Stall = defaultStall
	}
	if f.Source == FromStream {
		return NewStreamSource(ctx, want, p)
	}
	cache := f.Cache
	if cache.Dir == "" {
		cache.Dir = filepath.Join(dir, "cache")
	}
	return NewReplaySource(ctx, want, cache, p)
}
