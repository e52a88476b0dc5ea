package transforms

import (
	"iter"
)

// Group is what one worker reads in one go.
type Group struct {
	Pieces []Piece
}

// Bytes is the size of the group's input.
func (g Group) Bytes() (n int64) {
	for _, p := range g.Pieces {
		n += p.End - p.Start
	}
	return n
}

// What a byte of a compressed file counts for: about what gzip, zstd and xz
// gain on text.
const compressedWeight = 3

// DefaultGroupBytes is about how much text a worker reads in one go: one that
// is killed loses no more.
const DefaultGroupBytes = 64 << 20

// groupPieces bounds the files of a group.
const groupPieces = 4096

// Groups puts the listed files into groups, in order. JSON lines that are not
// compressed and Parquet files are cut where they are larger. How they are
// grouped has no influence on the token set.
func (l *Listing) Groups() iter.Seq2[Group, error] {
	return func(yield func(Group, error) bool) {
		var pieces []Piece
		var weight int64
		flush := func() bool {
			more := len(pieces) == 0 || yield(Group{Pieces: pieces}, nil)
			pieces, weight = nil, 0
			return more
		}
		for x, err := range l.all() {
			if err != nil {
				yield(Group{}, err)
				return
			}
			if (weight > 0 && weight+x.Heft > l.groupBytes || len(pieces) == groupPieces) && !flush() {
				return
			}
			size, parts := x.File.Size, int64(1)
			if x.Cut {
				parts = max(1, min(size, (x.Heft+l.groupBytes/2)/l.groupBytes))
			}
			for i := range parts {
				part := x.File
				part.Start, part.End = size*i/parts, size*(i+1)/parts
				pieces = append(pieces, part)
				if weight += x.Heft / parts; parts > 1 && !flush() {
					return
				}
			}
		}
		flush()
	}
}

// Pieces yields the pieces of groups one after the other.
func Pieces(groups iter.Seq2[Group, error]) iter.Seq2[Piece, error] {
	return func(yield func(Piece, error) bool) {
		for g, err := range groups {
			if err != nil {
				yield(Piece{}, err)
				return
			}
			for _, p := range g.Pieces {
				if !yield(p, nil) {
					return
				}
			}
		}
	}
}
