package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/storage"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/iterator"

	"github.com/scavenge/scavenge/schemas/store"
)

// gsBucket is a bucket of Google Cloud Storage.
type gsBucket struct {
	bucket *storage.BucketHandle
	name   string
}

func openGS(ctx context.Context, bucket string) (store.Bucket, error) {
	// The client outlives the call that opens it.
	client, err := storage.NewClient(context.WithoutCancel(ctx))
	if err != nil {
		if strings.Contains(err.Error(), "default credentials") { // it has no type
			return nil, &refusal{"no credentials for gs: set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login", fs.ErrPermission}
		}
		return nil, short(err)
	}
	// Writing again what was written is right here, as a name's content is one.
	client.SetRetry(storage.WithPolicy(storage.RetryAlways), storage.WithMaxAttempts(6),
		storage.WithBackoff(gax.Backoff{Initial: 200 * time.Millisecond, Max: 10 * time.Second, Multiplier: 2}))
	return &gsBucket{client.Bucket(bucket), bucket}, nil
}

// explain says in a line what an error of the client means.
func (b *gsBucket) explain(err error) error {
	var api *googleapi.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, storage.ErrBucketNotExist):
		return noBucket(b.name)
	case errors.Is(err, storage.ErrObjectNotExist):
		return errNoObject
	case !errors.As(err, &api):
		return short(err)
	case api.Code == http.StatusPreconditionFailed:
		return store.ErrConflict
	case api.Code == http.StatusUnauthorized, api.Code == http.StatusForbidden:
		return &refusal{"not allowed: " + strings.Join(strings.Fields(api.Message), " "), fs.ErrPermission}
	case api.Code == http.StatusNotFound:
		return errNoObject
	}
	return fmt.Errorf("status %d: %s", api.Code, strings.Join(strings.Fields(api.Message), " "))
}

// writing is explain for an upload, where only a bucket can be missing.
func (b *gsBucket) writing(err error) error {
	if err = b.explain(err); errors.Is(err, fs.ErrNotExist) {
		return noBucket(b.name)
	}
	return err
}

func infoOf(a *storage.ObjectAttrs) store.Info {
	return store.Info{Path: a.Name, Size: a.Size, Modified: a.Updated.UnixNano(), Version: strconv.FormatInt(a.Generation, 10)}
}

func (b *gsBucket) Stat(ctx context.Context, name string) (store.Info, error) {
	a, err := b.bucket.Object(name).Attrs(ctx)
	if err != nil {
		if err = b.explain(err); errors.Is(err, fs.ErrNotExist) {
			if _, e := b.bucket.Attrs(ctx); errors.Is(e, storage.ErrBucketNotExist) {
				err = noBucket(b.name)
			}
		}
		return store.Info{}, err
	}
	return infoOf(a), nil
}

func (b *gsBucket) object(name, version string) (*storage.ObjectHandle, error) {
	o := b.bucket.Object(name).ReadCompressed(true) // the bytes that are there, whatever their Content-Encoding
	if version == "" {
		return o, nil
	}
	generation, err := strconv.ParseInt(version, 10, 64)
	return o.Generation(generation), err
}

func (b *gsBucket) Read(ctx context.Context, name, version string, from, size int64) (io.ReadCloser, error) {
	o, err := b.object(name, version)
	if err != nil {
		return nil, err
	}
	r, err := o.NewRangeReader(ctx, from, size)
	if err != nil {
		err = b.explain(err)
		if version != "" && errors.Is(err, fs.ErrNotExist) { // this generation is not there any more
			if _, e := b.Stat(ctx, name); e == nil {
				err = store.ErrChanged
			}
		}
		return nil, err
	}
	return r, nil
}

func (b *gsBucket) List(ctx context.Context, prefix string, deep bool) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		q := &storage.Query{Prefix: prefix}
		if !deep {
			q.Delimiter = "/"
		}
		if err := q.SetAttrSelection([]string{"Name", "Size", "Updated", "Generation"}); err != nil {
			yield(store.Info{}, err)
			return
		}
		for list := b.bucket.Objects(ctx, q); ; {
			a, err := list.Next()
			if err == iterator.Done {
				return
			}
			if err != nil {
				yield(store.Info{}, b.explain(err))
				return
			}
			i := infoOf(a)
			if a.Prefix != "" {
				i = store.Info{Path: a.Prefix, Folder: true}
			}
			if !yield(i, nil) {
				return
			}
		}
	}
}

// chunkBytes is the size of an upload's parts: what is kept to send it again.
const chunkBytes = 16 << 20

func (b *gsBucket) Swap(ctx context.Context, name, version string, data []byte) (string, error) {
	o := b.bucket.Object(name)
	switch version {
	case store.Any:
	case "":
		o = o.If(storage.Conditions{DoesNotExist: true})
	default:
		generation, err := strconv.ParseInt(version, 10, 64)
		if err != nil {
			return "", err
		}
		o = o.If(storage.Conditions{GenerationMatch: generation})
	}
	w := o.NewWriter(ctx)
	w.ChunkSize = min(chunkBytes, (len(data)/googleapi.MinUploadChunkSize+1)*googleapi.MinUploadChunkSize)
	if _, err := w.Write(data); err != nil {
		w.Close()
		return "", b.writing(err)
	}
	if err := w.Close(); err != nil {
		return "", b.writing(err)
	}
	return strconv.FormatInt(w.Attrs().Generation, 10), nil
}

func (b *gsBucket) Remove(ctx context.Context, name string) error {
	if err := b.explain(b.bucket.Object(name).Delete(ctx)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Sweep has nothing to do: an upload that was not finished ends by itself.
func (b *gsBucket) Sweep(context.Context, string) error { return nil }

// gsUpload is an object that is sent in parts.
type gsUpload struct {
	*storage.Writer
	bucket *gsBucket
	cancel context.CancelFunc
}

func (b *gsBucket) Create(ctx context.Context, name string) (store.Upload, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := b.bucket.Object(name).NewWriter(ctx)
	w.ChunkSize = chunkBytes
	return &gsUpload{w, b, cancel}, nil
}

func (u *gsUpload) Write(p []byte) (int, error) {
	n, err := u.Writer.Write(p)
	return n, u.bucket.writing(err)
}

func (u *gsUpload) Commit() error {
	defer u.cancel()
	return u.bucket.writing(u.Writer.Close())
}

func (u *gsUpload) Abort() {
	u.cancel()
	u.Writer.Close()
}
