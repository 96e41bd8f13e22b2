package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"fairlead/shared/errs"
)

// open takes the lock, finds where the chain stands, and writes the first lines of this gateway.
func (w *writer) open() error {
	if err := w.acquire(); err != nil {
		return err
	}
	base := w.log.cfg.File
	_ = os.Remove(base + nextSuffix) // of a rotation that was interrupted; nothing was ever recorded in it
	older, err := olderFiles(base)
	if err != nil {
		return errs.Wrap(errs.AuditFailed, err, "the folder of the audit log")
	}
	info, err := os.Lstat(base)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return errs.New(errs.ConfigInvalid, "audit.file %s is not a regular file", base)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return errs.Wrap(errs.AuditFailed, err, "the audit log")
	}
	var found end
	if err == nil && info.Size() > 0 {
		if found, err = readEnd(base); err != nil {
			return err
		}
	}
	if found.last != nil {
		return w.resume(base, found)
	}
	return w.start(older, found.torn)
}

// start begins a new file, of a new log or after the older ones. What a crash left of the first line of the file in its
// place is removed, and its size recorded: no record can have followed it.
func (w *writer) start(older []uint64, torn int64) error {
	base := w.log.cfg.File
	var before end
	if len(older) > 0 {
		var err error
		if before, err = readEnd(numbered(base, older[len(older)-1])); err != nil {
			return err
		}
		if before.last == nil || before.torn > 0 {
			return errs.New(errs.AuditBroken, "%s does not end with a whole line", numbered(base, older[len(older)-1]))
		}
		w.chain = before.chain()
	}
	if err := os.Remove(base); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.Wrap(errs.AuditFailed, err, "the audit log")
	}
	f, c, err := w.create(base, torn)
	if err != nil {
		return err
	}
	w.setFile(f)
	w.chain = c
	w.begin()
	if before.last != nil {
		w.opened(before)
	}
	return w.flush(nil)
}

// resume goes on in the file that is there. A torn line is ended and declared; it stays in the file.
func (w *writer) resume(base string, found end) error {
	f, err := os.OpenFile(base, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return errs.Wrap(errs.AuditFailed, err, "the audit log")
	}
	w.setFile(f)
	w.chain = found.chain()
	w.next.chain = w.chain
	w.next.buf = w.next.buf[:0]
	if found.torn > 0 {
		w.mend(found)
	}
	w.tellLoss()
	w.opened(found)
	return w.flush(nil)
}

// mend ends a torn line and declares it.
func (w *writer) mend(found end) {
	after := hex.EncodeToString(w.next.last[:])
	w.next.buf = append(w.next.buf, '\n')
	w.next.size++
	w.next.last = found.tornHash
	w.next.control(w.log.cfg.Now(), Lifecycle, fmt.Sprintf("the line before was torn: %d bytes of it were written", found.torn),
		control{Kind: kindRecover, Torn: found.torn, After: after})
}

// opened adds the line of a gateway that goes on with the log and, if there is a key, a head that signs all before.
func (w *writer) opened(found end) {
	unclean := found.torn > 0 || found.last.Log == nil || found.last.Log.Kind != kindClose
	detail := "a gateway goes on with the log"
	if unclean {
		detail += ", which was not closed"
	}
	w.next.control(w.log.cfg.Now(), Lifecycle, detail, w.policy(control{Kind: kindOpen, ID: w.next.id, Unclean: unclean}))
	if w.next.signer != nil {
		w.seal()
	}
}

// end is how a file ends.
type end struct {
	first    *Line // of the file; nil: there is no whole line in it
	last     *Line
	lastHash hash
	size     int64
	header   int64
	torn     int64 // bytes after the last newline
	tornHash hash
}

func (e end) chain() chain {
	return chain{id: e.first.Log.ID, seq: e.last.Seq, last: e.lastHash, file: e.first.Log.File, size: e.size, header: e.header}
}

// readEnd reads the first and the last line of a file. The error is errs.AuditFailed, or errs.AuditBroken when they are no
// lines of a log.
func readEnd(name string) (end, error) {
	f, err := os.Open(name)
	if err != nil {
		return end{}, errs.Wrap(errs.AuditFailed, err, "the audit log")
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return end{}, errs.Wrap(errs.AuditFailed, err, "the audit log")
	}
	e := end{size: info.Size()}
	raw, err := e.readLast(f)
	if err != nil {
		return end{}, errs.Wrap(errs.AuditFailed, err, "the audit log %s", name)
	}
	if raw == nil {
		return e, nil
	}
	if e.last, err = parseLine(raw); err == nil {
		e.first, err = firstLine(name)
	}
	if err == nil && (e.first.Log == nil || e.first.Log.Kind != kindBegin && e.first.Log.Kind != kindContinue || e.last.Seq < e.first.Seq) {
		err = errors.New("it does not begin as an audit log")
	}
	if err != nil {
		return end{}, errs.Wrap(errs.AuditBroken, err, "the audit log %s cannot be continued: verify it, keep it, and move its files away", name)
	}
	e.header = int64(e.first.length) + 1
	e.lastHash = sha256.Sum256(raw)
	return e, nil
}

// readLast finds the last whole line, nil when there is none, and what is behind it.
func (e *end) readLast(f *os.File) (line []byte, err error) {
	newline, err := lastNewline(f, e.size)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	if e.torn, err = io.Copy(h, io.NewSectionReader(f, newline+1, e.size-newline-1)); err != nil {
		return nil, err
	}
	h.Sum(e.tornHash[:0])
	if newline < 0 {
		return nil, nil
	}
	from := max(0, newline-maxLine-1) // one more than a line may have, so that a longer one is no line
	line = make([]byte, newline-from)
	if _, err := f.ReadAt(line, from); err != nil {
		return nil, err
	}
	return line[bytes.LastIndexByte(line, '\n')+1:], nil
}

// lastNewline is the offset of the last newline before size; -1: there is none.
func lastNewline(f *os.File, size int64) (int64, error) {
	chunk := make([]byte, 64<<10)
	for to := size; to > 0; {
		from := max(0, to-int64(len(chunk)))
		b := chunk[:to-from]
		if _, err := f.ReadAt(b, from); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
			return from + int64(i), nil
		}
		to = from
	}
	return -1, nil
}

func firstLine(name string) (*Line, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, maxLine+1)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	i := bytes.IndexByte(b[:n], '\n')
	if i < 0 {
		return nil, errors.New("its first line has no end")
	}
	return parseLine(b[:i])
}
