package transforms

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"

	"github.com/scavenge/scavenge/schemas/store"
	"github.com/scavenge/scavenge/schemas/tokenset"
)

// listedInputs is how many files a manifest lists; of more it has their number
// and digests.
var listedInputs = 10000

// Inputs gathers what a manifest says of the files that were read.
type Inputs struct {
	list            []tokenset.Input
	files, bytes    int64
	names, contents hash.Hash
}

// Add takes the next file, in the order of the listing.
func (in *Inputs) Add(file tokenset.Input) {
	if in.names == nil {
		in.names, in.contents = sha256.New(), sha256.New()
	}
	if len(in.list) <= listedInputs {
		in.list = append(in.list, file)
	}
	in.files++
	in.bytes += file.Bytes
	content := file.Version
	if content == "" {
		content = file.SHA256
	}
	fmt.Fprintf(in.names, "%s %d\n", store.Base(file.Name), file.Bytes)
	fmt.Fprintf(in.contents, "%s %d %s\n", store.Base(file.Name), file.Bytes, content)
}

// Result is the manifest's list: the files or, where they are many, one entry
// for all of them, with the given name.
func (in *Inputs) Result(name string) []tokenset.Input {
	if len(in.list) <= listedInputs {
		return in.list
	}
	sum := func(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }
	return []tokenset.Input{{Name: name, Files: in.files, Bytes: in.bytes, Names: sum(in.names), SHA256: sum(in.contents)}}
}

// inputs says what was read.
func (r Recipe) inputs(ctx context.Context) ([]tokenset.Input, error) {
	var all Inputs
	i := 0
	for g, err := range r.SavedGroups(ctx, r.Groups) {
		if err != nil {
			return nil, err
		}
		var s scanned
		if err := loadJSON(ctx, r.scannedPath(i), &s); err != nil {
			return nil, err
		}
		if len(s.Sums) != len(g.Pieces) {
			return nil, fmt.Errorf("token set %s: group %d has %d pieces, %d were read", r.Dir, i, len(g.Pieces), len(s.Sums))
		}
		for j, p := range g.Pieces {
			if p.Start == 0 {
				all.Add(tokenset.Input{Name: p.Name, Bytes: p.Size, SHA256: s.Sums[j], Version: p.Version})
			}
		}
		i++
	}
	return all.Result(r.InputName), nil
}
