package store

import (
	"bytes"
	"context"
	"io"

	"github.com/scavenge/scavenge/schemas/durable"
)

// Create starts a file that will be called p. Its folder must exist on the
// local disk. ctx bounds the upload of an object.
func Create(ctx context.Context, p string) (Upload, error) {
	if !Remote(p) {
		return durable.Create(p)
	}
	b, name, err := bucketOf(ctx, p)
	if err != nil {
		return nil, err
	}
	return &upload{ctx: ctx, bucket: b, path: p, name: name}, nil
}

// small is the size, in bytes, up to which an object is sent in one request.
const small = 8 << 20

// upload gathers what is written, and sends it when it is all there or too
// large to gather.
type upload struct {
	ctx        context.Context
	bucket     Bucket
	path, name string
	held       bytes.Buffer
	large      Upload // where it was
}

func (u *upload) Write(b []byte) (int, error) {
	if u.large == nil && u.held.Len()+len(b) > small {
		var err error
		if u.large, err = u.bucket.Create(u.ctx, u.name); err != nil {
			return 0, failed("write", u.path, err)
		}
		if _, err := u.held.WriteTo(u.large); err != nil {
			return 0, failed("write", u.path, err)
		}
	}
	if u.large == nil {
		return u.held.Write(b)
	}
	n, err := u.large.Write(b)
	if err != nil {
		err = failed("write", u.path, err)
	}
	return n, err
}

func (u *upload) Commit() (err error) {
	if u.large == nil {
		_, err = u.bucket.Swap(u.ctx, u.name, Any, u.held.Bytes())
	} else {
		err = u.large.Commit()
	}
	if err != nil {
		return failed("write", u.path, err)
	}
	return nil
}

func (u *upload) Abort() {
	if u.large != nil {
		u.large.Abort()
	}
}

// WriteFile makes a file of what fill writes.
func WriteFile(ctx context.Context, p string, fill func(w io.Writer) error) error {
	if !Remote(p) {
		return durable.WriteFile(p, fill)
	}
	u, err := Create(ctx, p)
	if err != nil {
		return err
	}
	if err := fill(u); err != nil {
		u.Abort()
		return failed("write", p, err)
	}
	return u.Commit()
}
