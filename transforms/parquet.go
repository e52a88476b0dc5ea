package transforms

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/parquet-go/parquet-go"
)

// textColumn is the column that documents are read from.
const textColumn = "text"

// parquet reads the column `text` of the row groups that begin in the piece, a
// page at a time. A row group that is damaged gives no documents: it is read
// once to see that it is whole, which costs little beside the encoding. told is
// how much of the file was told to have been read before.
func (in *reading) parquet(ctx context.Context, f io.ReaderAt, p Piece, told int64) error {
	pf, err := openParquet(f, p.Size)
	if err != nil {
		return err
	}
	column, ok := pf.Schema().Lookup(textColumn)
	if !ok || !column.Node.Leaf() || column.Node.Type().Kind() != parquet.ByteArray || column.MaxRepetitionLevel != 0 || column.MaxDefinitionLevel > 1 {
		return &badDocument{badForm, "", fmt.Sprintf("a Parquet file without a column %q of strings", textColumn)}
	}
	var row int64 // of the file
	for i, g := range pf.RowGroups() {
		rows := g.NumRows()
		meta := pf.Metadata().RowGroups[i]
		if meta.Columns == nil || int(column.ColumnIndex) >= len(meta.Columns) || rows < 0 {
			return &badDocument{badDamaged, "", fmt.Sprintf("damaged: row group %d", i)}
		}
		c := meta.Columns[column.ColumnIndex].MetaData
		start := c.DataPageOffset
		if c.DictionaryPageOffset > 0 {
			start = min(start, c.DictionaryPageOffset)
		}
		if start >= p.Start && start < p.End {
			where := fmt.Sprintf("row group %d", i)
			chunk := g.ColumnChunks()[column.ColumnIndex]
			var err error
			if c.TotalUncompressedSize > bombBytes && c.TotalUncompressedSize/bombRatio > c.TotalCompressedSize {
				err = &badDocument{badBomb, where, fmt.Sprintf("a decompression bomb: %d bytes out of %d", c.TotalUncompressedSize, c.TotalCompressedSize)}
			} else {
				err = verify(ctx, chunk, where, rows)
			}
			if err == nil {
				err = texts(ctx, chunk, where, rows, func(i int64, text []byte, null bool) error {
					place := fmt.Sprintf("row %d", row+i)
					if null {
						return in.leaveOut(&badDocument{badNoText, place, "no \"text\""})
					}
					return in.document(text, place, false)
				})
			}
			if err = in.leaveOut(err); err != nil {
				return err
			}
		}
		row += rows
	}
	in.to.read(max(0, p.End-p.Start-told))
	return ctx.Err()
}

// openParquet reads the footer. parquet-go panics on some damaged files.
func openParquet(f io.ReaderAt, size int64) (pf *parquet.File, err error) {
	defer panicIsDamage(&err, "")
	if pf, err = parquet.OpenFile(f, size, parquet.SkipPageIndex(true), parquet.SkipBloomFilters(true)); err != nil {
		return nil, damaged(fmt.Errorf("not a whole Parquet file: %w", err), "")
	}
	return pf, nil
}

// verify reads a column of a row group to see that it is whole.
func verify(ctx context.Context, chunk parquet.ColumnChunk, where string, rows int64) (err error) {
	defer panicIsDamage(&err, where)
	return texts(ctx, chunk, where, rows, func(int64, []byte, bool) error { return nil })
}

// texts calls use with each row's text of a column of a row group.
func texts(ctx context.Context, chunk parquet.ColumnChunk, where string, rows int64, use func(row int64, text []byte, null bool) error) error {
	pages := chunk.Pages()
	defer pages.Close()
	var row int64
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		page, err := pages.ReadPage()
		if err == io.EOF {
			break
		}
		if err != nil {
			return damaged(err, where)
		}
		row, err = pageTexts(page, row, rows, use)
		parquet.Release(page)
		if errors.Is(err, errPage) {
			return damaged(err, where)
		}
		if err != nil {
			return err
		}
	}
	if row != rows {
		return damaged(fmt.Errorf("%d rows, its footer says %d", row, rows), where)
	}
	return nil
}

var errPage = errors.New("a page contradicts itself")

func pageTexts(page parquet.Page, row, rows int64, use func(int64, []byte, bool) error) (int64, error) {
	values := page.Data()
	var indexes []int32
	if d := page.Dictionary(); d != nil {
		indexes = values.Int32()
		values = d.Page().Data()
	}
	data, offsets := values.ByteArray()
	texts := max(0, len(offsets)-1)
	count := texts
	if indexes != nil {
		count = len(indexes)
	}
	levels := page.DefinitionLevels()
	if len(levels) > 0 {
		if count = len(levels); int64(count) != page.NumValues() {
			return row, errPage
		}
	}
	if int64(count) > rows-row {
		return row, errPage
	}
	next := 0
	for i := range count {
		if len(levels) > 0 && levels[i] == 0 {
			if err := use(row, nil, true); err != nil {
				return row, err
			}
			row++
			continue
		}
		at := next
		next++
		if indexes != nil {
			if at >= len(indexes) {
				return row, errPage
			}
			at = int(indexes[at])
		}
		if at < 0 || at >= texts || offsets[at] > offsets[at+1] || int(offsets[at+1]) > len(data) {
			return row, errPage
		}
		if err := use(row, data[offsets[at]:offsets[at+1]:offsets[at+1]], false); err != nil {
			return row, err
		}
		row++
	}
	return row, nil
}

// panicIsDamage turns a panic over damaged data into an error.
func panicIsDamage(err *error, where string) {
	if r := recover(); r != nil {
		*err = &badDocument{badDamaged, where, fmt.Sprintf("damaged: %v", r)}
	}
}
