// Package cloud lets package store open s3:// and gs:// paths. A program links
// it in by importing it for its side effect.
//
// Credentials and addresses are those that each provider's own tools take. For
// s3, the AWS SDK's chain: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,
// AWS_PROFILE and its files, a container's or a machine's role; AWS_REGION;
// AWS_ENDPOINT_URL for another server that speaks S3. For gs, Google's default
// credentials: GOOGLE_APPLICATION_CREDENTIALS, what `gcloud auth
// application-default login` left, a machine's account; STORAGE_EMULATOR_HOST
// for an emulator.
package cloud

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/url"
	"strings"

	"github.com/scavenge/scavenge/schemas/store"
)

func init() {
	store.Register("s3", openS3)
	store.Register("gs", openGS)
}

// refusal is an error that a second try does not mend.
type refusal struct {
	text string
	is   error // fs.ErrNotExist or fs.ErrPermission
}

func (r *refusal) Error() string        { return r.text }
func (r *refusal) Is(target error) bool { return target == r.is }

func noBucket(name string) error {
	return &refusal{"there is no bucket " + name + ", or it is not ours to see", fs.ErrPermission}
}

var errNoObject = &refusal{"no such object", fs.ErrNotExist}

// short is the cause at the bottom of an SDK's error, on one line.
func short(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	var u *url.Error
	var op *net.OpError
	switch {
	case errors.As(err, &op):
		return op
	case errors.As(err, &u):
		return u
	}
	return errors.New(strings.Join(strings.Fields(err.Error()), " "))
}
