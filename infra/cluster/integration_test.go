//go:build integration

package cluster_test

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/scavenge/scavenge/infra/cluster"
)

// listeners are those that infra/kafka/start.sh makes beside the plain one at
// SCAVENGE_KAFKA, with the secrets in its folder SCAVENGE_KAFKA_FOLDER.
func listeners(t *testing.T) []listener {
	host, port, err := net.SplitHostPort(os.Getenv("SCAVENGE_KAFKA"))
	n, bad := strconv.Atoi(port)
	if err != nil || bad != nil {
		t.Fatalf("SCAVENGE_KAFKA is %q: want host:port of a Kafka broker", os.Getenv("SCAVENGE_KAFKA"))
	}
	secrets := filepath.Join(os.Getenv("SCAVENGE_KAFKA_FOLDER"), "secrets")
	at := func(offset int) cluster.Access {
		return cluster.Access{Brokers: []string{net.JoinHostPort(host, strconv.Itoa(n+offset))}, TLS: true, CA: filepath.Join(secrets, "ca.pem")}
	}
	sasl, mutual := at(2), at(3)
	sasl.User, sasl.PasswordFile = "scavenge", filepath.Join(secrets, "password")
	mutual.Cert, mutual.Key = filepath.Join(secrets, "client.pem"), filepath.Join(secrets, "client.key")
	return append(embedded(t), listener{access: sasl, sasl: true}, listener{access: mutual, mutual: true})
}
