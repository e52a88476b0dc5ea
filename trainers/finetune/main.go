// Command finetune trains a distilled student further on next-token cross
// entropy, optionally with a teacher's soft targets:
//
//	finetune --dataset data/set --student runs/distill --steps 500 --run runs/finetune
package main

import (
	"context"
	"fmt"

	_ "github.com/scavenge/scavenge/gpu/devices"
	"github.com/scavenge/scavenge/trainers"
)

func main() {
	var o trainers.FinetuneOptions
	trainers.Command("finetune: trains a student on next-token cross entropy", o.Flags,
		func(ctx context.Context) (fmt.Stringer, error) { return trainers.Finetune(ctx, o) })
}
