// Command experiment runs the paper's whole experiment on one machine, in one
// process: text → tokenizer → token set (Beam, Parquet) → teacher → a Hyena
// pre-trained, one distilled layer by layer from activations on Kafka, one
// distilled and then fine-tuned → perplexities, the paper's Table 1.
//
//	go run ./pipelines/experiment
//
// Without flags it takes about five minutes on two cores and needs nothing but
// Go. Everything it makes is in its run folder; the same command goes on from
// what is there.
package main

import (
	"context"
	"flag"
	"os"

	_ "github.com/scavenge/scavenge/gpu/devices"
	"github.com/scavenge/scavenge/pipelines"
)

func main() {
	var o options
	o.flags(flag.CommandLine)
	pipelines.Main("experiment runs the paper's whole experiment on one machine and prints its table.", func(ctx context.Context) error {
		return run(ctx, o, os.Stdout)
	})
}
