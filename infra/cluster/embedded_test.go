//go:build !integration

package cluster_test

import "testing"

// listeners are the embedded broker's; with the tag integration those of a
// real Kafka.
func listeners(t *testing.T) []listener { return embedded(t) }
