package spool

import (
	"context"
	"crypto/cipher"
	"errors"
	"os"

	"fairlead/shared/errs"
)

// batchRecords is how many records a batch has room for: what is read from the application at once, and made durable at
// once.
const batchRecords = 4

// batch is memory for what is read from an application and written to disk in one piece: the place for a head, then
// records. Payload is read to where it is going to stand.
type batch struct {
	b []byte
	n int // bytes of records behind the head's place
}

const (
	headRoom  = headFixed + headLimit + 4 + tagSize
	batchSize = headRoom + batchRecords*(recordHead+maxPayload+tagSize)
)

func newBatch() *batch { return &batch{b: make([]byte, batchSize)} }

// slot is where the next record's payload may be read to; empty when the batch is full.
func (b *batch) slot(most int) []byte {
	at := headRoom + b.n + recordHead
	if at+maxPayload+tagSize > len(b.b) {
		return nil
	}
	return b.b[at : at+min(most, maxPayload)]
}

// writer appends to the segments of one connection. One goroutine uses it.
type writer struct {
	s   *Spool
	e   *entry
	f   *os.File // the current segment; nil: the next append begins one
	seg segment  // its size: whole records only
	sum uint32
	box cipher.AEAD
	seq uint32
	end uint64 // bytes of the connection that are written

	took  func(n int) // told of them
	named bool        // the segment's name is durable
}

// add makes a record of the n bytes that were read into the batch's slot.
func (w *writer) add(b *batch, kind, flags uint8, n int, tagged bool) {
	size := recordHead + n
	if tagged {
		size += tagSize
	}
	record{kind: kind, flags: flags, length: n, offset: w.end + w.pending(b), seq: 1}.putHead(b.b[headRoom+b.n:])
	b.n += size
}

// fill reads what is there into the batch, as far as it and room go.
func (w *writer) fill(b *batch, src *source, room int) error {
	for {
		room -= recordHead + tagSize
		if room <= 0 {
			return nil
		}
		slot := b.slot(room)
		if slot == nil {
			return nil
		}
		n, err := src.read(slot)
		if n > 0 {
			w.add(b, kindData, 0, n, w.encrypts())
			room -= n
		}
		if err != nil || n < len(slot) {
			return err
		}
	}
}

// pending is how many payload bytes the batch holds.
func (w *writer) pending(b *batch) (sum uint64) {
	for at := headRoom; at < headRoom+b.n; {
		r, _ := peekRecord(b.b[at:])
		sum += uint64(r.length)
		at += recordHead + r.length
		if w.encrypts() {
			at += tagSize
		}
	}
	return sum
}

func (w *writer) encrypts() bool { return w.s.store.keys.current != "" }

// flush writes the batch whole or not at all, makes it durable if that is the policy, and publishes it. On a full disk it
// waits for space until ctx ends.
func (w *writer) flush(ctx context.Context, b *batch) error {
	added := w.pending(b)
	for {
		err := w.s.beginWrite(w.e)
		if err != nil {
			return err
		}
		if err = w.write(b); isFull(err) {
			if err := errors.Join(w.s.publish(w, false), w.s.awaitDisk(ctx, w.e, err)); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			w.s.count.writeErrors.Inc()
			return errors.Join(errs.Wrap(errs.SpoolFailed, err, "writing connection %v", w.e.id), w.s.publish(w, false))
		}
		w.end += added
		b.n = 0
		if w.s.cfg.Fsync == FsyncAlways {
			err = w.sync()
		}
		if gone := w.s.publish(w, true); gone != nil {
			return gone
		}
		return err
	}
}

// write appends the batch to the current segment, or begins a new one with it, in one write.
func (w *writer) write(b *batch) error {
	if w.e.sealed || w.seg.size >= w.s.segmentSize {
		if err := w.roll(); err != nil {
			return err
		}
	}
	start := headRoom
	if w.f == nil {
		head, err := w.begin()
		if err != nil {
			return err
		}
		start -= len(head)
		copy(b.b[start:], head)
	}
	// Encryption is in place: a batch whose write failed is sealed already, and must be opened to be sealed anew.
	if err := w.complete(b); err != nil {
		return err
	}
	out := b.b[start : headRoom+b.n]
	n, err := w.f.WriteAt(out, w.seg.size)
	if err == nil {
		w.seg.size += int64(n)
		return nil
	}
	w.reopen(b)
	if terr := w.f.Truncate(w.seg.size); terr != nil { // what is torn lies behind what counts
		err = errors.Join(terr, err)
		w.abandon()
	} else if w.seg.size == 0 {
		w.abandon()
	}
	return err
}

// complete gives every record of the batch its number and checksum, and encrypts it.
func (w *writer) complete(b *batch) error {
	return w.each(b, func(r record, rec []byte) {
		w.seq++
		r.seq = w.seq
		r.put(rec, w.sum, w.box)
	})
}

// reopen decrypts the batch, so that it can be written again under other numbers.
func (w *writer) reopen(b *batch) {
	if w.box == nil {
		return
	}
	_ = w.each(b, func(r record, rec []byte) {
		_, _ = openRecord(rec, r, w.sum, w.box) // it was sealed by this very cipher
	})
}

func (w *writer) each(b *batch, f func(r record, rec []byte)) error {
	for at := headRoom; at < headRoom+b.n; {
		r, plausible := peekRecord(b.b[at:])
		if !plausible {
			return errs.New(errs.Internal, "a batch of the spool holds no record at %d", at)
		}
		n := r.stored(w.box)
		f(r, b.b[at:at+n])
		at += n
	}
	return nil
}

// begin makes the file of a new segment.
func (w *writer) begin() ([]byte, error) {
	box, key, salt, err := w.s.store.keys.seal()
	if err != nil {
		return nil, err
	}
	o := w.e.from
	head, sum, err := appendHead(nil, Header{ID: w.e.id, Base: w.end, Route: o.Route, Listener: o.Listener, Priority: o.Priority.String(), Time: w.e.at, Peer: o.Peer,
		Trace: o.Trace, Key: key, Salt: salt}, box)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(w.s.store.segmentPath(w.e.id, w.end), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	w.f, w.seg, w.sum, w.box, w.seq = f, segment{base: w.end}, sum, box, 0
	w.named = false
	return head, nil
}

// roll ends the current segment: what it holds is made durable, since nobody is going to sync it later.
func (w *writer) roll() (err error) {
	if w.f != nil && !w.e.sealed && w.s.cfg.Fsync != FsyncNever {
		err = w.sync()
	}
	w.shut()
	w.e.sealed = false
	return err
}

// abandon gives up a segment that holds nothing that counts, or that cannot be cut to what does.
func (w *writer) abandon() {
	if w.seg.size == 0 {
		os.Remove(w.f.Name())
	}
	w.shut()
}

func (w *writer) shut() {
	if w.f != nil {
		w.f.Close()
	}
	w.f, w.seg, w.box = nil, segment{}, nil
}

// sync makes the current segment durable, and its name.
func (w *writer) sync() error {
	if w.f == nil {
		return nil
	}
	err := w.f.Sync()
	if err == nil && !w.named {
		err = w.s.store.syncDir()
		w.named = err == nil
	}
	if err != nil { // never tried again: the kernel may have dropped what it could not write, and would say that all is well
		w.s.count.syncErrors.Inc()
		return errs.New(errs.SpoolFailed, "making connection %v durable: %v", w.e.id, err)
	}
	return nil
}

// finish writes the end of the connection.
func (w *writer) finish(ctx context.Context, b *batch) error {
	w.add(b, kindEnd, flagClean, 0, w.encrypts())
	return w.flush(ctx, b)
}
