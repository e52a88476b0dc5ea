//go:build integration

package transforms

import "os"

// With this tag the tests of the sink and the teacher run over the real Kafka
// at SCAVENGE_KAFKA (host:port; infra/kafka/start.sh runs one).
func init() {
	if external = os.Getenv("SCAVENGE_KAFKA"); external == "" {
		panic("SCAVENGE_KAFKA is not set: host:port of a Kafka broker")
	}
}
