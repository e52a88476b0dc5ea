// Command broker serves the Kafka protocol from a folder, for pipelines and
// trainers on one machine with nothing installed:
//
//	broker --data runs/broker --listen 127.0.0.1:9092
//
// It prints its address once it serves, and stops at Ctrl-C. Killed at any
// moment, it goes on from the same folder.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/scavenge/scavenge/infra"
	"github.com/scavenge/scavenge/infra/cluster"
)

func main() {
	var o infra.BrokerOptions
	flag.StringVar(&o.Dir, "data", "runs/broker", "`folder` of the log")
	flag.StringVar(&o.Listen, "listen", "127.0.0.1:9092", "`host:port` to serve; port 0 takes a free one")
	flag.Int64Var(&o.RetentionBytes, "retention-bytes", 0, "delete a partition's oldest records, read or not, beyond this many `bytes`; 0 keeps everything")
	flag.StringVar(&o.Cert, "tls-cert", "", "PEM `file` of the broker's certificate: speak TLS")
	flag.StringVar(&o.Key, "tls-key", "", "PEM `file` of its key")
	flag.StringVar(&o.User, "sasl-user", "", "the one `name` that may log in, by SASL PLAIN or SCRAM; without it everybody may")
	passwordFile := flag.String("sasl-password-file", "", "`file` with its password (default the password in $"+cluster.EnvPassword+")")
	flag.Parse()
	if err := serve(o, *passwordFile); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(o infra.BrokerOptions, passwordFile string) (err error) {
	if flag.NArg() > 0 {
		return errors.New("broker: unexpected argument " + flag.Arg(0))
	}
	if o.User != "" {
		if o.Password, err = cluster.Password(passwordFile); err != nil {
			return fmt.Errorf("broker: %w", err)
		}
	} else if passwordFile != "" {
		return errors.New("broker: --sasl-password-file without --sasl-user: everybody could log in")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b, err := infra.StartBroker(o)
	if err != nil {
		return err
	}
	fmt.Println(b.Addr())
	<-ctx.Done()
	return b.Close()
}
