package cluster_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/scavenge/scavenge/infra"
	"github.com/scavenge/scavenge/infra/cluster"
)

// certificate makes a self-signed certificate for the loopback address and its
// key, as PEM files.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "broker"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", secret)
}

// A listener is a broker's address of one kind, and how to get in there.
type listener struct {
	access cluster.Access
	sasl   bool
	mutual bool // the broker asks for a client certificate
}

// A way is one of getting in, or of not getting in.
type way struct {
	change func(*cluster.Access) // of what would get in
	want   []string              // one of them is in the error; none: it gets in
}

func embedded(t *testing.T) []listener {
	cert, key := certificate(t)
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var list []listener
	for _, user := range []string{"", "ann"} {
		o := infra.BrokerOptions{Dir: t.TempDir(), Cert: cert, Key: key, User: user}
		if user != "" {
			o.Password = "correct horse"
		}
		b, err := infra.StartBroker(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		l := listener{access: cluster.Access{Brokers: []string{b.Addr()}, TLS: true, CA: cert}, sasl: user != ""}
		if l.sasl {
			l.access.User, l.access.PasswordFile = user, password
		}
		list = append(list, l)
	}
	return list
}

func TestLogin(t *testing.T) {
	stranger, _ := certificate(t)
	wrong := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(wrong, []byte("incorrect\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, l := range listeners(t) {
		mechanisms := []string{""}
		if l.sasl {
			mechanisms = []string{cluster.Plain, cluster.ScramSHA256, cluster.ScramSHA512}
		}
		for _, mechanism := range mechanisms {
			right := l.access
			right.SASL = mechanism
			cases := map[string]way{
				"right":            {func(*cluster.Access) {}, nil},
				"wrong authority":  {func(a *cluster.Access) { a.CA = stranger }, []string{"certificate signed by unknown authority", "certificate is not trusted"}},
				"system authority": {func(a *cluster.Access) { a.CA = "" }, []string{"certificate signed by unknown authority", "certificate is not trusted"}},
				"plain text":       {func(a *cluster.Access) { *a = cluster.Access{Brokers: a.Brokers} }, []string{"does it want --tls"}},
			}
			if l.sasl { // the embedded broker hangs up, Kafka tells why
				bad := []string{"SASL Authentication Failed", "another user or password"}
				cases["wrong password"] = way{func(a *cluster.Access) { a.PasswordFile = wrong }, bad}
				cases["wrong user"] = way{func(a *cluster.Access) { a.User = "eve" }, bad}
			}
			if l.mutual {
				cases["no client certificate"] = way{func(a *cluster.Access) { a.Cert, a.Key = "", "" }, []string{"bad certificate", "certificate required"}}
			}
			for name, c := range cases {
				t.Run(fmt.Sprintf("%s %s %s", l.access.Brokers[0], mechanism, name), func(t *testing.T) {
					a := right
					c.change(&a)
					err := roundTrip(t, a)
					if c.want == nil && err != nil || c.want != nil && (err == nil || !slices.ContainsFunc(c.want, func(s string) bool { return strings.Contains(err.Error(), s) })) {
						t.Errorf("%v, want one of %q", err, c.want)
					}
					if hungUp := err != nil && strings.Contains(err.Error(), "it hung up"); cluster.Refused(err) != (err != nil && !hungUp) {
						t.Errorf("%v: refused is %v", err, cluster.Refused(err))
					}
				})
			}
		}
	}
}

// roundTrip writes a message as the sink does, through a kafka.Transport, and
// reads it as a trainer does, through a kafka.Dialer.
func roundTrip(t *testing.T, a cluster.Access) error {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tls, login, err := a.Login()
	if err != nil {
		return err
	}
	transport := &kafka.Transport{TLS: tls, SASL: login}
	defer transport.CloseIdleConnections()
	client := &kafka.Client{Addr: kafka.TCP(a.Brokers...), Transport: transport}
	if _, err := client.Metadata(ctx, &kafka.MetadataRequest{}); err != nil { // the first question of sink and trainer
		return cluster.Explain(err)
	}
	topic := fmt.Sprint("login-", time.Now().UnixNano())
	made, err := client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: topic, NumPartitions: 1, ReplicationFactor: 1}}})
	if err != nil {
		return err
	}
	if err := made.Errors[topic]; err != nil {
		return err
	}
	for { // a new topic may not have its leader yet
		r, err := client.Produce(ctx, &kafka.ProduceRequest{Topic: topic, RequiredAcks: kafka.RequireAll,
			Records: kafka.NewRecordReader(kafka.Record{Value: kafka.NewBytes([]byte("inside"))})})
		if err == nil && r.Error == nil {
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("produce: %v: %w", err, ctx.Err())
		}
		time.Sleep(20 * time.Millisecond)
	}
	r := kafka.NewReader(kafka.ReaderConfig{Brokers: a.Brokers, Topic: topic, MaxWait: 250 * time.Millisecond, Dialer: &kafka.Dialer{Timeout: 5 * time.Second, TLS: tls, SASLMechanism: login}})
	defer r.Close()
	m, err := r.ReadMessage(ctx)
	if err == nil && string(m.Value) != "inside" {
		err = fmt.Errorf("read %q", m.Value)
	}
	return err
}
