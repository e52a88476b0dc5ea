// Command teach runs a teacher over a token set and sends what each of its
// layers puts out to Kafka, for trainers/distill:
//
//	teach --dataset data/corpus --teacher data/pythia-70m --topic pythia --brokers localhost:9092
package main

import (
	"context"
	"flag"

	_ "github.com/scavenge/scavenge/gpu/devices"
	"github.com/scavenge/scavenge/pipelines"
)

func main() {
	var o pipelines.TeachOptions
	o.Flags(flag.CommandLine)
	pipelines.Main("teach sends a teacher's activations over a token set to Kafka, a topic a layer.", func(ctx context.Context) error {
		return pipelines.Teach(ctx, o)
	})
}
