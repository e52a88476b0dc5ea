package tokenset

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/parquet-go/parquet-go"

	"github.com/scavenge/scavenge/schemas/store"
)

// readShard reads a shard's tokens, rows · seqLen of them.
func readShard(path string, want Shard, shard, seqLen, vocab int) ([]int32, error) {
	f, err := openShard(path, want)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sum, size, err := checksum(f)
	if err != nil {
		return nil, err
	}
	tokens, err := decode(f, size, want.Rows, shard, seqLen, vocab)
	if sum != want.SHA256 {
		if err != nil { // says where the damage is
			return nil, fmt.Errorf("damaged: its sha256 is not the manifest's: %w", err)
		}
		return nil, errOtherShard
	}
	return tokens, err
}

func checksum(f io.Reader) (sum string, size int64, err error) {
	h := sha256.New()
	if size, err = io.Copy(h, f); err != nil {
		return "", 0, err
	}
	return hex.EncodeToString(h.Sum(nil)), size, nil
}

// openParquet reads a file's footer. parquet-go panics on some damaged files.
func openParquet(f io.ReaderAt, size int64) (pf *parquet.File, err error) {
	defer recovered(&err)
	if pf, err = parquet.OpenFile(f, size, parquet.SkipPageIndex(true), parquet.SkipBloomFilters(true)); err != nil {
		return nil, fmt.Errorf("not a whole Parquet file: %w", err)
	}
	return pf, nil
}

func recovered(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("damaged: %v", r)
	}
}

// decode reads the tokens of a file and checks that it has the form that
// a token set's shards have in any version. Pages are read whole: assembling rows takes seven times as
// long.
func decode(f io.ReaderAt, size, rows int64, shard, seqLen, vocab int) (tokens []int32, err error) {
	defer recovered(&err)
	pf, err := openParquet(f, size)
	if err != nil {
		return nil, err
	}
	ids, ok := pf.Schema().Lookup("sequence_id")
	if !ok || !ids.Node.Leaf() || ids.Node.Type().Kind() != parquet.Int64 || !ids.Node.Required() {
		return nil, errors.New("no column sequence_id of required int64")
	}
	list, ok := pf.Schema().Lookup("tokens", "list", "element")
	if !ok || !list.Node.Leaf() || list.Node.Type().Kind() != parquet.Int32 || list.MaxRepetitionLevel != 1 || list.MaxDefinitionLevel != 1 {
		return nil, errors.New("no column tokens of list<int32> with required elements")
	}
	if pf.NumRows() != rows {
		return nil, fmt.Errorf("%d rows, the manifest says %d", pf.NumRows(), rows)
	}
	var total int64
	for i, g := range pf.RowGroups() {
		n := g.NumRows()
		if n < 0 || n > rows-total {
			return nil, fmt.Errorf("row group %d: %d rows of %d in the file", i, n, rows)
		}
		total += n
	}
	if total != rows {
		return nil, fmt.Errorf("the row groups have %d rows, the file says %d", total, rows)
	}
	// A footer may claim any number of rows: more than text compresses to is
	// left to append.
	tokens = make([]int32, 0, min(rows*int64(seqLen), 64*size))
	next := ID(shard, 0)
	for i, g := range pf.RowGroups() {
		chunks := g.ColumnChunks()
		err := readColumn(chunks[ids.ColumnIndex], func(p parquet.Page) error {
			values := p.Data()
			for _, id := range values.Int64() {
				if id != next {
					return fmt.Errorf("sequence_id %d, want %d", id, next)
				}
				next++
			}
			return nil
		})
		want := len(tokens) + int(g.NumRows())*seqLen
		if err == nil && next != ID(shard, 0)+int64(want/seqLen) {
			err = fmt.Errorf("sequence_id %d is missing", next)
		}
		if err == nil {
			err = readColumn(chunks[list.ColumnIndex], func(p parquet.Page) error {
				var err error
				tokens, err = appendTokens(tokens, p, want, seqLen, vocab)
				return err
			})
		}
		if err == nil && len(tokens) != want {
			err = fmt.Errorf("%d tokens are missing", want-len(tokens))
		}
		if err != nil {
			return nil, fmt.Errorf("row group %d: %w", i, err)
		}
	}
	return tokens, nil
}

// readColumn calls use with each page of a column of a row group.
func readColumn(c parquet.ColumnChunk, use func(parquet.Page) error) (err error) {
	defer recovered(&err)
	pages := c.Pages()
	defer pages.Close()
	for {
		p, err := pages.ReadPage()
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		err = use(p)
		parquet.Release(p)
		if err != nil {
			return err
		}
	}
}

// appendTokens adds a page's tokens, up to want in all, to whole rows of
// seqLen.
func appendTokens(tokens []int32, p parquet.Page, want, seqLen, vocab int) ([]int32, error) {
	values, starts := p.Data(), p.RepetitionLevels()
	v := values.Int32()
	if len(tokens)+len(v) > want {
		return nil, fmt.Errorf("more than the %d tokens of its rows", want)
	}
	if len(starts) != len(v) {
		return nil, fmt.Errorf("%d repetition levels for %d tokens", len(starts), len(v))
	}
	begin := len(tokens)
	column := begin % seqLen // counted on: a division a token would take longer than all else here
	for i, level := range starts {
		if (column == 0) != (level == 0) {
			return nil, fmt.Errorf("row %d does not have %d tokens", (begin+i)/seqLen, seqLen)
		}
		if column++; column == seqLen {
			column = 0
		}
	}
	if d := p.Dictionary(); d != nil {
		data := d.Page().Data()
		table := data.Int32()
		for _, t := range table { // once, and not for each of its uses
			if t < 0 || int(t) >= vocab {
				return nil, fmt.Errorf("its dictionary has token id %d, outside the vocabulary of %d", t, vocab)
			}
		}
		tokens = slices.Grow(tokens, len(v))[:begin+len(v)]
		for i, k := range v {
			if uint(k) >= uint(len(table)) {
				return nil, fmt.Errorf("entry %d of a dictionary of %d", k, len(table))
			}
			tokens[begin+i] = table[k]
		}
		return tokens, nil
	}
	tokens = append(tokens, v...)
	for i, t := range tokens[begin:] {
		if t < 0 || int(t) >= vocab {
			return nil, fmt.Errorf("row %d: token id %d is outside the vocabulary of %d", (begin+i)/seqLen, t, vocab)
		}
	}
	return tokens, nil
}

// Describe reads the manifest's line of a finished shard from the file itself,
// and the notes that its writer left.
func Describe(path string) (Shard, map[string]string, error) {
	f, err := openShard(path, Shard{})
	if err != nil {
		return Shard{}, nil, fmt.Errorf("token set: %w", err)
	}
	defer f.Close()
	sum, size, err := checksum(f)
	if err != nil {
		return Shard{}, nil, fmt.Errorf("token set: %w", err)
	}
	info := Shard{Name: store.Base(path), Bytes: size, SHA256: sum}
	pf, err := openParquet(f, size)
	if err != nil {
		return Shard{}, nil, fmt.Errorf("token set: %s: %w", path, err)
	}
	info.Rows = pf.NumRows()
	notes := map[string]string{}
	for _, kv := range pf.Metadata().KeyValueMetadata {
		notes[kv.Key] = kv.Value
	}
	if _, ok := notes[pagesKey]; ok {
		delete(notes, pagesKey)
		if info.IndexBytes, info.IndexSHA256, err = describeIndex(f, size, pf.Metadata()); err != nil {
			return Shard{}, nil, fmt.Errorf("token set: %s: index: %w", path, err)
		}
	}
	return info, notes, nil
}
