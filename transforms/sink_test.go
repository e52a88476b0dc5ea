package transforms

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/segmentio/kafka-go"
)

// What may go away by itself is tried again; what a broker decides is not.
func TestErrorsThatMayPass(t *testing.T) {
	for err, want := range map[error]bool{
		kafka.NotLeaderForPartition:              true,
		kafka.RequestTimedOut:                    true,
		kafka.Unknown:                            true, // a Kafka that has just started
		fmt.Errorf("produce: %w", kafka.Unknown): true,
		kafka.MessageSizeTooLarge:                false,
		kafka.TopicAuthorizationFailed:           false,
		kafka.InvalidTimestamp:                   false,
		io.ErrUnexpectedEOF:                      true,
		&net.OpError{Op: "dial", Err: errors.New("connection refused")}:  true,
		errors.New("topic x: max.message.bytes is 1, records take more"): false,
		context.Canceled: false,
	} {
		if got := passing(err); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}
