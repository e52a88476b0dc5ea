// Package cluster is the way to a Kafka cluster: where its brokers are, and
// how a client and they prove to each other who they are. In go flags and
// environment variables; out go what kafka-go's clients are made with.
package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
)

// The SASL mechanisms.
const (
	Plain       = "plain" // the password itself is sent: only inside TLS
	ScramSHA256 = "scram-sha-256"
	ScramSHA512 = "scram-sha-512"
)

// The environment variables that stand in for flags, and the one that has no
// flag: arguments of a process are read by every user of its machine.
const (
	envTLS          = "SCAVENGE_TLS"
	envCA           = "SCAVENGE_TLS_CA"
	envCert         = "SCAVENGE_TLS_CERT"
	envKey          = "SCAVENGE_TLS_KEY"
	envSASL         = "SCAVENGE_SASL"
	envUser         = "SCAVENGE_SASL_USER"
	envPasswordFile = "SCAVENGE_SASL_PASSWORD_FILE"
	EnvPassword     = "SCAVENGE_SASL_PASSWORD"
)

// Access says how to reach a cluster. It holds no secret, so that it may be
// written to logs and sent to Beam workers: these read the password where they
// run, from PasswordFile or the environment. The zero value has no brokers and
// speaks plain text.
type Access struct {
	Brokers []string // host:port

	TLS       bool
	CA        string // PEM file of the authorities to trust; "": the system's
	Cert, Key string // PEM files of a client certificate, for brokers that ask for one

	SASL         string // Plain, ScramSHA256 or ScramSHA512; "": no authentication
	User         string
	PasswordFile string // "": the environment's SCAVENGE_SASL_PASSWORD

	bad error // of the environment, told by Validate
}

// Flags declares the flags. Environment variables give their defaults; about
// is what --brokers says of itself.
func (a *Access) Flags(f *flag.FlagSet, about string) {
	f.Var((*addresses)(&a.Brokers), "brokers", about)
	on := false
	if v := os.Getenv(envTLS); v != "" {
		var err error
		if on, err = strconv.ParseBool(v); err != nil {
			a.bad = fmt.Errorf("%s is %q in the environment: want true or false", envTLS, v)
		}
	}
	f.BoolVar(&a.TLS, "tls", on, "speak TLS with the brokers (or $"+envTLS+")")
	f.StringVar(&a.CA, "tls-ca", os.Getenv(envCA), "PEM `file` of the authorities to trust (or $"+envCA+"; default the system's)")
	f.StringVar(&a.Cert, "tls-cert", os.Getenv(envCert), "PEM `file` of a client certificate (or $"+envCert+")")
	f.StringVar(&a.Key, "tls-key", os.Getenv(envKey), "PEM `file` of its key (or $"+envKey+")")
	f.StringVar(&a.SASL, "sasl", os.Getenv(envSASL), "`mechanism` to log in with: plain, scram-sha-256 or scram-sha-512 (or $"+envSASL+")")
	f.StringVar(&a.User, "sasl-user", os.Getenv(envUser), "`name` to log in with (or $"+envUser+")")
	f.StringVar(&a.PasswordFile, "sasl-password-file", os.Getenv(envPasswordFile), "`file` with the password (or $"+envPasswordFile+"; default the password in $"+EnvPassword+")")
}

// Validate says what of an access cannot be. It reads no file: see Login.
func (a Access) Validate() error {
	if a.bad != nil {
		return a.bad
	}
	for _, b := range a.Brokers {
		if err := checkAddress(b); err != nil {
			return fmt.Errorf("--brokers: %w", err)
		}
	}
	if !a.TLS {
		for _, o := range []struct{ flag, value string }{{"--tls-ca", a.CA}, {"--tls-cert", a.Cert}, {"--tls-key", a.Key}} {
			if o.value != "" {
				return fmt.Errorf("%s without --tls: add --tls, else nothing is encrypted", o.flag)
			}
		}
	}
	if (a.Cert == "") != (a.Key == "") {
		return errors.New("--tls-cert and --tls-key: want both or neither")
	}
	switch a.SASL {
	case "":
		if a.User != "" || a.PasswordFile != "" {
			return errors.New("--sasl-user and --sasl-password-file want --sasl: plain, scram-sha-256 or scram-sha-512")
		}
		return nil
	case Plain:
		if !a.TLS && !a.local() {
			return errors.New("--sasl plain sends the password as it is: add --tls, or take scram-sha-512")
		}
	case ScramSHA256, ScramSHA512:
	default:
		return fmt.Errorf("--sasl %q: want plain, scram-sha-256 or scram-sha-512", a.SASL)
	}
	if a.User == "" {
		return errors.New("--sasl-user is missing: the name to log in with")
	}
	return nil
}

// local tells whether nothing leaves this machine.
func (a Access) local() bool {
	for _, b := range a.Brokers {
		host, _, _ := net.SplitHostPort(b)
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return false
		}
	}
	return true
}

// Absolute is the access with its files named from the root: Beam's workers
// may have another working directory.
func (a Access) Absolute() (Access, error) {
	for _, file := range []*string{&a.CA, &a.Cert, &a.Key, &a.PasswordFile} {
		if *file == "" {
			continue
		}
		var err error
		if *file, err = filepath.Abs(*file); err != nil {
			return a, err
		}
	}
	return a, nil
}

// Login reads certificates and password: what a kafka.Transport or
// kafka.Dialer takes as TLS and SASL, nil where there is none.
func (a Access) Login() (*tls.Config, sasl.Mechanism, error) {
	if err := a.Validate(); err != nil {
		return nil, nil, err
	}
	c, err := a.tls()
	if err != nil {
		return nil, nil, err
	}
	if a.SASL == "" {
		return c, nil, nil
	}
	password, err := Password(a.PasswordFile)
	if err != nil {
		return nil, nil, err
	}
	switch a.SASL {
	case Plain:
		return c, plain.Mechanism{Username: a.User, Password: password}, nil
	case ScramSHA256:
		m, err := scram.Mechanism(scram.SHA256, a.User, password)
		return c, m, err
	default:
		m, err := scram.Mechanism(scram.SHA512, a.User, password)
		return c, m, err
	}
}

func (a Access) tls() (*tls.Config, error) {
	if !a.TLS {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if a.CA != "" {
		pem, err := os.ReadFile(a.CA)
		if err != nil {
			return nil, fmt.Errorf("--tls-ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--tls-ca %s: it has no certificate in PEM", a.CA)
		}
	}
	if a.Cert != "" {
		pair, err := tls.LoadX509KeyPair(a.Cert, a.Key)
		if err != nil {
			return nil, fmt.Errorf("--tls-cert, --tls-key: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// Explain adds to the error of a first contact what it usually means.
func Explain(err error) error {
	var header tls.RecordHeaderError
	switch {
	case errors.As(err, &header):
		return fmt.Errorf("%w: the broker does not speak TLS at this port: leave out --tls, or name another port", err)
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("it hung up (%w): does it want --tls or --sasl, or another user or password?", err)
	}
	return err
}

// Refused tells whether an error is an answer about who the client or the
// broker is, which trying again does not change.
func Refused(err error) bool {
	var certificate *tls.CertificateVerificationError
	var header tls.RecordHeaderError
	var told *net.OpError // the broker's own word, in TLS
	return errors.As(err, &certificate) || errors.As(err, &header) || errors.As(err, &told) && told.Op == "remote error" || errors.Is(err, kafka.SASLAuthenticationFailed) ||
		errors.Is(err, kafka.UnsupportedSASLMechanism) || errors.Is(err, kafka.IllegalSASLState)
}

// Password is the first line of a file, or without one the environment's.
func Password(file string) (string, error) {
	if file == "" {
		if p := os.Getenv(EnvPassword); p != "" {
			return p, nil
		}
		return "", fmt.Errorf("no password: name its file with --sasl-password-file, or set $%s", EnvPassword)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("--sasl-password-file: %w", err)
	}
	line, _, _ := strings.Cut(string(data), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return "", fmt.Errorf("--sasl-password-file %s: its first line is empty", file)
	}
	return line, nil
}

// addresses is a flag of comma-separated addresses.
type addresses []string

func (a *addresses) String() string { return strings.Join(*a, ",") }

func (a *addresses) Set(v string) error {
	*a = nil
	for _, one := range strings.Split(v, ",") {
		one = strings.TrimSpace(one)
		if err := checkAddress(one); err != nil {
			return err
		}
		*a = append(*a, one)
	}
	return nil
}

func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if n, bad := strconv.ParseUint(port, 10, 16); err != nil || host == "" || bad != nil || n == 0 {
		return fmt.Errorf("%q is not host:port", address)
	}
	return nil
}
