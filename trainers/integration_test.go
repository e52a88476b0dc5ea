//go:build integration

package trainers

import (
	"flag"
	"os"
)

// With this tag the tests of the sources run over the real Kafka at
// SCAVENGE_KAFKA (host:port; infra/kafka/start.sh runs one), with TLS and a
// login where the environment says so as it does to the commands.
func init() {
	external.Flags(flag.NewFlagSet("", flag.PanicOnError), "")
	addr := os.Getenv("SCAVENGE_KAFKA")
	if addr == "" {
		panic("SCAVENGE_KAFKA is not set: host:port of a Kafka broker")
	}
	external.Brokers = []string{addr}
	slow = true
}
