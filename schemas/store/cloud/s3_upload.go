package cloud

import (
	"bytes"
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/scavenge/scavenge/schemas/store"
)

// partBytes is the size of an upload's parts. S3 takes 10,000 of them: 156 GiB.
const (
	partBytes = 16 << 20
	maxParts  = 10000
)

// s3Upload is an object that is sent in parts. A part goes while the next one
// is gathered.
type s3Upload struct {
	ctx    context.Context
	cancel context.CancelFunc
	bucket *s3Bucket
	name   string
	id     *string
	part   bytes.Buffer // the one in the making
	spare  []byte       // memory of the one before
	done   []types.CompletedPart
	sent   chan sent // the part on its way; nil: none
}

type sent struct {
	part types.CompletedPart
	err  error
}

func (b *s3Bucket) Create(ctx context.Context, name string) (store.Upload, error) {
	out, err := b.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &b.name, Key: &name})
	if err != nil {
		return nil, b.explain(ctx, err)
	}
	u := &s3Upload{bucket: b, name: name, id: out.UploadId}
	u.ctx, u.cancel = context.WithCancel(ctx)
	return u, nil
}

func (u *s3Upload) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		take := min(len(b), partBytes-u.part.Len())
		u.part.Write(b[:take])
		n, b = n+take, b[take:]
		if u.part.Len() == partBytes {
			if err := u.send(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// settle waits for the part on its way.
func (u *s3Upload) settle() error {
	if u.sent == nil {
		return nil
	}
	s := <-u.sent
	u.sent = nil
	if s.err != nil {
		return u.bucket.explain(u.ctx, s.err)
	}
	u.done = append(u.done, s.part)
	return nil
}

// send sends the part that was gathered.
func (u *s3Upload) send() error {
	if err := u.settle(); err != nil {
		return err
	}
	number := int32(len(u.done) + 1)
	if number > maxParts {
		return fmt.Errorf("more than %d parts of %d bytes", maxParts, partBytes)
	}
	data := u.part.Bytes()
	u.part = *bytes.NewBuffer(u.spare[:0])
	u.spare = data
	u.sent = make(chan sent, 1)
	go func(result chan<- sent) {
		out, err := u.bucket.client.UploadPart(u.ctx, &s3.UploadPartInput{Bucket: &u.bucket.name, Key: &u.name, UploadId: u.id, PartNumber: &number, Body: bytes.NewReader(data)})
		if err != nil {
			result <- sent{err: err}
			return
		}
		result <- sent{part: types.CompletedPart{PartNumber: &number, ETag: out.ETag, ChecksumCRC32: out.ChecksumCRC32}}
	}(u.sent)
	return nil
}

func (u *s3Upload) Commit() error {
	err := error(nil)
	if u.part.Len() > 0 || len(u.done) == 0 && u.sent == nil {
		err = u.send()
	}
	if err == nil {
		err = u.settle()
	}
	if err == nil {
		_, err = u.bucket.client.CompleteMultipartUpload(u.ctx, &s3.CompleteMultipartUploadInput{Bucket: &u.bucket.name, Key: &u.name, UploadId: u.id,
			MultipartUpload: &types.CompletedMultipartUpload{Parts: u.done}})
		err = u.bucket.explain(u.ctx, err)
	}
	if err != nil {
		u.Abort()
		return err
	}
	u.cancel()
	return nil
}

func (u *s3Upload) Abort() {
	u.cancel()
	u.settle()
	// Parts that stay cost money until Sweep, or a rule of the bucket, finds them.
	u.bucket.client.AbortMultipartUpload(context.WithoutCancel(u.ctx), &s3.AbortMultipartUploadInput{Bucket: aws.String(u.bucket.name), Key: &u.name, UploadId: u.id})
}
