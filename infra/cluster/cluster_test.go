package cluster

import (
	"encoding/json"
	"flag"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// parse is what flags, and the environment behind them, make of an access.
func parse(t *testing.T, args ...string) (Access, error) {
	t.Helper()
	var a Access
	f := flag.NewFlagSet("test", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	a.Flags(f, "`host:port`")
	if err := f.Parse(args); err != nil {
		return a, err
	}
	return a, a.Validate()
}

func TestBrokersFlagWantsAddresses(t *testing.T) {
	a, err := parse(t, "--brokers", "kafka-1:9092, [::1]:9092")
	if err != nil || !reflect.DeepEqual(a.Brokers, []string{"kafka-1:9092", "[::1]:9092"}) {
		t.Errorf("%v: %v", a.Brokers, err)
	}
	for _, bad := range []string{"", "kafka", ":9092", "kafka:", "kafka:0", "kafka:x", "kafka:99999", "kafka:9092,", "kafka:9092:1"} {
		if _, err := parse(t, "--brokers", bad); err == nil || !strings.Contains(err.Error(), "is not host:port") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestEnvironmentGivesTheFlagsDefaults(t *testing.T) {
	for name, value := range map[string]string{envTLS: "true", envCA: "ca.pem", envCert: "c.pem", envKey: "c.key", envSASL: ScramSHA256, envUser: "ann", envPasswordFile: "p"} {
		t.Setenv(name, value)
	}
	a, err := parse(t, "--sasl-user", "bob")
	want := Access{TLS: true, CA: "ca.pem", Cert: "c.pem", Key: "c.key", SASL: ScramSHA256, User: "bob", PasswordFile: "p"}
	if err != nil || !reflect.DeepEqual(a, want) {
		t.Errorf("%+v, want %+v; %v", a, want, err)
	}
	if a, err := parse(t, "--tls=false", "--tls-ca", "", "--tls-cert", "", "--tls-key", ""); err != nil || a.TLS {
		t.Errorf("a flag does not win over the environment: %+v: %v", a, err)
	}
	t.Setenv(envTLS, "yes, please") // must not be taken as no
	if _, err := parse(t); err == nil || !strings.Contains(err.Error(), envTLS+` is "yes, please"`) {
		t.Error(err)
	}
}

func TestAccessThatCannotBeIsRefused(t *testing.T) {
	dir := t.TempDir()
	empty, word := filepath.Join(dir, "empty"), filepath.Join(dir, "word")
	for path, text := range map[string]string{empty: "\nsecond", word: "secret\r\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv(EnvPassword, "")
	scram := Access{SASL: ScramSHA512, User: "ann"}
	with := func(a Access, change func(*Access)) Access { change(&a); return a }
	for want, a := range map[string]Access{
		"--tls-ca without --tls":             {CA: word},
		"--tls-cert without --tls":           {Cert: word, Key: word},
		"want both or neither":               {TLS: true, Cert: word},
		`--sasl "kerberos"`:                  {SASL: "kerberos", User: "ann"},
		"--sasl-user is missing":             {SASL: ScramSHA256},
		"want --sasl: plain":                 {User: "ann"},
		"sends the password as it is":        {Brokers: []string{"127.0.0.1:1", "kafka:1"}, SASL: Plain, User: "ann"},
		"no password":                        scram,
		"its first line is empty":            with(scram, func(a *Access) { a.PasswordFile = empty }),
		"--sasl-password-file: open":         with(scram, func(a *Access) { a.PasswordFile = filepath.Join(dir, "none") }),
		"--tls-ca: open":                     {TLS: true, CA: filepath.Join(dir, "none")},
		"it has no certificate in PEM":       {TLS: true, CA: word},
		"--tls-cert, --tls-key: tls: failed": {TLS: true, Cert: word, Key: word},
	} {
		if _, _, err := a.Login(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v, want one line with %q", a, err, want)
		}
	}
	if p, err := Password(word); p != "secret" || err != nil {
		t.Errorf("password %q: %v", p, err)
	}
	t.Setenv(EnvPassword, "from the environment")
	for _, a := range []Access{scram, {Brokers: []string{"127.0.0.1:1", "[::1]:1", "localhost:1"}, SASL: Plain, User: "ann"}} {
		if _, m, err := a.Login(); err != nil || m == nil {
			t.Errorf("%+v: %v", a, err)
		}
	}
}

// What is logged or sent to a Beam worker has no password in it.
func TestAccessHoldsNoSecret(t *testing.T) {
	t.Setenv(EnvPassword, "hunter2")
	a, err := parse(t, "--brokers", "kafka:9092", "--sasl", ScramSHA512, "--sasl-user", "ann")
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(a)
	if err != nil || strings.Contains(string(text), "hunter2") {
		t.Errorf("%s: %v", text, err)
	}
	if b, err := (Access{CA: "ca.pem", PasswordFile: "/p"}).Absolute(); err != nil || !filepath.IsAbs(b.CA) || b.PasswordFile != "/p" || b.Key != "" {
		t.Errorf("%+v: %v", b, err)
	}
	var back Access
	if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(back, a) {
		t.Errorf("%+v, want %+v: %v", back, a, err)
	}
}
