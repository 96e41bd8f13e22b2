package spool

import (
	"io"
	"net"
	"syscall"
	"time"

	"fairlead/shared/errs"
)

// source reads from an application's socket: it waits without a buffer, then takes what is there.
//
// What it must not do is let the kernel tell the application a lie when this process dies. A TCP socket whose bytes
// are all read is closed by the kernel with a FIN, as if they were safe: SO_LINGER with 0 makes it a reset. A Unix socket
// knows no such option, but is reset when bytes are unread: there bytes are looked at (MSG_PEEK), kept, and only then taken.
type source struct {
	c    net.Conn
	raw  syscall.RawConn
	peek bool
	seen int // bytes looked at since they were last taken

	buf []byte
	n   int
	err error
	try func(fd uintptr) bool
}

func newSource(c net.Conn) (*source, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil, errs.New(errs.Internal, "the spool reads from sockets, not from %T", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, errs.Wrap(errs.ConnectionBroken, err, "reading from the application")
	}
	s := &source{c: c, raw: raw}
	if tcp, ok := c.(*net.TCPConn); ok {
		if err := tcp.SetLinger(0); err != nil {
			return nil, errs.Wrap(errs.ConnectionBroken, err, "reading from the application")
		}
	} else {
		s.peek = true
	}
	s.try = func(fd uintptr) bool {
		s.n, s.err = s.recv(int(fd))
		return true
	}
	return s, nil
}

// wait returns when there is something to read, or the end.
func (s *source) wait() error {
	var result error
	err := s.raw.Read(func(fd uintptr) bool {
		var one [1]byte
		for {
			_, _, result = syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK)
			if result != syscall.EINTR {
				return result != syscall.EAGAIN
			}
		}
	})
	if err != nil {
		return err
	}
	return result
}

// read takes what is there. It returns fewer bytes than there is room for when nothing more is there, and io.EOF at the end.
func (s *source) read(p []byte) (int, error) {
	if s.peek && s.seen > 0 {
		return 0, nil // what follows cannot be looked at before what was seen is taken
	}
	s.buf = p
	err := s.raw.Read(s.try)
	s.buf = nil
	switch {
	case err != nil:
		return 0, err
	case s.err == syscall.EAGAIN:
		return 0, nil
	case s.err != nil:
		return 0, s.err
	case s.n == 0:
		return 0, io.EOF
	}
	return s.n, nil
}

func (s *source) recv(fd int) (n int, err error) {
	for {
		if s.peek {
			n, _, err = syscall.Recvfrom(fd, s.buf, syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			s.seen = max(n, 0)
		} else {
			n, err = syscall.Read(fd, s.buf)
		}
		if err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}

// consume says that what was read is kept.
func (s *source) consume() {
	if !s.peek {
		return
	}
	var buf [4096]byte
	_ = s.raw.Read(func(fd uintptr) bool {
		for s.seen > 0 {
			n, err := syscall.Read(int(fd), buf[:min(s.seen, len(buf))])
			if err == syscall.EINTR {
				continue
			}
			if err != nil || n == 0 {
				return true // it was there: whatever this is, the next read tells
			}
			s.seen -= n
		}
		return true
	})
	s.seen = 0
}

// interrupt ends a wait, from another goroutine.
func (s *source) interrupt() { _ = s.c.SetReadDeadline(time.Unix(1, 0)) }

// end tells the application that everything is kept, and closes.
func (s *source) end() error {
	if tcp, ok := s.c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(-1)
	}
	if w, ok := s.c.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite() // an application that is gone does not want to know
	}
	_ = s.c.Close()
	return nil
}

// reset closes so that the application sees an error, not an end.
func (s *source) reset() {
	if tcp, ok := s.c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = s.c.Close()
}
