package cloud

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"

	"github.com/scavenge/scavenge/schemas/store"
)

// s3Bucket is a bucket of Amazon's S3 or of a server that speaks its protocol.
type s3Bucket struct {
	client *s3.Client
	name   string
}

func openS3(ctx context.Context, bucket string) (store.Bucket, error) {
	c, err := config.LoadDefaultConfig(ctx, config.WithLogger(logging.Nop{})) // what matters comes as an error
	if err != nil {
		return nil, short(err)
	}
	if c.Region == "" {
		c.Region = "us-east-1" // servers other than Amazon's have no regions
	}
	client := s3.NewFromConfig(c, func(o *s3.Options) {
		o.UsePathStyle = o.BaseEndpoint != nil // a bucket has a host name of its own only at Amazon
		if c.RetryMaxAttempts == 0 {           // AWS_MAX_ATTEMPTS
			o.RetryMaxAttempts = 6
		}
		o.DisableLogOutputChecksumValidationSkipped = true
	})
	return &s3Bucket{client, bucket}, nil
}

// explain says in a line what an error of the SDK means.
func (b *s3Bucket) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var moved *awshttp.ResponseError
	if errors.As(err, &moved) && moved.HTTPStatusCode() == http.StatusMovedPermanently {
		return &refusal{fmt.Sprintf("bucket %s is in region %q: set AWS_REGION to that", b.name, moved.Response.Header.Get("X-Amz-Bucket-Region")), fs.ErrPermission}
	}
	var api smithy.APIError
	if !errors.As(err, &api) {
		if isNoCredentials(err) {
			return &refusal{"no credentials for s3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE", fs.ErrPermission}
		}
		return short(err)
	}
	switch code := api.ErrorCode(); code {
	case "NoSuchBucket":
		return noBucket(b.name)
	case "NoSuchKey":
		return errNoObject
	case "NotFound", "404": // a HEAD, which does not tell what is not there
		if _, e := b.client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &b.name}); e != nil && errors.As(e, &api) && (api.ErrorCode() == "NotFound" || api.ErrorCode() == "NoSuchBucket") {
			return noBucket(b.name)
		}
		return errNoObject
	case "PreconditionFailed", "ConditionalRequestConflict":
		return store.ErrConflict
	case "Forbidden", "AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "403", "401":
		text := "not allowed: " + code
		if api.ErrorMessage() != "" && api.ErrorMessage() != code {
			text += ": " + api.ErrorMessage()
		}
		return &refusal{text, fs.ErrPermission}
	default:
		return fmt.Errorf("%s: %s", code, api.ErrorMessage())
	}
}

// isNoCredentials: the SDK's error for that has no type.
func isNoCredentials(err error) bool {
	for _, what := range []string{"failed to refresh cached credentials", "get identity: get credentials", "no EC2 IMDS role found", "static credentials are empty"} {
		if strings.Contains(err.Error(), what) {
			return true
		}
	}
	return false
}

func (b *s3Bucket) Stat(ctx context.Context, name string) (store.Info, error) {
	h, err := b.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &b.name, Key: &name})
	if err != nil {
		return store.Info{}, b.explain(ctx, err)
	}
	return store.Info{Size: aws.ToInt64(h.ContentLength), Modified: aws.ToTime(h.LastModified).UnixNano(), Version: aws.ToString(h.ETag)}, nil
}

func (b *s3Bucket) Read(ctx context.Context, name, version string, from, size int64) (io.ReadCloser, error) {
	in := &s3.GetObjectInput{Bucket: &b.name, Key: &name, Range: aws.String(fmt.Sprintf("bytes=%d-%d", from, from+size-1))}
	if size == 0 {
		return http.NoBody, nil
	}
	if version != "" {
		in.IfMatch = &version
	}
	out, err := b.client.GetObject(ctx, in)
	if err != nil {
		if err = b.explain(ctx, err); errors.Is(err, store.ErrConflict) {
			err = store.ErrChanged
		}
		return nil, err
	}
	if version != "" && aws.ToString(out.ETag) != version { // a server that does not know If-Match here
		out.Body.Close()
		return nil, store.ErrChanged
	}
	if n := aws.ToInt64(out.ContentLength); n != size {
		out.Body.Close()
		return nil, fmt.Errorf("bytes %d to %d were asked for, %d bytes come", from, from+size, n)
	}
	return out.Body, nil
}

func (b *s3Bucket) List(ctx context.Context, prefix string, deep bool) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		in := &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: &prefix}
		if !deep {
			in.Delimiter = aws.String("/")
		}
		for pages := s3.NewListObjectsV2Paginator(b.client, in); pages.HasMorePages(); {
			page, err := pages.NextPage(ctx)
			if err != nil {
				yield(store.Info{}, b.explain(ctx, err))
				return
			}
			for _, p := range page.CommonPrefixes {
				if !yield(store.Info{Path: aws.ToString(p.Prefix), Folder: true}, nil) {
					return
				}
			}
			for _, o := range page.Contents {
				if !yield(store.Info{Path: aws.ToString(o.Key), Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified).UnixNano(), Version: aws.ToString(o.ETag)}, nil) {
					return
				}
			}
		}
	}
}

func (b *s3Bucket) Swap(ctx context.Context, name, version string, data []byte) (string, error) {
	in := &s3.PutObjectInput{Bucket: &b.name, Key: &name, Body: bytes.NewReader(data)}
	switch version {
	case store.Any:
	case "":
		in.IfNoneMatch = aws.String("*")
	default:
		in.IfMatch = &version
	}
	out, err := b.client.PutObject(ctx, in)
	if err != nil {
		if err = b.explain(ctx, err); version != "" && version != store.Any && errors.Is(err, fs.ErrNotExist) {
			err = store.ErrConflict
		}
		return "", err
	}
	return aws.ToString(out.ETag), nil
}

func (b *s3Bucket) Remove(ctx context.Context, name string) error {
	_, err := b.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.name, Key: &name})
	if err = b.explain(ctx, err); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Sweep cleans up where it may: not every server lists uploads, nor every
// account may.
func (b *s3Bucket) Sweep(ctx context.Context, prefix string) error {
	for pages := s3.NewListMultipartUploadsPaginator(b.client, &s3.ListMultipartUploadsInput{Bucket: &b.name, Prefix: &prefix}); pages.HasMorePages(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return ctx.Err()
		}
		for _, u := range page.Uploads {
			if _, err := b.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.name, Key: u.Key, UploadId: u.UploadId}); err != nil {
				return ctx.Err()
			}
		}
	}
	return nil
}
