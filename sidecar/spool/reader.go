package spool

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"

	"fairlead/shared/errs"
)

// view is what is on disk of one connection, at one moment.
type view struct {
	dir    string
	id     ID
	keys   *keyring
	segs   []segment
	live   bool // more may be appended
	ours   bool // written by this process to the end: an append that was torn is not to be expected
	salved bool // deliver what is valid, and take damage for the end
}

// place is where in a connection a reader stands: in which segment, at which record of it, how far in that one's payload.
type place struct {
	base   uint64 // of the segment
	record int64  // position of the record in the file; 0: the head was not read yet
	skip   int    // bytes of the record's payload that were read
	offset uint64 // in the connection
}

// errMore says that everything which is there was read, and that more may come.
var errMore = errors.New("more may come")

// How a connection ends, as a reader found.
const (
	endClean   = "clean"   // the application ended it and was told that its bytes are kept
	endCut     = "cut"     // it was cut, by the application, by a stop or by a crash
	endTorn    = "torn"    // by a crash in the middle of an append, of which a part is there
	endDamaged = "damaged" // something in the file does not match its checksum
)

// blockSize is how much is read from a file at once; a record fits.
const blockSize = 256 << 10

// blocks is a cache of buffers, not state.
var blocks = sync.Pool{New: func() any { b := make([]byte, blockSize); return &b }}

// reader reads a connection's bytes, checked, from a place on. It holds a file and a buffer until it is closed. After
// io.EOF, end tells how it ended.
type reader struct {
	v    view
	at   place
	end  string
	torn int64 // bytes after the end that are no whole record

	i       int // index in v.segs
	f       *os.File
	h       head
	block   *[]byte
	r, w    int // block[r:w] is read from the file and not yet used; it begins at pos
	pos     int64
	payload []byte // rest of the current record
	next    int64  // position of the record after the current one
	seq     uint32
}

func newReader(v view, at place) *reader {
	return &reader{v: v, at: at, block: blocks.Get().(*[]byte), i: -1}
}

// close gives back what the reader holds, and returns where it stands.
func (r *reader) close() place {
	if r.f != nil {
		r.f.Close()
	}
	blocks.Put(r.block)
	r.block = nil
	return r.at
}

// Read fills p with what follows. At the end of what is there it returns errMore or io.EOF, damage is errs.SpoolCorrupt,
// a key that is missing errs.SpoolKey, and a file that cannot be read errs.SpoolFailed.
func (r *reader) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if len(r.payload) == 0 {
			if err := r.advance(); err != nil {
				return n, err
			}
		}
		c := copy(p[n:], r.payload)
		r.payload = r.payload[c:]
		n += c
		r.at.skip += c
		r.at.offset += uint64(c)
	}
	return n, nil
}

// refresh takes a newer view of the same connection.
func (r *reader) refresh(v view) {
	r.v = v
	if r.i = r.index(r.at.base); r.i < 0 && r.f != nil {
		r.f.Close()
		r.f = nil
	}
}

// locate finds the segment that the reader stands in. One that was delivered whole may have been removed; what is
// appended then begins a new one.
func (r *reader) locate() (done bool, err error) {
	if r.i = r.index(r.at.base); r.i >= 0 {
		return false, nil
	}
	if r.i = r.index(r.at.offset); r.i >= 0 {
		r.at, r.next = place{base: r.at.offset, offset: r.at.offset}, 0
		return false, nil
	}
	switch n := len(r.v.segs); {
	case n > 0 && r.v.segs[n-1].base > r.at.offset:
		return true, r.broken(errs.New(errs.SpoolCorrupt, "connection %v: its segment at %d is missing", r.v.id, r.at.base))
	case r.v.live:
		return true, errMore
	}
	r.end = endCut
	return true, io.EOF
}

func (r *reader) index(base uint64) int {
	for i, s := range r.v.segs {
		if s.base == base {
			return i
		}
	}
	return -1
}

// advance makes the next record with bytes the current one.
func (r *reader) advance() error {
	if r.end != "" {
		return io.EOF
	}
	for {
		if r.f == nil {
			if done, err := r.locate(); done {
				return err
			}
			if err := r.open(); err != nil {
				return r.broken(err)
			}
		}
		if r.next > 0 { // done with the current one
			r.at.record, r.at.skip, r.next = r.next, 0, 0
		}
		seg := r.v.segs[r.i]
		if r.at.record >= seg.size {
			done, err := r.segmentDone()
			if done || err != nil {
				return err
			}
			continue
		}
		rec, b, err := r.record(seg.size)
		if err != nil {
			return r.broken(err)
		}
		if rec.kind == kindEnd {
			r.end = endClean
			return io.EOF
		}
		if r.at.skip >= len(b) {
			continue
		}
		r.payload = b[r.at.skip:]
		return nil
	}
}

// segmentDone goes on to the next segment, or says that there is none.
func (r *reader) segmentDone() (done bool, err error) {
	if r.i+1 == len(r.v.segs) {
		if r.v.live {
			return true, errMore
		}
		r.end = endCut
		return true, io.EOF
	}
	following := r.v.segs[r.i+1]
	if following.base != r.at.offset {
		return true, r.broken(errs.New(errs.SpoolCorrupt, "connection %v: bytes %d to %d are missing", r.v.id, r.at.offset, following.base))
	}
	r.f.Close()
	r.f = nil
	r.at = place{base: following.base, offset: following.base}
	return false, nil
}

// open opens the segment that the reader stands in.
func (r *reader) open() (err error) {
	if r.f, err = os.Open(filepath.Join(r.v.dir, segmentName(r.v.id, r.at.base))); err != nil {
		return errs.Wrap(errs.SpoolFailed, err, "connection %v", r.v.id)
	}
	if r.h, err = r.readHead(); err != nil {
		return err
	}
	r.r, r.w, r.seq = 0, 0, 0
	if r.at.record == 0 {
		r.at.record = int64(r.h.size)
	}
	return nil
}

func (r *reader) readHead() (head, error) {
	n, err := r.f.ReadAt((*r.block)[:headFixed+headLimit+4+tagSize], 0)
	if err != nil && err != io.EOF {
		return head{}, errs.Wrap(errs.SpoolFailed, err, "connection %v", r.v.id)
	}
	h, err := parseHead((*r.block)[:n], r.v.keys)
	if err == nil && (h.ID != r.v.id || h.Base != r.at.base) {
		return h, errs.New(errs.SpoolCorrupt, "connection %v: a segment of another connection", r.v.id)
	}
	return h, err
}

// record reads, checks and opens the record at the reader's place.
func (r *reader) record(size int64) (rec record, payload []byte, err error) {
	b, err := r.bytes(r.at.record, recordHead, size)
	if err != nil {
		return rec, nil, err
	}
	rec, plausible := peekRecord(b)
	if !plausible || rec.offset != r.at.offset-uint64(r.at.skip) || rec.seq <= r.seq {
		return rec, nil, r.damage("is not one")
	}
	n := rec.stored(r.h.box)
	if b, err = r.bytes(r.at.record, n, size); err != nil {
		return rec, nil, err
	}
	if !whole(b, r.h.sum) {
		return rec, nil, r.damage("does not match its checksum")
	}
	if payload, err = openRecord(b, rec, r.h.sum, r.h.box); err != nil {
		return rec, nil, err
	}
	r.seq, r.next = rec.seq, r.at.record+int64(n)
	r.r, r.pos = r.r+n, r.pos+int64(n) // it is decrypted in place: not to be read again from the block
	return rec, payload, nil
}

func (r *reader) damage(what string) error {
	return errs.New(errs.SpoolCorrupt, "connection %v: the record at byte %d of the segment at %d %s", r.v.id, r.at.record, r.at.base, what)
}

// bytes returns n bytes of the file from at on, of a file with size bytes.
func (r *reader) bytes(at int64, n int, size int64) ([]byte, error) {
	if at+int64(n) > size {
		return nil, r.damage("is not whole")
	}
	if r.pos != at || r.r == r.w {
		r.r, r.w, r.pos = 0, 0, at
	}
	if r.w-r.r < n {
		copy(*r.block, (*r.block)[r.r:r.w])
		r.r, r.w = 0, r.w-r.r
		most := min(int64(blockSize-r.w), size-r.pos-int64(r.w))
		got, err := r.f.ReadAt((*r.block)[r.w:r.w+int(most)], r.pos+int64(r.w))
		r.w += got
		if r.w < n {
			if err == io.EOF { // the file is shorter than it was
				return nil, r.damage("is not whole")
			}
			return nil, errs.Wrap(errs.SpoolFailed, err, "connection %v", r.v.id)
		}
	}
	return (*r.block)[r.r : r.r+n : r.r+n], nil
}

// broken decides what damage at the reader's place means. The rear of the last segment may be an append that was torn by a
// crash: nothing valid comes after it. A connection that has its end was acknowledged whole: delivering a part of it as if
// it were the whole is not for the program to decide. One without is delivered as far as it is valid.
func (r *reader) broken(err error) error {
	if !errors.Is(err, errs.SpoolCorrupt) || r.v.live {
		return err
	}
	if r.v.salved {
		r.end = endDamaged
		return io.EOF
	}
	if r.v.ours || r.f == nil || r.i < 0 || r.i+1 < len(r.v.segs) || r.h.size == 0 {
		return err
	}
	size := r.v.segs[r.i].size
	valid, end, scanErr := r.resync(size)
	switch {
	case scanErr != nil:
		return scanErr
	case end:
		return err
	case valid:
		r.end = endDamaged
	default:
		r.end = endTorn
	}
	r.torn = size - r.at.record
	return io.EOF
}

// resync looks for a whole record behind the one that is damaged: any, and an end that was acknowledged.
func (r *reader) resync(size int64) (valid, end bool, err error) {
	b, err := io.ReadAll(io.NewSectionReader(r.f, r.at.record, size-r.at.record)) // a segment's size bounds it
	if err != nil {
		return false, false, errs.Wrap(errs.SpoolFailed, err, "connection %v", r.v.id)
	}
	for i := 1; i+recordHead <= len(b); i++ {
		skip := bytes.IndexAny(b[i:len(b)-recordHead+1], "\x01\x02") // kinds
		if skip < 0 {
			break
		}
		i += skip
		rec, plausible := peekRecord(b[i:])
		n := rec.stored(r.h.box)
		if plausible && rec.seq > r.seq && rec.offset >= r.at.offset-uint64(r.at.skip) && i+n <= len(b) && whole(b[i:i+n], r.h.sum) {
			valid = true
			end = end || rec.kind == kindEnd
			i += n - 1
		}
	}
	return valid, end, nil
}

// seek returns the place at offset, or where the line begins that offset is in; at the least the first byte that is there.
func seek(v view, offset uint64, line bool) (place, error) {
	if len(v.segs) == 0 {
		return place{}, errs.New(errs.SpoolCorrupt, "connection %v has no segments", v.id)
	}
	for i := len(v.segs) - 1; i > 0; i-- {
		if v.segs[i].base > offset {
			continue
		}
		at, found, err := seekFrom(v, v.segs[i].base, offset, line)
		if found || err != nil {
			return at, err
		}
	}
	at, _, err := seekFrom(v, v.segs[0].base, offset, line)
	return at, err
}

// seekFrom reads from the segment at base up to offset. With line, it finds the last line that begins there and not after
// offset; the very first byte begins one.
func seekFrom(v view, base, offset uint64, line bool) (at place, found bool, err error) {
	at = place{base: base, offset: base}
	if offset <= base {
		return at, !line || base == 0, nil
	}
	r := newReader(v, at)
	defer r.close()
	begin, found := at, !line || base == 0
	buf := make([]byte, 32<<10)
	for r.at.offset < offset {
		n, err := r.Read(buf[:min(uint64(len(buf)), offset-r.at.offset)])
		if line {
			if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
				begin, found = place{base: base, offset: r.at.offset - uint64(n-i-1)}, true
			}
		}
		switch {
		case err == io.EOF || err == errMore:
			offset = r.at.offset // less is there than was delivered: the rest was not durable
		case err != nil:
			return at, true, err
		}
	}
	if !line {
		return r.at, true, nil
	}
	if begin.offset > base {
		begin, _, err = seekFrom(v, base, begin.offset, false)
	}
	return begin, found, err
}
