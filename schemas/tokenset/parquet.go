package tokenset

import (
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"io"

	"github.com/parquet-go/parquet-go/deprecated"
	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"
)

// A parquetWriter writes the parts of a Parquet file in their order. A general
// writer takes every value in its hand; here pages come as they lie in the
// file, and what is left to do are their headers and the index.
//
//	"PAR1"
//	each row group   the column tokens: the dictionary (with two bytes an id), pages of layout's form
//	                 the column sequence_id: pages of PLAIN int64
//	index            each column's offset index, row group by row group
//	                 the footer, its size (4 bytes), "PAR1"
//
// Nothing is compressed. Each page has its CRC-32; those of the column tokens
// are also in the footer, as the note pagesKey: 4 bytes each, little-endian, in
// base64. So who knows the index can trust any page without reading the rest.
type parquetWriter struct {
	w      io.Writer
	layout layout
	at     int64 // bytes written

	groupRows int64                 // of the row group in the making
	dict      int64                 // where its dictionary is; 0: it has none
	pages     []format.PageLocation // of its tokens
	sums      []byte                // of all pages of tokens

	groups  []format.RowGroup
	offsets []format.OffsetIndex // by row group: sequence_id, tokens
	notes   []format.KeyValue
}

// pagesKey is the note of the pages' checksums.
const pagesKey = "scavenge.pages"

const parquetMagic = "PAR1"

func (p *parquetWriter) note(key, value string) {
	p.notes = append(p.notes, format.KeyValue{Key: key, Value: value})
}

func (p *parquetWriter) write(b []byte) error {
	n, err := p.w.Write(b)
	p.at += int64(n)
	return err
}

func (p *parquetWriter) begin() error { return p.write([]byte(parquetMagic)) }

// page writes a page and says where it is.
func (p *parquetWriter) page(h format.PageHeader, content []byte, firstRow int64) (format.PageLocation, error) {
	h.UncompressedPageSize, h.CompressedPageSize = int32(len(content)), int32(len(content))
	h.CRC = int32(crc32.ChecksumIEEE(content))
	loc := format.PageLocation{Offset: p.at, FirstRowIndex: firstRow}
	header, err := thrift.Marshal(new(thrift.CompactProtocol), &h)
	if err == nil {
		err = p.write(header)
	}
	if err == nil {
		err = p.write(content)
	}
	loc.CompressedPageSize = int32(p.at - loc.Offset)
	return loc, err
}

func dataPage(values int, e format.Encoding) format.PageHeader {
	return format.PageHeader{Type: format.DataPage, DataPageHeader: thrift.New(format.DataPageHeader{
		NumValues: int32(values), Encoding: e, DefinitionLevelEncoding: format.RLE, RepetitionLevelEncoding: format.RLE})}
}

// tokens writes a page of so many rows.
func (p *parquetWriter) tokens(content []byte, rows int) error {
	e := format.Plain
	if p.layout.width == 2 {
		e = format.RLEDictionary
	}
	if p.groupRows == 0 && e == format.RLEDictionary {
		loc, err := p.page(format.PageHeader{Type: format.DictionaryPage, DictionaryPageHeader: thrift.New(format.DictionaryPageHeader{
			NumValues: int32(p.layout.vocab), Encoding: format.Plain, IsSorted: true})}, p.layout.dictionary(), 0)
		if err != nil {
			return err
		}
		p.dict = loc.Offset
	}
	loc, err := p.page(dataPage(rows*p.layout.seqLen, e), content, p.groupRows)
	p.pages = append(p.pages, loc)
	p.sums = binary.LittleEndian.AppendUint32(p.sums, crc32.ChecksumIEEE(content))
	p.groupRows += int64(rows)
	return err
}

// idRows is how many sequence ids are in a page.
const idRows = 128 << 10

// endGroup ends a row group with the ids of its rows, the last of which is the
// one before next.
func (p *parquetWriter) endGroup(next int64) error {
	rows, begin := p.groupRows, p.pages[0].Offset
	if p.dict != 0 {
		begin = p.dict
	}
	middle := p.at
	var ids []format.PageLocation
	for row := int64(0); row < rows; row += idRows {
		var content []byte
		for i := row; i < min(rows, row+idRows); i++ {
			content = binary.LittleEndian.AppendUint64(content, uint64(next-rows+i))
		}
		loc, err := p.page(dataPage(len(content)/8, format.Plain), content, row)
		if err != nil {
			return err
		}
		ids = append(ids, loc)
	}
	end := p.at
	encodings := []format.Encoding{format.RLE, format.Plain}
	if p.dict != 0 {
		encodings = append(encodings, format.RLEDictionary)
	}
	p.groups = append(p.groups, format.RowGroup{
		Columns: []format.ColumnChunk{
			{MetaData: format.ColumnMetaData{Type: format.Int64, Encoding: []format.Encoding{format.Plain, format.RLE}, PathInSchema: []string{"sequence_id"},
				NumValues: rows, TotalUncompressedSize: end - middle, TotalCompressedSize: end - middle, DataPageOffset: ids[0].Offset,
				Statistics: format.Statistics{MinValue: bytes8(next - rows), MaxValue: bytes8(next - 1)}}},
			{MetaData: format.ColumnMetaData{Type: format.Int32, Encoding: encodings, PathInSchema: []string{"tokens", "list", "element"},
				NumValues: rows * int64(p.layout.seqLen), TotalUncompressedSize: middle - begin, TotalCompressedSize: middle - begin,
				DataPageOffset: p.pages[0].Offset, DictionaryPageOffset: p.dict}},
		},
		TotalByteSize: end - begin, NumRows: rows, FileOffset: begin, TotalCompressedSize: end - begin, Ordinal: int16(len(p.groups)),
	})
	p.offsets = append(p.offsets, format.OffsetIndex{PageLocations: ids}, format.OffsetIndex{PageLocations: p.pages})
	p.groupRows, p.dict, p.pages = 0, 0, nil
	return nil
}

func bytes8(v int64) []byte { return binary.LittleEndian.AppendUint64(nil, uint64(v)) }

// end writes the index of a file of so many rows, and returns it.
func (p *parquetWriter) end(rows int64) (index []byte, err error) {
	protocol := new(thrift.CompactProtocol)
	for i := range p.offsets {
		c := &p.groups[i/2].Columns[i%2]
		b, err := thrift.Marshal(protocol, &p.offsets[i])
		if err != nil {
			return nil, err
		}
		c.OffsetIndexOffset, c.OffsetIndexLength = p.at+int64(len(index)), int32(len(b))
		index = append(index, b...)
	}
	p.note(pagesKey, base64.StdEncoding.EncodeToString(p.sums))
	order := format.ColumnOrder{Value: new(format.TypeDefinedOrder)}
	footer, err := thrift.Marshal(protocol, &format.FileMetaData{Version: 1, Schema: parquetSchema, NumRows: rows, RowGroups: p.groups,
		KeyValueMetadata: p.notes, CreatedBy: createdBy, ColumnOrders: []format.ColumnOrder{order, order}})
	if err != nil {
		return nil, err
	}
	index = append(index, footer...)
	index = binary.LittleEndian.AppendUint32(index, uint32(len(footer)))
	index = append(index, parquetMagic...)
	return index, p.write(index)
}

// createdBy has the form that Parquet readers look for: a program, its version
// and its build.
const createdBy = "scavenge version 2(build -)"

var parquetSchema = []format.SchemaElement{
	{Name: "sequences", NumChildren: thrift.New(int32(2))},
	{Name: "sequence_id", Type: thrift.New(format.Int64), RepetitionType: thrift.New(format.Required)},
	{Name: "tokens", RepetitionType: thrift.New(format.Required), NumChildren: thrift.New(int32(1)),
		ConvertedType: thrift.New(deprecated.List), LogicalType: format.LogicalType{Value: new(format.ListType)}},
	{Name: "list", RepetitionType: thrift.New(format.Repeated), NumChildren: thrift.New(int32(1))},
	{Name: "element", Type: thrift.New(format.Int32), RepetitionType: thrift.New(format.Required)},
}
