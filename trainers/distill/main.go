// Command distill fits a Hyena student to a teacher's layer outputs, which it
// reads from Kafka (--brokers, --topic) or computes itself (--source inline):
//
//	distill --dataset data/set --teacher teacher --brokers 127.0.0.1:9092 --topic demo --steps-per-layer 500 --run runs/distill
package main

import (
	"context"
	"fmt"

	_ "github.com/scavenge/scavenge/gpu/devices"
	"github.com/scavenge/scavenge/trainers"
)

func main() {
	var o trainers.DistillOptions
	trainers.Command("distill: fits a Hyena student to a transformer's layer outputs", o.Flags,
		func(ctx context.Context) (fmt.Stringer, error) { return trainers.Distill(ctx, o) })
}
