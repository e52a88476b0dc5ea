// Package infra holds what runs beside the pipelines and the trainers. In Go
// that is the embedded broker: a process-local server of the Kafka protocol
// with its log on disk, so that one machine needs nothing installed. Clients
// cannot tell it from Kafka: beyond one machine they are given a real one.
package infra

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/scavenge/scavenge/schemas/durable"
)

// BrokerOptions says where a broker keeps its log and where it listens.
type BrokerOptions struct {
	// Dir is the folder of the log. A folder that a broker left, killed or
	// not, is gone on with. Opening one reads all of it: 3 GB take about two
	// seconds and as much memory for the moment.
	Dir string
	// Listen is host:port. "" is a free port of the loopback interface, and a
	// port of 0 a free one. Clients are sent to this host, so it has to be one
	// that they reach: not 0.0.0.0.
	Listen string
	// RetentionBytes bounds each partition: the oldest records beyond it are
	// deleted, read or not. 0 keeps everything.
	RetentionBytes int64
	// Cert and Key are PEM files; with them the broker speaks TLS and nothing else.
	Cert, Key string
	// User is the one name that may log in, by SASL PLAIN or SCRAM with
	// Password. "" lets in everybody who reaches the address.
	User, Password string
}

// Validate says what of the options cannot be.
func (o BrokerOptions) Validate() error {
	if o.Dir == "" {
		return errors.New("broker: no folder for its log")
	}
	if o.RetentionBytes < 0 {
		return fmt.Errorf("broker: retention of %d bytes", o.RetentionBytes)
	}
	if (o.Cert == "") != (o.Key == "") {
		return errors.New("broker: a certificate and its key: want both or neither")
	}
	if (o.User == "") != (o.Password == "") {
		return errors.New("broker: a user and a password: want both or neither")
	}
	if o.Listen == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return fmt.Errorf("broker: listen %q: want host:port", o.Listen)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("broker: listen %q: port %q", o.Listen, port)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return fmt.Errorf("broker: listen %q: clients are sent to this address: name a host that they reach", o.Listen)
	}
	return nil
}

// Broker is a running broker.
type Broker struct {
	cluster *kfake.Cluster
	addr    string
	unlock  func() error
	once    sync.Once
}

// maxMessage is the largest batch that the broker takes where a topic does not
// set its own limit, bytes.
const maxMessage = 64 << 20

// StartBroker opens or makes the log in o.Dir and serves it until Close.
func StartBroker(o BrokerOptions) (*Broker, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o777); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	unlock, err := durable.Lock(filepath.Join(o.Dir, "lock"))
	if errors.Is(err, durable.ErrLocked) {
		return nil, fmt.Errorf("broker: another broker is at work in %s", o.Dir)
	} else if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	listen := o.Listen
	if listen == "" {
		listen = "127.0.0.1:0"
	}
	configs := map[string]string{
		"message.max.bytes":      strconv.Itoa(maxMessage),
		"log.cleaner.backoff.ms": "500", // how often old records are deleted
	}
	if o.RetentionBytes > 0 {
		configs["log.retention.bytes"] = strconv.FormatInt(o.RetentionBytes, 10)
	}
	options := []kfake.Opt{kfake.NumBrokers(1), kfake.DataDir(filepath.Join(o.Dir, "log")), kfake.BrokerConfigs(configs),
		kfake.ListenFn(func(network, _ string) (net.Listener, error) { return net.Listen(network, listen) })}
	if o.Cert != "" {
		pair, err := tls.LoadX509KeyPair(o.Cert, o.Key)
		if err != nil {
			unlock()
			return nil, fmt.Errorf("broker: %w", err)
		}
		options = append(options, kfake.TLS(&tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}))
	}
	if o.User != "" {
		options = append(options, kfake.EnableSASL())
		for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
			options = append(options, kfake.Superuser(mechanism, o.User, o.Password))
		}
	}
	cluster, err := kfake.NewCluster(options...)
	if err != nil {
		unlock()
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("broker: %s is taken by another program: choose another address, or port 0 for a free one", listen)
		}
		return nil, fmt.Errorf("broker: %s: %w", o.Dir, err)
	}
	return &Broker{cluster: cluster, addr: cluster.ListenAddrs()[0], unlock: unlock}, nil
}

// Addr is the host:port that clients connect to.
func (b *Broker) Addr() string { return b.addr }

// Close writes the log out and stops serving.
func (b *Broker) Close() error {
	var err error
	b.once.Do(func() {
		b.cluster.Close()
		err = b.unlock()
	})
	return err
}
