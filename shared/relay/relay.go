// Package relay is the byte pump between a connection and a stream: both directions, half-close kept, and for sockets no
// buffer held while there is nothing to read and no goroutine while there is nothing to write.
package relay

import (
	"errors"
	"io"
	"net"
	"syscall"

	"fairlead/shared/link"
)

// Conn is the local side of a stream: a socket, an SSH channel, standard input and output.
type Conn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Paced is a Conn whose bytes flow at a rate of its own: its Write, Read and CloseWrite take their time, and Close ends them.
// Where it is a socket underneath, that is read only when there is something to read, and Pay is called for what was read.
type Paced interface {
	Conn
	Unpaced() Conn   // what is underneath, closed by Close of the paced one
	Piece() int      // how many bytes to read at once
	Pay(n int) error // waits until n bytes that were read may be passed on
}

// Pump carries bytes between c and s until both directions have ended or one of them broke, and closes c. It returns nil
// when both ended in order, else the error that ended the stream. A connection that breaks resets the stream; a stream
// that is reset breaks the connection, so that each end sees what happened to the other.
func Pump(s *link.Stream, c Conn) error {
	ended := make(chan error, 1)
	Start(s, c, func(err error) { ended <- err })
	return <-ended
}

// Start is Pump that does not wait: done gets its result, in the goroutine that carried the bytes. That is a new one, so that
// an idle stream does not keep the stack that its caller needed to get here.
func Start(s *link.Stream, c Conn, done func(error)) { StartAfter(s, c, nil, done) }

// StartAfter is Start for a connection of which some bytes were read already: these go first.
func StartAfter(s *link.Stream, c Conn, early []byte, done func(error)) {
	sink, up := ends(c)
	s.SetSink(sink)
	go func() {
		err := carry(s, c, early, up)
		c.Close()
		done(err)
	}()
}

// ends are how a connection is written and read.
func ends(c Conn) (link.Sink, reader) {
	if sock, ok := socketOf(c); ok {
		return sock, sock.read
	}
	if paced, ok := c.(Paced); ok {
		if sock, ok := socketOf(paced.Unpaced()); ok {
			return pacedSocket{paced, sock}, pacedRead(paced, sock)
		}
	}
	return blockingSink{c}, readBlocking
}

// carry sends what c reads, and waits for the other direction. A panic ends the stream, not the process.
func carry(s *link.Stream, c Conn, early []byte, read reader) (err error) {
	defer func() { err = s.Wait() }() // after a panic too: the stream is over then
	defer s.Recover()
	if len(early) > 0 {
		if _, err := s.Write(early); err != nil {
			return nil // Wait tells
		}
	}
	if err := send(s, c, read); err != nil {
		s.Reset(err)
	}
	return nil
}

// reader waits for bytes and returns them in a buffer, at most room of them.
type reader func(c Conn, room int) (buf *link.Buffer, n int, err error)

// send carries what c reads to s. A stream that failed is not an error of the sending.
func send(s *link.Stream, c Conn, read reader) error {
	for {
		room, err := s.WaitRoom()
		if err != nil {
			return nil // Wait tells
		}
		buf, n, err := read(c, room)
		if n > 0 {
			if s.SendBuffer(buf, n) != nil {
				return nil
			}
		} else if buf != nil {
			buf.Release()
		}
		switch {
		case err == io.EOF || err == nil && n == 0:
			_ = s.CloseWrite() // fails only on a stream that failed
			return nil
		case err != nil:
			return s.Broken(err, "reading from")
		}
	}
}

// readBlocking reads from what is no socket: it holds a buffer while it waits.
func readBlocking(c Conn, room int) (*link.Buffer, int, error) {
	buf := link.GetBuffer(min(room, 32<<10))
	n, err := c.Read(buf.Bytes()[:min(room, len(buf.Bytes()))])
	if err == nil && n == 0 {
		err = io.ErrNoProgress
	}
	return buf, n, err
}

// blockingSink is the other direction of what is no socket.
type blockingSink struct{ Conn }

func (b blockingSink) Abort(error) { b.Close() }

// pacedSocket is the other direction of a socket whose bytes are paced.
type pacedSocket struct {
	Paced
	sock *socket
}

func (p pacedSocket) CloseWrite() error { return p.sock.CloseWrite() }

func (p pacedSocket) Abort(err error) {
	p.sock.Abort(err)
	p.Close()
}

func pacedRead(p Paced, sock *socket) reader {
	return func(c Conn, room int) (*link.Buffer, int, error) {
		buf, n, err := sock.read(c, min(room, p.Piece()))
		if n > 0 {
			if closed := p.Pay(n); closed != nil {
				return buf, 0, closed
			}
		}
		return buf, n, err
	}
}

// socket is a TCP or Unix connection, read when it is readable and written without waiting where possible.
type socket struct {
	net.Conn
	raw syscall.RawConn

	// The closures and what they work on are kept, so that a read or a write allocates nothing. One goroutine reads at a
	// time, and one writes.
	readFn, writeFn func(fd uintptr) bool
	in              *link.Buffer
	room, got       int
	readErr         error
	out             []byte
	put             int
	writeErr        error
}

func socketOf(c Conn) (*socket, bool) {
	switch c.(type) {
	case *net.TCPConn, *net.UnixConn:
	default:
		return nil, false
	}
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil, false
	}
	s := &socket{Conn: c.(net.Conn), raw: raw}
	s.readFn, s.writeFn = s.tryRead, s.tryWrite
	return s, true
}

// read waits until the socket is readable and only then takes a buffer.
func (s *socket) read(_ Conn, room int) (*link.Buffer, int, error) {
	s.room, s.in, s.got, s.readErr = min(room, link.MaxPayload), nil, 0, nil
	if err := s.raw.Read(s.readFn); err != nil {
		return s.in, 0, err
	}
	return s.in, s.got, s.readErr
}

func (s *socket) tryRead(fd uintptr) bool {
	buf := link.GetBuffer(s.room)
	n, err := ignoringEINTR(int(fd), buf.Bytes()[:s.room], syscall.Read)
	if err == syscall.EAGAIN {
		buf.Release()
		return false
	}
	s.in, s.got, s.readErr = buf, max(n, 0), err
	return true
}

// TryWrite writes what the socket takes at once.
func (s *socket) TryWrite(p []byte) (int, error) {
	s.out, s.put, s.writeErr = p, 0, nil
	err := s.raw.Write(s.writeFn)
	s.out = nil
	if err == nil {
		err = s.writeErr
	}
	return s.put, err
}

func (s *socket) tryWrite(fd uintptr) bool {
	for s.put < len(s.out) {
		n, err := ignoringEINTR(int(fd), s.out[s.put:], syscall.Write)
		if n > 0 {
			s.put += n
		}
		if err != nil {
			if err != syscall.EAGAIN {
				s.writeErr = err
			}
			return true
		}
	}
	return true
}

func ignoringEINTR(fd int, p []byte, call func(int, []byte) (int, error)) (int, error) {
	for {
		n, err := call(fd, p)
		if err != syscall.EINTR {
			return n, err
		}
	}
}

// CloseWrite half-closes the socket. A peer that is gone already has seen more than an end.
func (s *socket) CloseWrite() error {
	err := s.Conn.(interface{ CloseWrite() error }).CloseWrite()
	if errors.Is(err, syscall.ENOTCONN) {
		return nil
	}
	return err
}

// Abort closes the socket so that its peer sees a reset, not an end.
func (s *socket) Abort(error) {
	if tcp, ok := s.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	s.Close()
}
