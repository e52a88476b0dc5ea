package pipelines

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/scavenge/scavenge/schemas/durable"
	"github.com/scavenge/scavenge/schemas/store"
	"github.com/scavenge/scavenge/schemas/store/storetest"
	"github.com/scavenge/scavenge/schemas/tokenset"
	"github.com/scavenge/scavenge/transforms"
)

// clouds runs a test with a server of each kind. Nothing waits long there.
func clouds(t *testing.T, test func(t *testing.T, s *storetest.Server)) {
	defer func(lease, pause time.Duration) { store.Lease, store.Pause = lease, pause }(store.Lease, store.Pause)
	store.Lease, store.Pause = 2*time.Second, time.Millisecond
	t.Run("s3", func(t *testing.T) { test(t, storetest.S3(t)) })
	t.Run("gs", func(t *testing.T) { test(t, storetest.GS(t)) })
}

// upload copies a folder into a bucket.
func upload(t *testing.T, s *storetest.Server, dir string) {
	t.Helper()
	for i, err := range store.Find(context.Background(), dir) {
		if err != nil {
			t.Fatal(err)
		}
		name, err := filepath.Rel(dir, i.Path)
		if err != nil {
			t.Fatal(err)
		}
		s.Put(t, filepath.ToSlash(name), string(mustRead(t, i.Path)))
	}
}

// objects is what is in a folder of a bucket, by name.
func objects(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for i, err := range store.List(context.Background(), dir) {
		if err != nil {
			t.Fatal(err)
		}
		data := []byte("a folder")
		if !i.Folder {
			if data, err = store.ReadFile(context.Background(), i.Path); err != nil {
				t.Fatal(err)
			}
		}
		all[store.Base(i.Path)] = string(data)
	}
	return all
}

// inCloud is the corpus' options with all paths in a bucket.
func (c corpus) inCloud(s *storetest.Server, output string) TokenizeOptions {
	o := c.options(output)
	o.Inputs, o.Tokenizer, o.Output = []string{s.Root + "/*.jsonl", s.Root + "/*.txt"}, s.Root+"/tokenizer.json", s.Root+"/"+output
	return o
}

// The same documents, from a folder and from buckets, in whatever layout, into
// a folder and into buckets: the same token set.
func TestTokenSetsInTheCloudAreTheSame(t *testing.T) {
	c := newCorpus(t)
	docs := append(c.docs, strings.Repeat("long ", 10000))
	dir := t.TempDir()
	all := layouts(t, dir, docs)
	if err := os.WriteFile(filepath.Join(dir, "tokenizer.json"), mustRead(t, c.tokenizer()), 0o666); err != nil {
		t.Fatal(err)
	}
	var lines bytes.Buffer
	for _, doc := range docs {
		json.NewEncoder(&lines).Encode(map[string]string{"text": doc})
	}
	here := c.options("set")
	here.Inputs, here.ShardTokens = all["JSON lines, zstd"], 4000
	tokenize(t, here)
	want := files(t, here.Output)
	delete(want, tokenset.ManifestFile)
	clouds(t, func(t *testing.T, s *storetest.Server) {
		upload(t, s, dir)
		var requests atomic.Int64
		s.Fail(func(r *http.Request) (f storetest.Fault) { // now and then a read is cut
			if storetest.IsRead(r) && requests.Add(1)%10 == 0 {
				f.Cut = 100
			}
			return f
		})
		i := 0
		for name, inputs := range all {
			o := here
			o.Inputs = nil
			for _, input := range inputs {
				o.Inputs = append(o.Inputs, strings.Replace(input, dir, s.Root, 1))
			}
			o.Tokenizer, o.Output = s.Root+"/tokenizer.json", fmt.Sprint(s.Root, "/sets/", i)
			o.GroupBytes, o.RunTokens, o.Stdin = 4096<<(i%3), 5000<<(i%3), bytes.NewReader(lines.Bytes())
			set := tokenize(t, o)
			got := objects(t, o.Output)
			delete(got, tokenset.ManifestFile) // it names the inputs
			sameFiles(t, got, want)
			for _, in := range set.Manifest.Inputs {
				if in.Version == "" {
					t.Errorf("%s: %s has no version", name, in.Name)
				}
			}
			if t.Failed() {
				t.Fatalf("in %s", name)
			}
			i++
		}
	})
}

// What is in a bucket is left if it is whole, gone on with if not, and refused
// if it is another's, as in a folder.
func TestATokenSetInTheCloudIsLeftOrRefused(t *testing.T) {
	c := newCorpus(t)
	clouds(t, func(t *testing.T, s *storetest.Server) {
		upload(t, s, c.dir)
		o := c.inCloud(s, "set")
		tokenize(t, o)
		before := objects(t, o.Output)
		log := new(bytes.Buffer)
		o.Log = log
		tokenize(t, o)
		if !strings.Contains(log.String(), "already there") {
			t.Errorf("it says %q", log)
		}
		other := c.inCloud(s, "set")
		other.Seed = 9
		if err := Tokenize(context.Background(), other); err == nil || !strings.Contains(err.Error(), "other --seed") {
			t.Errorf("another seed: %v", err)
		}
		s.Put(t, "b1.txt", c.docs[51]) // another version of the same text
		tokenize(t, o)
		s.Put(t, "b1.txt", strings.ToUpper(c.docs[51]))
		if err := Tokenize(context.Background(), o); err == nil || !strings.Contains(err.Error(), "b1.txt was changed") {
			t.Errorf("a changed input: %v", err)
		}
		after := objects(t, o.Output)
		sameFiles(t, after, before)
		o.Overwrite = true
		set := tokenize(t, o)
		if set.Manifest.Corpus == "" || objects(t, o.Output)[tokenset.ManifestFile] == before[tokenset.ManifestFile] {
			t.Error("it was not written again")
		}

		lock := c.inCloud(s, "locked")
		s.Put(t, "locked/.lock", "another process 1\n")
		stop := make(chan struct{})
		go func() { // which is alive
			for n := 2; ; n++ {
				select {
				case <-stop:
					return
				case <-time.After(store.Lease / 8):
					s.Put(t, "locked/.lock", fmt.Sprintf("another process %d\n", n))
				}
			}
		}()
		err := Tokenize(context.Background(), lock)
		close(stop)
		if !errors.Is(err, durable.ErrLocked) {
			t.Errorf("another process at work: %v", err)
		}
	})
}

// A process that is killed before any of its writes leaves nothing that is not
// whole; the same command goes on, when the lease has run out, to the same bytes.
func TestResumeAfterKillInTheCloudIsByteIdentical(t *testing.T) {
	c := newCorpus(t)
	tokenize(t, c.options("whole"))
	want := files(t, filepath.Join(c.dir, "whole"))
	delete(want, tokenset.ManifestFile)
	os.RemoveAll(filepath.Join(c.dir, "whole"))
	clouds(t, func(t *testing.T, s *storetest.Server) {
		upload(t, s, c.dir)
		kills := 0
		for n := int64(2); ; n += 13 {
			child := exec.Command(os.Args[0])
			child.Env = append(append(os.Environ(), s.Env...), "SCAVENGE_TEST_KILLED_IN="+s.Root, fmt.Sprint("SCAVENGE_TEST_KILLED_AT=", n))
			var writes atomic.Int64
			killed := make(chan struct{})
			s.Fail(func(r *http.Request) storetest.Fault {
				if storetest.IsWrite(r) && !strings.Contains(r.URL.Path+r.URL.RawQuery, ".lock") && writes.Add(1) == n {
					child.Process.Signal(syscall.SIGKILL)
					close(killed)
				}
				return storetest.Fault{}
			})
			out, err := child.CombinedOutput()
			s.Fail(nil)
			if err == nil {
				break // it was done before the n-th write
			}
			select {
			case <-killed:
			default:
				t.Fatalf("killed at write %d: %v\n%s", n, err, out)
			}
			kills++
			o := c.inCloud(s, fmt.Sprint("killed-", n))
			for name, content := range objects(t, o.Output) {
				if strings.HasSuffix(name, ".parquet") && content != want[name] {
					t.Errorf("killed at write %d: it left %s, which is no whole shard", n, name)
				}
			}
			var groups, scanned int64
			for name := range objects(t, o.Output+"/"+transforms.WorkFolder) {
				if strings.HasPrefix(name, "group-") {
					groups++
				}
				if strings.HasPrefix(name, "scanned-") {
					scanned++
				}
			}
			var again atomic.Int64
			s.Fail(func(r *http.Request) storetest.Fault {
				if storetest.IsWrite(r) && strings.Contains(r.URL.Path+r.URL.RawQuery, "scanned-") {
					again.Add(1)
				}
				return storetest.Fault{}
			})
			tokenize(t, o)
			got := objects(t, o.Output)
			delete(got, tokenset.ManifestFile)
			sameFiles(t, got, want)
			if scanned > 0 && again.Load() != groups-scanned {
				t.Errorf("killed at write %d: %d of %d groups were read, then %d", n, scanned, groups, again.Load())
			}
			if _, err := store.Stat(context.Background(), o.Output+"/.lock"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the lock is left: %v", err)
			}
			if t.Failed() {
				return
			}
		}
		if kills < 3 {
			t.Errorf("killed %d times: too few for this test to mean anything", kills)
		}
	})
}

func TestBadCloudInputIsOneClearLine(t *testing.T) {
	c := newCorpus(t)
	clouds(t, func(t *testing.T, s *storetest.Server) {
		upload(t, s, c.dir)
		scheme, _, _ := strings.Cut(s.Root, ":")
		for name, x := range map[string]struct {
			change func(*TokenizeOptions)
			want   string
		}{
			"no match":      {func(o *TokenizeOptions) { o.Inputs = []string{s.Root + "/*.nothing"} }, "/*.nothing: no such file"},
			"no bucket":     {func(o *TokenizeOptions) { o.Inputs = []string{scheme + "://none/*.txt"} }, "no bucket none"},
			"no output":     {func(o *TokenizeOptions) { o.Output = scheme + "://none/set" }, "no bucket none"},
			"no tokenizer":  {func(o *TokenizeOptions) { o.Tokenizer = s.Root + "/none.json" }, "none.json: no such object"},
			"cut short":     {func(o *TokenizeOptions) { o.Inputs = []string{s.Put(t, "cut.jsonl.gz", gzipOf("{}\n")[:12])} }, "cut.jsonl.gz: truncated"},
			"cut Parquet":   {func(o *TokenizeOptions) { o.Inputs = []string{s.Put(t, "cut.parquet", "PAR1 and no more")} }, "cut.parquet: "},
			"a broken line": {func(o *TokenizeOptions) { o.Inputs = []string{s.Put(t, "broken.jsonl", "{\"text\": \"a\"}\n{]")} }, "broken.jsonl: line 2"},
		} {
			o := c.inCloud(s, "set")
			x.change(&o)
			if err := Tokenize(context.Background(), o); err == nil || !strings.Contains(err.Error(), x.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v; want a line with %q", name, err, x.want)
			}
			if left := objects(t, s.Root+"/set"); len(left) > 0 {
				t.Fatalf("%s: it left %d objects", name, len(left))
			}
		}
	})
}

// What reads token sets reads those in buckets, through a cache of shards too.
func TestATokenSetInTheCloudIsRead(t *testing.T) {
	c := newCorpus(t)
	o := c.options("set")
	o.Subsets = []transforms.Subset{{Name: "few", Tokens: 600}}
	tokenize(t, o)
	var want bytes.Buffer
	if err := Inspect(context.Background(), InspectOptions{Dataset: o.Output + "#few", Tokenizer: c.tokenizer(), Rows: 1, Out: &want}); err != nil {
		t.Fatal(err)
	}
	clouds(t, func(t *testing.T, s *storetest.Server) {
		upload(t, s, c.dir)
		var reads atomic.Int64
		s.Fail(func(r *http.Request) storetest.Fault {
			if storetest.IsRead(r) && strings.HasSuffix(r.URL.Path, ".parquet") {
				reads.Add(1)
			}
			return storetest.Fault{}
		})
		read := func() error {
			reads.Store(0)
			var got bytes.Buffer
			err := Inspect(context.Background(), InspectOptions{Dataset: s.Root + "/set#few", Tokenizer: s.Root + "/tokenizer.json", Rows: 1, Out: &got})
			if err == nil && strings.ReplaceAll(got.String(), s.Root, c.dir) != want.String() {
				t.Errorf("the card is\n%s\nwant\n%s", got.String(), want.String())
			}
			return err
		}
		t.Setenv(tokenset.CacheVariable, "")
		t.Setenv("XDG_CACHE_HOME", t.TempDir())
		if err := read(); err != nil || reads.Load() == 0 {
			t.Errorf("into the user's cache: %v, %d reads", err, reads.Load())
		}
		cache := filepath.Join(t.TempDir(), "cache")
		t.Setenv(tokenset.CacheVariable, cache)
		if err := read(); err != nil || reads.Load() == 0 {
			t.Errorf("into the cache: %v, %d reads", err, reads.Load())
		}
		if err := read(); err != nil || reads.Load() != 0 {
			t.Errorf("from the cache: %v, %d reads", err, reads.Load())
		}
		kept, err := filepath.Glob(filepath.Join(cache, "*.parquet"))
		if err != nil || len(kept) < 2 {
			t.Fatalf("%q, %v", kept, err)
		}
		os.WriteFile(kept[0], []byte("damaged"), 0o666)
		if err := read(); err != nil || reads.Load() != 1 {
			t.Errorf("from a damaged cache: %v, %d reads", err, reads.Load())
		}
		s.Put(t, "set/manifest.json", string(mustRead(t, filepath.Join(o.Output, tokenset.ManifestFile)))[:100])
		if err := read(); err == nil || !strings.Contains(err.Error(), s.Root+"/set") {
			t.Errorf("half a manifest: %v", err)
		}
		for path, want := range map[string]string{s.Root + "/none": "no such folder", s.Root: "not a whole token set"} {
			if err := Inspect(context.Background(), InspectOptions{Dataset: path}); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", path, err, want)
			}
		}
	})
}
