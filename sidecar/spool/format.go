package spool

import (
	"crypto/cipher"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"strconv"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// A connection is kept as segments, files of at most Config.Segment bytes or a little more. A segment is a head and records,
// all integers big-endian:
//
//	head:   "FLspool1", length u32, JSON of Header, crc u32 [, tag of 16 bytes when encrypted]
//	record: kind u8, flags u8, 0 u16, length u32, offset u64, seq u32, crc u32, payload of length bytes [, tag of 16 bytes]
//
// offset is the position of the payload's first byte in the connection. The CRC (Castagnoli) of a record begins with the
// head's, so that a record of another file is never taken for one of this, and covers what is stored: when encrypted, the
// ciphertext. seq rises with every record that was written or tried, and is the nonce: no nonce is used twice, not even
// when a record could not be written whole and another one takes its place.
const (
	magic      = "FLspool1"
	headFixed  = len(magic) + 4
	headLimit  = 4 << 10 // of the JSON
	recordHead = 24
	tagSize    = 16
	maxPayload = link.MaxPayload // of a record: what one frame of the tunnel carries

	kindData = 1
	kindEnd  = 2

	flagClean = 1 // of an end: the application ended its direction, and is told that its bytes are kept
)

// ID names a spooled connection. Ids rise with time, across restarts too.
type ID uint64

// String is the id as it stands in file names, 16 hexadecimal digits.
func (id ID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// ParseID reads what String writes.
func ParseID(s string) (ID, error) {
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil || ID(n).String() != s {
		return 0, errs.New(errs.BadRequest, "%.40q is no id of a spooled connection: 16 hexadecimal digits", s)
	}
	return ID(n), nil
}

// MarshalText makes the id a string in JSON.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (id *ID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseID(string(b))
	return err
}

// Header is what the head of every segment says about its connection.
type Header struct {
	ID       ID        `json:"id"`
	Base     uint64    `json:"base"` // position of the segment's first byte in the connection
	Route    string    `json:"route"`
	Listener string    `json:"listener"`
	Priority string    `json:"priority"`
	Time     time.Time `json:"time"` // when the connection was accepted
	Peer     string    `json:"peer"`
	Trace    string    `json:"trace"`
	Key      string    `json:"key,omitempty"`  // id of the key; empty: not encrypted
	Salt     []byte    `json:"salt,omitempty"` // from which, with the key, the segment's own key is derived
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendHead writes a segment's head, and returns it with the CRC that its records begin with.
func appendHead(b []byte, h Header, box cipher.AEAD) ([]byte, uint32, error) {
	text, err := json.Marshal(h)
	if err != nil || len(text) > headLimit {
		return nil, 0, errs.New(errs.Internal, "the head of a spooled connection takes %d bytes", len(text))
	}
	start := len(b)
	b = append(b, magic...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
	b = append(b, text...)
	sum := crc32.Checksum(b[start:], castagnoli)
	if box != nil {
		aad := b[start:]
		tag := box.Seal(nil, nonce(0), nil, aad)
		b = binary.BigEndian.AppendUint32(b, sum)
		return append(b, tag...), sum, nil
	}
	return binary.BigEndian.AppendUint32(b, sum), sum, nil
}

// head is a segment's head as it was read.
type head struct {
	Header
	prio link.Priority
	sum  uint32      // that the CRCs of records begin with
	size int         // where records begin
	box  cipher.AEAD // nil: not encrypted
}

// parseHead reads a head from the first bytes of a segment, at least headFixed+headLimit+4+tagSize of them unless the file
// is shorter. A key that is not in keys is errs.SpoolKey, anything else errs.SpoolCorrupt.
func parseHead(b []byte, keys *keyring) (h head, err error) {
	corrupt := func(why string) (head, error) {
		return head{}, errs.New(errs.SpoolCorrupt, "the head of a segment %s", why)
	}
	if len(b) < headFixed || string(b[:len(magic)]) != magic {
		return corrupt("is not one")
	}
	n := int(binary.BigEndian.Uint32(b[len(magic):]))
	if n > headLimit || len(b) < headFixed+n+4 {
		return corrupt("is not whole")
	}
	signed := b[:headFixed+n]
	h.sum, h.size = crc32.Checksum(signed, castagnoli), len(signed)+4
	if binary.BigEndian.Uint32(b[len(signed):]) != h.sum {
		return corrupt("does not match its checksum")
	}
	if err := json.Unmarshal(signed[headFixed:], &h.Header); err != nil {
		return corrupt("cannot be read")
	}
	if h.prio, err = link.ParsePriority(h.Priority); err != nil || h.Route == "" || len(h.Route) > textLimit || len(h.Peer) > textLimit || len(h.Trace) > textLimit {
		return corrupt("has values that cannot be")
	}
	if h.Key == "" {
		return h, nil
	}
	if h.box, err = keys.open(h.Key, h.Salt); err != nil {
		return h, err
	}
	h.size += tagSize
	if len(b) < h.size {
		return corrupt("is not whole")
	}
	if _, err := h.box.Open(nil, nonce(0), b[h.size-tagSize:h.size], signed); err != nil {
		return corrupt("was changed")
	}
	return h, nil
}

// record is the head of a record.
type record struct {
	kind, flags uint8
	length      int
	offset      uint64
	seq         uint32
}

// stored is how many bytes the record takes in its file.
func (r record) stored(box cipher.AEAD) int {
	if box != nil {
		return recordHead + r.length + tagSize
	}
	return recordHead + r.length
}

// put completes a record in b, whose payload stands at recordHead already; b is as long as stored says.
func (r record) put(b []byte, sum uint32, box cipher.AEAD) {
	r.putHead(b)
	if box != nil {
		box.Seal(b[recordHead:recordHead], nonce(r.seq), b[recordHead:recordHead+r.length], append(b[:20:20], sumBytes(sum)...))
	}
	binary.BigEndian.PutUint32(b[20:], checksum(sum, b))
}

func (r record) putHead(b []byte) {
	b[0], b[1], b[2], b[3] = r.kind, r.flags, 0, 0
	binary.BigEndian.PutUint32(b[4:], uint32(r.length))
	binary.BigEndian.PutUint64(b[8:], r.offset)
	binary.BigEndian.PutUint32(b[16:], r.seq)
}

func sumBytes(sum uint32) []byte { return binary.BigEndian.AppendUint32(nil, sum) }

// checksum is the CRC of a whole record but for the CRC itself.
func checksum(sum uint32, b []byte) uint32 {
	return crc32.Update(crc32.Update(sum, castagnoli, b[:20]), castagnoli, b[recordHead:])
}

// peekRecord reads a record's head, of which b has at least recordHead bytes, without having checked it.
func peekRecord(b []byte) (r record, plausible bool) {
	r = record{kind: b[0], flags: b[1], length: int(binary.BigEndian.Uint32(b[4:])), offset: binary.BigEndian.Uint64(b[8:]), seq: binary.BigEndian.Uint32(b[16:])}
	switch {
	case b[2] != 0 || b[3] != 0 || r.seq == 0 || r.length > maxPayload:
		return r, false
	case r.kind == kindData:
		return r, r.flags == 0 && r.length > 0
	case r.kind == kindEnd:
		return r, r.length == 0 && r.flags == flagClean
	}
	return r, false
}

// whole says whether b, which is one record, matches its CRC.
func whole(b []byte, sum uint32) bool {
	return binary.BigEndian.Uint32(b[20:]) == checksum(sum, b)
}

// openRecord returns the payload of a record that is whole, decrypted in place.
func openRecord(b []byte, r record, sum uint32, box cipher.AEAD) ([]byte, error) {
	if box == nil {
		return b[recordHead:], nil
	}
	payload, err := box.Open(b[recordHead:recordHead], nonce(r.seq), b[recordHead:], append(b[:20:20], sumBytes(sum)...))
	if err != nil {
		return nil, errs.New(errs.SpoolCorrupt, "a record was changed")
	}
	return payload, nil
}
