package audit

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"fairlead/shared/errs"
)

const (
	fileMode      = 0o600
	formatVersion = 1
	rotateAgain   = time.Minute // after a rotation that failed
	lockSuffix    = ".lock"
	nextSuffix    = ".next" // a file that is about to take the log's name
	digits        = 6       // of a number at the end of a name, at least
)

// numbered is the name of an older file.
func numbered(base string, n uint64) string { return fmt.Sprintf("%s.%0*d", base, digits, n) }

// numberOf is the number at the end of an older file's name.
func numberOf(base, name string) (uint64, bool) {
	s, ok := strings.CutPrefix(name, base+".")
	if !ok || len(s) < digits || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil && n > 0 && numbered(base, n) == name
}

// olderFiles are the numbers of the older files beside base, ascending.
func olderFiles(base string) ([]uint64, error) {
	entries, err := os.ReadDir(filepath.Dir(base))
	if err != nil {
		return nil, err
	}
	var found []uint64
	for _, e := range entries {
		if n, ok := numberOf(filepath.Base(base), e.Name()); ok && !e.IsDir() {
			found = append(found, n)
		}
	}
	slices.Sort(found)
	return found, nil
}

// acquire takes the lock that keeps two gateways from writing one log. It is a file of its own, since the log's file is
// renamed by rotation.
func (w *writer) acquire() error {
	if w.lock != nil {
		return nil
	}
	name := w.log.cfg.File + lockSuffix
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, fileMode)
	if err != nil {
		return errs.Wrap(errs.AuditFailed, err, "the lock of the audit log")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder := make([]byte, 256)
		n, _ := f.ReadAt(holder, 0)
		f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return errs.Wrap(errs.AuditFailed, err, "the lock %s of the audit log", name)
		}
		return errs.New(errs.ConfigInvalid, "audit.file %s is being written by another gateway (%s): each gateway needs a file of its own",
			w.log.cfg.File, strings.TrimSpace(cutUTF8(string(holder[:n]), 256)))
	}
	w.lock = f
	_ = f.Truncate(0) // who holds it is only a hint for people
	_, _ = fmt.Fprintf(f, "process %d, instance %s\n", os.Getpid(), w.next.instance)
	return nil
}

// release gives back the file and the lock. The lock's file stays: removing it would let two gateways lock two files.
func (w *writer) release() {
	w.setFile(nil)
	if w.lock != nil {
		w.lock.Close()
		w.lock = nil
	}
}

func (w *writer) setFile(f *os.File) {
	if w.file != nil {
		w.file.Close()
	}
	w.file, w.fd = f, -1
	if f != nil {
		w.fd = int(f.Fd())
	}
	w.log.current.Store(f)
}

// create makes a new file with its first line, which follows what is in the chain: the log's very first one, or one that
// repeats where the chain is. It is not yet in its place.
func (w *writer) create(name string, torn int64) (*os.File, chain, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return nil, chain{}, errs.Wrap(errs.AuditFailed, err, "a new file of the audit log")
	}
	first := lines{chain: w.chain, instance: w.next.instance}
	first.size = 0
	first.file++
	if first.seq == 0 {
		first.id = rand.Text()
		c := w.policy(control{Kind: kindBegin, ID: first.id, Version: formatVersion, File: first.file, Torn: torn})
		first.control(w.log.cfg.Now(), Lifecycle, "the log begins", c)
	} else {
		first.control(w.log.cfg.Now(), Lifecycle, "the log goes on in this file",
			w.policy(control{Kind: kindContinue, ID: first.id, Version: formatVersion, File: first.file, Torn: torn}))
	}
	first.header = first.size
	if _, err = f.Write(first.buf); err == nil && w.log.cfg.Sync != SyncNone {
		err = errors.Join(f.Sync(), syncFolder(name))
	}
	if err != nil {
		f.Close()
		_ = os.Remove(name)
		return nil, chain{}, errs.Wrap(errs.AuditFailed, err, "a new file of the audit log")
	}
	w.log.counts.bytes.Add(len(first.buf))
	return f, first.chain, nil
}

// policy adds what a verifier may expect of signed heads.
func (w *writer) policy(c control) control {
	if w.log.signer != nil {
		c.Key, c.Records = w.log.signer.fingerprint, w.log.cfg.SignRecords
	}
	return c
}

// full reports whether a line with a body of n bytes belongs into the next file.
func (w *writer) full(n int) bool {
	c := &w.next.chain
	return c.size+int64(n)+overhead > w.log.cfg.MaxSize && c.size > c.header && !time.Now().Before(w.rotateAfter)
}

// rotate ends the file and goes on in a new one. When the new one cannot be made, the old one is kept for a while longer,
// over its size; the error is only one of writing to it.
func (w *writer) rotate() error {
	if w.log.signer != nil {
		w.begin()
		w.seal()
		if err := w.flush(nil); err != nil {
			return err
		}
	}
	if err := w.replace(); err != nil {
		w.rotateAfter = time.Now().Add(rotateAgain)
		w.log.counts.failures.Inc()
		w.log.cfg.Logger.Error("the audit log cannot begin a new file and goes on in the full one", slog.String("file", w.log.cfg.File), slog.Any("error", err))
		return nil
	}
	w.log.counts.rotations.Inc()
	w.log.cfg.Logger.Info("the audit log goes on in a new file", slog.String("file", w.log.cfg.File), slog.Uint64("number", w.chain.file))
	return w.retain()
}

// replace gives the current file its number and puts a new one in its place. It is made before anything is renamed, so
// that a full disk changes nothing.
func (w *writer) replace() error {
	base := w.log.cfg.File
	old := numbered(base, w.chain.file)
	if _, err := os.Lstat(old); !errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.AuditFailed, "%s is in the way", old)
	}
	if w.log.cfg.Sync != SyncNone {
		if err := w.sync(); err != nil {
			return err
		}
	}
	_ = os.Remove(base + nextSuffix) // of an attempt that failed; nothing was ever recorded in it
	f, c, err := w.create(base+nextSuffix, 0)
	if err != nil {
		return err
	}
	if err = os.Rename(base, old); err == nil {
		if err = os.Rename(base+nextSuffix, base); err != nil {
			err = errors.Join(err, os.Rename(old, base))
		}
	}
	if err != nil {
		f.Close()
		return errors.Join(err, os.Remove(base+nextSuffix))
	}
	w.setFile(f)
	w.chain = c
	if w.log.cfg.Sync != SyncNone {
		return syncFolder(base)
	}
	return nil
}

// retain removes the oldest files beyond the number that is kept, each after a line that says so.
func (w *writer) retain() error {
	if w.log.cfg.MaxFiles == 0 {
		return nil
	}
	base := w.log.cfg.File
	older, err := olderFiles(base)
	if err != nil {
		w.log.cfg.Logger.Error("old files of the audit log cannot be listed", slog.String("file", base), slog.Any("error", err))
		return nil
	}
	for i := 0; i < len(older)-w.log.cfg.MaxFiles; i++ {
		successor := base
		if i+1 < len(older) {
			successor = numbered(base, older[i+1])
		}
		if err := w.drop(numbered(base, older[i]), successor); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) drop(name, successor string) error {
	first, err := firstLine(successor)
	if err == nil && (first.Log == nil || first.Log.Kind != kindContinue) {
		err = fmt.Errorf("%s does not begin as a file of the log", successor)
	}
	if err != nil {
		w.log.cfg.Logger.Error("an old file of the audit log is kept: what follows it cannot be read", slog.String("file", name), slog.Any("error", err))
		return nil
	}
	w.begin()
	w.next.control(w.log.cfg.Now(), Lifecycle, "an old file is removed",
		control{Kind: kindDrop, Name: filepath.Base(name), Last: first.Seq - 1, Hash: first.Prev})
	if err := w.flush(nil); err != nil {
		return err
	}
	if err := os.Remove(name); err != nil {
		w.log.cfg.Logger.Error("an old file of the audit log cannot be removed", slog.String("file", name), slog.Any("error", err))
		return nil
	}
	w.log.cfg.Logger.Info("an old file of the audit log was removed", slog.String("file", name), slog.Uint64("last_seq", first.Seq-1))
	return nil
}

func syncFolder(name string) error {
	d, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
