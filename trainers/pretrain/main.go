// Command pretrain trains a model from random weights: the baseline (--mixer
// hyena), or a teacher where none can be downloaded (--mixer attention):
//
//	pretrain --dataset data/set --mixer attention --dim 128 --layers 4 --heads 4 --batch 16 --steps 500 --run runs/teacher
package main

import (
	"context"
	"fmt"

	_ "github.com/scavenge/scavenge/gpu/devices"
	"github.com/scavenge/scavenge/trainers"
)

func main() {
	var o trainers.PretrainOptions
	trainers.Command("pretrain: trains a model from random weights", o.Flags,
		func(ctx context.Context) (fmt.Stringer, error) { return trainers.Pretrain(ctx, o) })
}
