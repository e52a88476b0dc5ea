// Command inspect prints a token set's card, reads all of it, and verifies
// every checksum.
//
//	inspect --dataset data/owt --tokenizer tokenizer.json
package main

import (
	"context"
	"flag"

	"github.com/scavenge/scavenge/pipelines"
)

func main() {
	var o pipelines.InspectOptions
	o.Flags(flag.CommandLine)
	pipelines.Main("inspect prints a token set's card and verifies every checksum.", func(ctx context.Context) error {
		return pipelines.Inspect(ctx, o)
	})
}
