package trainers

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
)

// cache is a file of Kafka messages, by sequence. Its format, little-endian:
//
//	┌──────────────────────┬────────────────────┬──────────────────────────┐
//	│ "scavenge cache 1\n" │ identity, 32 bytes │ entries, one after other │
//	└──────────────────────┴────────────────────┴──────────────────────────┘
//	entry: ┌───────────┬───────────┬────────────┬─────────────┬─────────────┬───────┐
//	       │ partition │ offset    │ sequence   │ message     │ CRC-32C of  │ the   │
//	       │ 4 bytes   │ in it, 8  │ id, 8      │ length, 4   │ these 24: 4 │ message│
//	       └───────────┴───────────┴────────────┴─────────────┴─────────────┴───────┘
//
// Messages carry their own checksum, which is checked when one is read; an empty
// one stands for a record that was rejected. A file
// whose end is torn, by a kill or a full disk, is cut after its last whole
// entry: what is missing is read from Kafka again. Nothing is fsynced.
type cache struct {
	path    string
	file    *os.File
	entries map[int64]entry // by sequence
	next    map[int]int64   // by partition: the offset after its last entry
	count   map[int]int64   // by partition: its entries
	end     int64           // of the last whole entry
}

type entry struct {
	at        int64 // of the message in the file
	size      int
	partition int
	offset    int64 // in the partition
}

const (
	cacheMagic  = "scavenge cache 1\n"
	cacheHead   = len(cacheMagic) + sha256.Size
	entryHead   = 28
	cacheLimits = 1 << 30 // of a message, bytes: more is not a length
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// openCache opens a cache or makes an empty one. A file of another identity is
// not of this run: it is emptied.
func openCache(path string, identity [sha256.Size]byte) (*cache, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	c := &cache{path: path, file: f, entries: map[int64]entry{}, next: map[int]int64{}, count: map[int]int64{}}
	head := append([]byte(cacheMagic), identity[:]...)
	there := make([]byte, cacheHead)
	_, err = io.ReadFull(f, there)
	switch {
	case err != nil && err != io.EOF && err != io.ErrUnexpectedEOF:
	case err == nil && bytes.Equal(there, head):
		err = c.scan()
	default:
		if err = f.Truncate(0); err == nil {
			_, err = f.WriteAt(head, 0)
		}
		c.end = int64(cacheHead)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cache %s: %w", path, err)
	}
	return c, nil
}

// scan lists the whole entries and cuts off what comes after them.
func (c *cache) scan() error {
	st, err := c.file.Stat()
	if err != nil {
		return err
	}
	head := make([]byte, entryHead)
	for c.end = int64(cacheHead); ; {
		if _, err := c.file.ReadAt(head, c.end); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		e, id, ok := parseEntry(head)
		e.at = c.end + entryHead
		if !ok || e.at+int64(e.size) > st.Size() {
			break
		}
		// entries of a partition are in its order; twice the same cannot be
		if _, twice := c.entries[id]; twice || e.offset < c.next[e.partition] {
			break
		}
		c.add(id, e)
	}
	return c.file.Truncate(c.end)
}

func (c *cache) add(id int64, e entry) {
	c.entries[id] = e
	c.next[e.partition], c.end = e.offset+1, e.at+int64(e.size)
	c.count[e.partition]++
}

func parseEntry(head []byte) (e entry, id int64, ok bool) {
	if crc32.Checksum(head[:24], castagnoli) != binary.LittleEndian.Uint32(head[24:]) {
		return e, 0, false
	}
	e.partition = int(binary.LittleEndian.Uint32(head))
	e.offset = int64(binary.LittleEndian.Uint64(head[4:]))
	id = int64(binary.LittleEndian.Uint64(head[12:]))
	e.size = int(binary.LittleEndian.Uint32(head[20:]))
	return e, id, e.offset >= 0 && id >= 0 && e.size <= cacheLimits
}

// append adds a message. After an error the cache is as it was.
func (c *cache) append(id int64, partition int, offset int64, message []byte) error {
	head := make([]byte, 0, entryHead)
	head = binary.LittleEndian.AppendUint32(head, uint32(partition))
	head = binary.LittleEndian.AppendUint64(head, uint64(offset))
	head = binary.LittleEndian.AppendUint64(head, uint64(id))
	head = binary.LittleEndian.AppendUint32(head, uint32(len(message)))
	head = binary.LittleEndian.AppendUint32(head, crc32.Checksum(head, castagnoli))
	_, err := c.file.WriteAt(message, c.end+entryHead)
	if err == nil { // the head last: without it there is no entry
		_, err = c.file.WriteAt(head, c.end)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cache %s: %w", c.path, err), c.file.Truncate(c.end))
	}
	c.add(id, entry{c.end + entryHead, len(message), partition, offset})
	return nil
}

// read is the message that an entry holds, whole or not, in a buffer that has
// room for it.
func (c *cache) read(e entry, b []byte) ([]byte, error) {
	b = b[:e.size]
	if _, err := c.file.ReadAt(b, e.at); err != nil {
		return nil, fmt.Errorf("cache %s: at byte %d: %w", c.path, e.at, err)
	}
	return b, nil
}

// mend writes an entry's message again.
func (c *cache) mend(e entry, message []byte) error {
	if len(message) != e.size {
		return fmt.Errorf("cache %s: at byte %d: the message has %d bytes, the topic's has %d", c.path, e.at, e.size, len(message))
	}
	if _, err := c.file.WriteAt(message, e.at); err != nil {
		return fmt.Errorf("cache %s: %w", c.path, err)
	}
	return nil
}

func (c *cache) close(remove bool) error {
	err := c.file.Close()
	if remove {
		err = errors.Join(err, os.Remove(c.path))
	}
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	return nil
}
