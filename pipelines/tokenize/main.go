// Command tokenize makes a token set of text files: Parquet shards of
// sequences of token ids, ready to train on.
//
//	tokenize --input 'corpus/*.jsonl.zst' --tokenizer tokenizer.json --output data/corpus
package main

import (
	"context"
	"flag"

	"github.com/scavenge/scavenge/pipelines"
)

func main() {
	var o pipelines.TokenizeOptions
	o.Flags(flag.CommandLine)
	pipelines.Main("tokenize makes a token set (Parquet shards of token ids) of text files.", func(ctx context.Context) error {
		return pipelines.Tokenize(ctx, o)
	})
}
