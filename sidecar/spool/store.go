package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"fairlead/shared/errs"
)

// store is the directory: its lock, and what changes names in it.
type store struct {
	dir  string
	lock *os.File
	self *os.File // the directory, to make names durable
	keys *keyring

	mu   sync.Mutex
	next *dirSync // that somebody who asks now shares
	busy sync.Mutex
}

// dirSync is one fsync of the directory, for everybody who asked before it began.
type dirSync struct {
	once sync.Once
	err  error
}

const quarantineDir = "quarantine"

// openStore makes the directory if need be, and takes its lock: one process writes to it at a time.
func openStore(dir string, keys *keyring) (_ *store, err error) {
	unusable := func(err error, what string) error {
		return errs.Wrap(errs.SpoolUnusable, err, "the spool's directory %s %s", dir, what)
	}
	if err := os.MkdirAll(filepath.Join(dir, quarantineDir), 0o700); err != nil {
		return nil, unusable(err, "cannot be made")
	}
	_ = os.Chmod(dir, 0o700) // a volume's top directory may not be ours to change; files in it are 0600 all the same
	st := &store{dir: dir, keys: keys}
	if st.lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, unusable(err, "cannot be written to")
	}
	defer func() {
		if err != nil {
			st.close()
		}
	}()
	if err := syscall.Flock(int(st.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errs.New(errs.SpoolUnusable, "the spool's directory %s is in use by the process with id %s", dir, holder(st.lock))
		}
		return nil, unusable(err, "cannot be locked")
	}
	if err := st.probe(); err != nil {
		return nil, unusable(err, "cannot be written to")
	}
	if st.self, err = os.Open(dir); err != nil {
		return nil, unusable(err, "cannot be read")
	}
	return st, nil
}

// holder is the process id that the lock's holder has written into it.
func holder(lock *os.File) string {
	b, _ := io.ReadAll(io.NewSectionReader(lock, 0, 20))
	if id, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
		return strconv.Itoa(id)
	}
	return "unknown"
}

// probe writes the process's id into the lock. A disk that is full is no reason not to start: it may be full of what is
// to be delivered.
func (st *store) probe() error {
	_, err := st.lock.WriteAt(fmt.Appendf(nil, "%-19d\n", os.Getpid()), 0)
	if isFull(err) {
		return nil
	}
	return err
}

// isFull says whether an error means that there is no space, on the device or for this user.
func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

func (st *store) close() {
	if st.self != nil {
		st.self.Close()
	}
	st.lock.Close() // gives up the lock
}

// syncDir makes names durable. Whoever asks while one fsync runs shares the one after it.
func (st *store) syncDir() error {
	st.mu.Lock()
	if st.next == nil {
		st.next = &dirSync{}
	}
	mine := st.next
	st.mu.Unlock()
	st.busy.Lock()
	defer st.busy.Unlock()
	mine.once.Do(func() {
		st.mu.Lock()
		st.next = nil // whoever comes from now on may have made a name that this fsync misses
		st.mu.Unlock()
		mine.err = st.self.Sync()
	})
	return mine.err
}

// segment is one file of a connection.
type segment struct {
	base uint64 // position of its first byte in the connection
	size int64  // of the file: whole records, where it was written by this process
}

func segmentName(id ID, base uint64) string { return id.String() + "-" + ID(base).String() + ".log" }

func (st *store) segmentPath(id ID, base uint64) string {
	return filepath.Join(st.dir, segmentName(id, base))
}

// parseName tells what a file is: a segment, or progress.
func parseName(name string) (id ID, base uint64, isSegment, ok bool) {
	if stem, is := strings.CutSuffix(name, ".ack"); is {
		id, err := ParseID(stem)
		return id, 0, false, err == nil
	}
	stem, is := strings.CutSuffix(name, ".log")
	first, second, two := strings.Cut(stem, "-")
	id, err := ParseID(first)
	b, err2 := ParseID(second)
	return id, uint64(b), true, is && two && err == nil && err2 == nil
}

// found is the files of one connection.
type found struct {
	id       ID
	segs     []segment // by base
	progress bool
}

// list reads a directory. Files of other names are left alone.
func list(dir string) ([]found, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	byID := map[ID]*found{}
	for _, e := range names {
		id, base, isSegment, ok := parseName(e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		f := byID[id]
		if f == nil {
			f = &found{id: id}
			byID[id] = f
		}
		if !isSegment {
			f.progress = true
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		f.segs = append(f.segs, segment{base, info.Size()})
	}
	all := make([]found, 0, len(byID))
	for _, f := range byID {
		slices.SortFunc(f.segs, func(a, b segment) int {
			if a.base < b.base {
				return -1
			}
			return 1
		})
		all = append(all, *f)
	}
	slices.SortFunc(all, func(a, b found) int {
		if a.id < b.id {
			return -1
		}
		return 1
	})
	return all, nil
}

// remove unlinks segments, lowest first, so that what a crash leaves is the rear of the connection.
func (st *store) remove(dir string, id ID, segs []segment) error {
	var first error
	for _, s := range segs {
		if err := os.Remove(filepath.Join(dir, segmentName(id, s.base))); err != nil && !errors.Is(err, fs.ErrNotExist) && first == nil {
			first = err
		}
	}
	return first
}

// removeAll unlinks everything of a connection, after having noted that this was meant.
func (st *store) removeAll(dir string, id ID, segs []segment, p progress) error {
	if len(segs) > 1 { // a crash between two could leave a rear that looks undelivered
		p.flags |= flagGone
		_ = p.write(dir, id) // on a full disk: then such a rear would be delivered, which is allowed
	}
	err := st.remove(dir, id, segs)
	if rm := os.Remove(progressFile(dir, id)); rm != nil && !errors.Is(rm, fs.ErrNotExist) && err == nil {
		err = rm
	}
	return err
}

// move renames everything of a connection from one directory to another.
func (st *store) move(from, to string, id ID, segs []segment) error {
	for _, s := range segs {
		name := segmentName(id, s.base)
		if err := os.Rename(filepath.Join(from, name), filepath.Join(to, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	err := os.Rename(progressFile(from, id), progressFile(to, id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (st *store) quarantine() string { return filepath.Join(st.dir, quarantineDir) }
