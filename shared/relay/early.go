package relay

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// Early looks after a socket for which there is no stream yet: it keeps the first bytes that come, and notices when the
// other end goes away. Nothing else may read the socket meanwhile.
//
// A TCP socket whose other end was closed looks like one of which only the one direction was ended. On the same machine the
// kernel can tell. One that was closed after it had sent something is not gone, though: its bytes are to be delivered, as
// they would have been without fairlead.
type Early struct {
	sock  *socket
	limit int

	// One goroutine watches at a time; these are its own.
	kept    []byte
	ended   bool // the other end ended its direction, and every byte before that is kept
	ticking bool // it has sent nothing before, so Watch looks from time to time
	gone    error

	mu      sync.Mutex
	stopped bool
}

// NewEarly makes one that keeps at most limit bytes; the rest stays in the kernel. It is nil when c is no socket, and so can
// not be watched.
func NewEarly(c Conn, limit int) *Early {
	sock, ok := socketOf(c)
	if !ok {
		return nil
	}
	return &Early{sock: sock, limit: limit}
}

// Watch blocks until Stop, and then returns nil, or until the other end has gone away, and then says how. There is no memory
// held for bytes that have not come.
func (e *Early) Watch() error {
	defer e.rest(time.Time{})
	for tick := firstTick; ; tick = min(2*tick, lastTick) {
		err := e.sock.raw.Read(e.look)
		switch {
		case e.gone != nil:
			return e.gone
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return errs.Wrap(errs.ConnectionBroken, err, "watching the application's connection while it waited")
		}
		if !e.rest(time.Now().Add(tick)) {
			return nil
		}
	}
}

// Ticks at which it is looked whether an other end that has sent nothing but the end of its direction was closed meanwhile:
// there is no event for that.
const (
	firstTick = 20 * time.Millisecond
	lastTick  = time.Second
)

// rest bounds the next wait for an event, if it needs a bound, and says whether there may be one.
func (e *Early) rest(until time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopped && !until.IsZero() {
		return false
	}
	if !e.ticking {
		until = time.Time{}
	}
	_ = e.sock.SetReadDeadline(until) // fails on a closed socket, whose Read fails too
	return true
}

// Stop ends Watch, for good.
func (e *Early) Stop() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stopped = true
	_ = e.sock.SetReadDeadline(time.Unix(1, 0))
}

// Kept is the bytes that have come. It may be called after Watch has returned.
func (e *Early) Kept() []byte { return e.kept }

// look reads what there is. It returns true when the other end has gone away, or when it begins to be looked at by ticks.
func (e *Early) look(fd uintptr) bool {
	for !e.ended && len(e.kept) < e.limit {
		n, err := e.read(fd)
		switch {
		case err == syscall.EAGAIN:
			return false
		case err != nil:
			e.gone = errs.Wrap(errs.ConnectionBroken, err, "the application reset its connection while it waited")
			return true
		}
		e.ended = n == 0
	}
	return e.lookBehind(fd)
}

// lookBehind looks whether the other end has gone away while nothing is to be read: because all was, or no more is kept.
func (e *Early) lookBehind(fd uintptr) bool {
	hungUp, broken := hangUp(fd)
	_, tcp := e.sock.Conn.(*net.TCPConn)
	if broken || tcp && hungUp {
		e.gone = errs.New(errs.ConnectionBroken, "the application reset its connection while it waited")
		return true
	}
	if !e.ended {
		n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK)
		e.ended = n == 0 && err == nil
	}
	if !e.ended || len(e.kept) > 0 {
		return false
	}
	if hungUp || tcp && otherEndClosed(e.sock.Conn) {
		e.gone = errs.New(errs.Canceled, "the application closed its connection while it waited")
		return true
	}
	again := !e.ticking // the wait for the next event has no bound yet
	e.ticking = true
	return again
}

// read reads once, into memory that is only taken when there is something.
func (e *Early) read(fd uintptr) (int, error) {
	buf := link.GetBuffer(min(e.limit-len(e.kept), earlyPiece))
	defer buf.Release()
	n, err := ignoringEINTR(int(fd), buf.Bytes()[:min(e.limit-len(e.kept), len(buf.Bytes()))], syscall.Read)
	if n <= 0 || err != nil {
		return max(n, 0), err
	}
	if need := len(e.kept) + n; need > cap(e.kept) {
		grown := make([]byte, len(e.kept), min(max(2*cap(e.kept), need), e.limit))
		copy(grown, e.kept)
		e.kept = grown
	}
	e.kept = append(e.kept, buf.Bytes()[:n]...)
	return n, nil
}

const earlyPiece = 32 << 10

// hangUp says whether both directions of a socket are over, and whether they were broken.
func hangUp(fd uintptr) (hungUp, broken bool) {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	if n, err := unix.Poll(fds, 0); n != 1 || err != nil {
		return false, false
	}
	return fds[0].Revents&unix.POLLHUP != 0, fds[0].Revents&unix.POLLERR != 0
}
