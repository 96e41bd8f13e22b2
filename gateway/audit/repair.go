package audit

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"fairlead/shared/errs"
)

// ready makes sure that what is about to be written follows what was written: that the log is open, its file is still
// there, and is as long as it was left.
func (w *writer) ready() error {
	if w.file == nil {
		if w.chain.seq == 0 || w.lock == nil {
			return w.open()
		}
		return w.reopen()
	}
	var st unix.Stat_t
	if err := unix.Fstat(w.fd, &st); err != nil {
		return errs.Wrap(errs.AuditFailed, err, "the audit log")
	}
	switch {
	case st.Nlink == 0 || w.moved:
		w.moved = false
		w.log.loss.add(w.log.cfg.Now(), errs.New(errs.AuditFailed,
			"file %d of the log was removed or moved away, with all lines up to %d that are in it", w.chain.file, w.chain.seq), 0)
		w.setFile(nil)
		return w.reopen()
	case st.Size != w.chain.size && w.torn:
		return w.reread()
	case st.Size != w.chain.size:
		return w.changed(st.Size)
	}
	return nil
}

// spare is how much room there must be before writing is said to work again.
const spare = 64 << 10

// room reserves some space after a failure. Else a disk that is all but full would take the line that says that writing
// works again, and then nothing more.
func (w *writer) room() error {
	err := unix.Fallocate(w.fd, unix.FALLOC_FL_KEEP_SIZE, w.chain.size, spare)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) {
		return errs.Wrap(errs.AuditFailed, err, "the audit log cannot be written")
	}
	return nil // where space cannot be reserved, writing shows
}

// reopen makes a new file in the place of one that was taken away. The chain goes on from memory: a verifier sees what is
// missing.
func (w *writer) reopen() error {
	f, c, err := w.create(w.log.cfg.File, 0)
	if err != nil {
		return err
	}
	w.setFile(f)
	w.chain = c
	return nil
}

// reread looks at what a failed write left behind that could not be taken back (a file that may only be appended to), and
// declares it as after a crash.
func (w *writer) reread() error {
	found, err := readEnd(w.log.cfg.File)
	if err != nil {
		return err
	}
	if found.last == nil {
		return w.changed(found.size)
	}
	head, tail := w.chain.head, w.chain.tail
	w.chain = found.chain()
	w.chain.head, w.chain.tail = head, tail+1
	w.torn = false
	if found.torn > 0 {
		w.next.chain = w.chain
		w.next.buf = w.next.buf[:0]
		w.telling = false
		w.mend(found)
		return w.flush(nil)
	}
	return nil
}

// changed goes on behind whatever somebody else did to the file, on a new line, and has it told. The chain goes on from
// memory: a verifier sees the break.
func (w *writer) changed(size int64) error {
	err := errs.New(errs.AuditFailed, "the file was changed by somebody else: it has %d bytes and should have %d", size, w.chain.size)
	w.log.loss.add(w.log.cfg.Now(), err, 0)
	w.torn = false
	w.chain.size = size
	last := []byte{'\n'}
	if size > 0 {
		if _, err := w.file.ReadAt(last, size-1); err != nil {
			return errs.Wrap(errs.AuditFailed, err, "the audit log")
		}
	}
	if last[0] == '\n' {
		return nil
	}
	if err := w.put([]byte{'\n'}); err != nil {
		return err
	}
	w.chain.size++
	return nil
}

// inPlace reports whether the file is still the one that has the log's name.
func (w *writer) inPlace() bool {
	there, err := os.Stat(w.log.cfg.File)
	if err != nil {
		return false
	}
	ours, err := w.file.Stat()
	return err == nil && os.SameFile(there, ours)
}
