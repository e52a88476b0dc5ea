// Command evaluate prints a checkpoint's perplexity over a token set's split or
// over a text file:
//
//	evaluate --model runs/finetune --dataset data/set
//	evaluate --model runs/finetune --text wiki.test.raw --tokenizer tokenizer.json
package main

import (
	"context"
	"fmt"

	_ "github.com/scavenge/scavenge/gpu/devices"
	"github.com/scavenge/scavenge/trainers"
)

func main() {
	var o trainers.EvaluateOptions
	trainers.Command("evaluate: perplexity of a checkpoint", o.Flags,
		func(ctx context.Context) (fmt.Stringer, error) { return trainers.Evaluate(ctx, o) })
}
