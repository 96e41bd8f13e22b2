package audit

import (
	"log/slog"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"fairlead/shared/errs"
)

const (
	maxBatch   = 256                    // records that are written together
	retryEvery = 100 * time.Millisecond // between attempts while writing fails; records in between fail at once
	overhead   = 512                    // bytes of a line around its body, at most
	idleTick   = time.Second
	minTick    = 5 * time.Millisecond
)

// writer owns the file, the lock and the chain. All of it belongs to one goroutine.
type writer struct {
	log   *Log
	chain chain // of what is in the file
	next  lines // what is about to be written, on a copy of the chain
	file  *os.File
	fd    int
	lock  *os.File

	batch       []*entry
	err         error     // why writing fails; nil: it works
	tried       time.Time // the last attempt
	told        told      // what the buffer tells of losses
	telling     bool      // the buffer does
	moved       bool      // the file is no longer where it should be
	torn        bool      // a failed write left something that could not be taken back
	sealed      time.Time // when the last head was made
	rotateAfter time.Time // no rotation before: the last one failed
}

func newWriter(l *Log) *writer {
	w := &writer{log: l, sealed: time.Now()}
	w.next.instance = asRead(l.cfg.Instance, maxInstance)
	w.next.signer = l.signer
	return w
}

// run serves the queue until the log is closed.
func (w *writer) run() {
	defer close(w.log.done)
	ticker := time.NewTicker(max(minTick, min(idleTick, w.log.cfg.SignInterval/2)))
	defer ticker.Stop()
	for {
		select {
		case en := <-w.log.queue:
			w.write(w.collect(en))
		case <-ticker.C:
			w.tick()
		case <-w.log.closing:
			w.log.closed = w.close()
			return
		}
		w.log.hung.Store(false)
	}
}

// collect takes what else is in the queue, so that it is written, and synced, together.
func (w *writer) collect(first *entry) []*entry {
	w.batch = w.batch[:0]
	if first.take() {
		w.batch = append(w.batch, first)
	}
	runtime.Gosched() // who is about to record gets into this batch
	for len(w.batch) < maxBatch {
		select {
		case en := <-w.log.queue:
			if en.take() {
				w.batch = append(w.batch, en)
			}
		default:
			return w.batch
		}
	}
	return w.batch
}

// write writes a batch, which may be empty while writing fails: then it only tries whether it works again.
func (w *writer) write(batch []*entry) {
	if w.err != nil && time.Since(w.tried) < retryEvery {
		w.reject(batch, w.err)
		return
	}
	if rest, err := w.try(batch); err != nil {
		w.failed(err, len(rest))
		w.answer(rest, err)
	}
}

// try writes as many entries as it can, and returns those it could not with the reason.
func (w *writer) try(batch []*entry) (rest []*entry, err error) {
	err = w.ready()
	if err == nil && w.err != nil {
		err = w.room()
	}
	if err != nil {
		return batch, err
	}
	w.begin()
	flushed := 0
	for i, en := range batch {
		if w.full(len(en.body)) {
			if err := w.flush(batch[flushed:i]); err != nil {
				return batch[flushed:], err
			}
			flushed = i
			if err := w.rotate(); err != nil {
				return batch[flushed:], err
			}
			w.begin()
		}
		w.next.add(en.at, en.body)
		w.sealIfDue()
	}
	if err := w.flush(batch[flushed:]); err != nil {
		return batch[flushed:], err
	}
	return nil, nil
}

// begin starts a buffer of lines that follow what is in the file. If something was lost, the first one says so.
func (w *writer) begin() {
	w.next.chain = w.chain
	w.next.buf = w.next.buf[:0]
	w.tellLoss()
}

func (w *writer) tellLoss() {
	if w.told, w.telling = w.log.loss.tell(); w.telling {
		w.next.control(w.log.cfg.Now(), Losses, w.told.detail(), w.told.control())
	}
}

func (w *writer) sealIfDue() {
	if w.next.signer != nil && w.next.tail >= w.log.cfg.SignRecords {
		w.seal()
	}
}

func (w *writer) seal() {
	w.next.seal(kindHead, w.log.cfg.Now())
	w.sealed = time.Now()
}

// flush writes the buffer, and tells the entries that are in it. When that fails, what was written is taken back, and
// nothing has changed.
func (w *writer) flush(entries []*entry) error {
	if len(w.next.buf) == 0 {
		return nil
	}
	w.sealIfDue()
	if err := w.put(w.next.buf); err != nil {
		return err
	}
	if w.telling {
		w.log.loss.wasTold(w.told)
	}
	sealed := w.next.head != w.chain.head
	w.chain = w.next.chain
	w.next.buf = w.next.buf[:0]
	w.err = nil
	w.publish()
	w.log.counts.records.Add(len(entries))
	w.answer(entries, nil)
	if sealed {
		w.log.cfg.Logger.Info("audit head", slog.String("log", w.chain.id), slog.Uint64("seq", w.chain.head.Sequence), slog.String("hash", w.chain.head.Hash))
	}
	return nil
}

// put appends bytes to the file, and syncs it if so configured.
func (w *writer) put(b []byte) error {
	_, err := w.file.Write(b) // an error when less was written
	if err == nil && w.log.cfg.Sync == SyncAlways {
		err = w.sync()
	}
	if err != nil {
		w.torn = w.file.Truncate(w.chain.size) != nil
		return errs.Wrap(errs.AuditFailed, err, "the audit log cannot be written")
	}
	w.log.dirty.Store(true)
	w.log.counts.bytes.Add(len(b))
	return nil
}

// sync forces the file's data to disk, and with it its size.
func (w *writer) sync() error {
	began := time.Now()
	for {
		err := unix.Fdatasync(w.fd)
		if err == unix.EINTR {
			continue
		}
		w.log.counts.sync.UpdateDuration(began)
		return err
	}
}

// answer tells entries how it went. One that nobody waits for any more was reported as failed: if it is written after all,
// that is told, too.
func (w *writer) answer(entries []*entry, err error) {
	for _, en := range entries {
		if late := en.answer(err); late && err == nil {
			w.log.loss.addLate(w.log.cfg.Now())
		}
	}
}

// reject answers entries without an attempt.
func (w *writer) reject(entries []*entry, err error) {
	if len(entries) > 0 {
		w.log.loss.add(w.log.cfg.Now(), err, len(entries))
		w.answer(entries, err)
	}
}

// failed notes that an attempt failed, and that n records are lost by it.
func (w *writer) failed(err error, n int) {
	w.log.counts.failures.Inc()
	w.err, w.tried = err, time.Now()
	w.log.loss.add(w.log.cfg.Now(), err, n)
	w.publish()
}

// tick does what time asks for: tries again after a failure, notices that the file was moved away, and signs.
func (w *writer) tick() {
	w.moved = w.err == nil && !w.inPlace()
	switch {
	case w.err != nil, w.moved, w.log.loss.open.Load():
		w.write(nil)
	case w.log.signer != nil && w.chain.tail > 0 && time.Since(w.sealed) >= w.log.cfg.SignInterval:
		w.begin()
		w.seal()
		if err := w.flush(nil); err != nil {
			w.failed(err, 0)
		}
	}
}

// close writes what is left and the last line, and gives everything back.
func (w *writer) close() error {
	defer w.release()
	for range queueSize { // more than that came after Close was called
		select {
		case en := <-w.log.queue:
			w.write(w.collect(en))
			continue
		default:
		}
		break
	}
	err := w.ready()
	if err == nil {
		w.begin()
		w.next.seal(kindClose, w.log.cfg.Now())
		err = w.flush(nil)
	}
	if err == nil && w.log.cfg.Sync != SyncNone {
		err = w.sync()
	}
	if err != nil {
		w.failed(err, 0)
		return errs.Wrap(errs.AuditFailed, err, "closing the audit log %s", w.log.cfg.File)
	}
	return nil
}
