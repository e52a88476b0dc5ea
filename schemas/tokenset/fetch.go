package tokenset

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/scavenge/scavenge/schemas/durable"
	"github.com/scavenge/scavenge/schemas/store"
)

// CacheVariable names the environment variable whose folder keeps the shards
// of remote token sets, each under its sha256, for as long as nobody removes
// them. Without it that is scavenge/shards in the user's cache folder.
const CacheVariable = "SCAVENGE_CACHE"

func cacheFolder() (string, error) {
	if dir := os.Getenv(CacheVariable); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no folder to keep the shards of a remote token set in: set $%s: %w", CacheVariable, err)
	}
	return filepath.Join(dir, "scavenge", "shards"), nil
}

// shardFile is a shard that is open for reading: as a stream, and at offsets.
type shardFile interface {
	io.ReadSeeker
	io.ReaderAt
	io.Closer
}

// openShard opens a shard where it lies or, where that is a bucket, fetches it
// whole: sooner or later all of it is needed. What was fetched is kept if it is
// what the manifest says. want may be zero, for one that is not known yet: it is
// fetched into memory.
func openShard(path string, want Shard) (shardFile, error) {
	if !store.Remote(path) {
		return os.Open(path)
	}
	if want.SHA256 == "" {
		data, err := store.ReadFile(context.Background(), path)
		return inMemory{bytes.NewReader(data)}, err
	}
	cache, err := cacheFolder()
	if err != nil {
		return nil, err
	}
	kept := filepath.Join(cache, want.SHA256+".parquet")
	if f, err := os.Open(kept); err == nil {
		sum, _, err := checksum(f)
		if err == nil && sum == want.SHA256 {
			if _, err = f.Seek(0, io.SeekStart); err == nil {
				return f, nil
			}
		}
		f.Close() // damaged: it is fetched again
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	from, err := store.Open(context.Background(), path)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	if err := os.MkdirAll(cache, 0o777); err != nil {
		return nil, err
	}
	h := sha256.New()
	err = durable.WriteFile(kept, func(w io.Writer) error {
		if _, err := io.Copy(io.MultiWriter(w, h), from); err != nil {
			return err
		}
		if hex.EncodeToString(h.Sum(nil)) != want.SHA256 {
			return errOtherShard
		}
		return nil
	})
	if errors.Is(err, errOtherShard) { // and not the cache to blame
		err = errOtherShard
	}
	if err != nil {
		return nil, err
	}
	return os.Open(kept)
}

var errOtherShard = errors.New("its sha256 is not the manifest's: changed since it was written")

type inMemory struct{ *bytes.Reader }

func (inMemory) Close() error { return nil }
