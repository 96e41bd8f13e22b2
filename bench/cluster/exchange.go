package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"
)

const (
	pieceSize = 32 << 10
	// stuck is after which a connection on which no byte moves has failed.
	stuck = time.Minute
)

// ErrHash says that bytes were lost, added or changed.
var ErrHash = errors.New("a hash differs")

// errEnded says that a connection ended in order, but too early.
var errEnded = errors.New("the connection ended")

// exchange is one connection of an application, from its first byte to its verified end.
type exchange struct {
	size  int64         // bytes in each direction, at least 1
	piece int           // bytes of one write; 0: 32 KiB
	pause time.Duration // between two of them
	seed  uint64
	moved *atomic.Int64 // counts the bytes that come back; may be nil
}

// stream is a TCP connection, or a stream of a tunnel.
type stream interface {
	io.ReadWriter
	CloseWrite() error
	abort() // ends it, whatever waits for it
}

// dial connects to a sidecar's listener and carries the exchange. opened is how long the first byte's echo took.
func (e exchange) dial(ctx context.Context, addr string) (opened time.Duration, err error) {
	began := time.Now()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	return e.carry(ctx, watched{conn.(*net.TCPConn)}, began)
}

// watched is a connection that fails when nothing moves on it.
type watched struct{ *net.TCPConn }

func (w watched) abort() { _ = w.Close() }

func (w watched) Read(p []byte) (int, error) {
	if err := w.SetReadDeadline(time.Now().Add(stuck)); err != nil {
		return 0, err
	}
	return w.TCPConn.Read(p)
}

func (w watched) Write(p []byte) (int, error) {
	if err := w.SetWriteDeadline(time.Now().Add(stuck)); err != nil {
		return 0, err
	}
	return w.TCPConn.Write(p)
}

// carry sends the content, half-closes, and reads to the end: what was sent must come back, and the hash that the target has of it.
func (e exchange) carry(ctx context.Context, s stream, began time.Time) (opened time.Duration, err error) {
	sum := sha256.New()
	sent := make(chan error, 1)
	first, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { sent <- e.send(first, s, sum) }()
	opened, back, trailer, err := e.receive(s, began)
	if err != nil {
		cancel()
		s.abort()
		failed := <-sent
		if errors.Is(err, errEnded) && failed != nil { // a reset is told once only: to a write, then a read sees an end
			err = fmt.Errorf("%w; %w", err, failed)
		}
		return opened, err // else what the sending says follows from that
	}
	if err := <-sent; err != nil {
		return opened, err
	}
	if want := sum.Sum(nil); !bytes.Equal(back, want) || !bytes.Equal(trailer, want) {
		return opened, fmt.Errorf("%w: sent %x, at the target %x, back %x, of %d bytes", ErrHash, want, trailer, back, e.size)
	}
	return opened, nil
}

// send sends the content and half-closes.
func (e exchange) send(ctx context.Context, s stream, sum io.Writer) error {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], e.seed)
	source, buf := rand.NewChaCha8(key), make([]byte, e.pieces())
	for left := e.size; left > 0; {
		p := buf[:min(int64(len(buf)), left)]
		_, _ = source.Read(p) // never fails
		_, _ = sum.Write(p)
		if _, err := s.Write(p); err != nil {
			return fmt.Errorf("sending after %d bytes: %w", e.size-left, err)
		}
		if left -= int64(len(p)); left > 0 && e.pause > 0 {
			if err := pause(ctx, e.pause); err != nil {
				return err
			}
		}
	}
	return s.CloseWrite()
}

func (e exchange) pieces() int {
	if e.piece > 0 {
		return e.piece
	}
	return pieceSize
}

// receive reads what comes back: the content, then the target's hash.
func (e exchange) receive(s stream, began time.Time) (opened time.Duration, back, trailer []byte, err error) {
	sum, buf := sha256.New(), make([]byte, pieceSize)
	for got := int64(0); ; {
		n, err := s.Read(buf)
		if n > 0 && opened == 0 {
			opened = time.Since(began)
		}
		content := min(int64(n), e.size-got)
		sum.Write(buf[:content])
		trailer = append(trailer, buf[content:n]...)
		got += content
		if e.moved != nil {
			e.moved.Add(content)
		}
		switch {
		case err == io.EOF && got == e.size:
			return opened, sum.Sum(nil), trailer, nil
		case err == io.EOF:
			return opened, nil, nil, fmt.Errorf("%w after %d bytes of %d", errEnded, got, e.size)
		case err != nil:
			return opened, nil, nil, fmt.Errorf("receiving after %d bytes: %w", got, err)
		case len(trailer) > sha256.Size:
			return opened, nil, nil, fmt.Errorf("%w: more came back than was sent", ErrHash)
		}
	}
}

// pause waits, unless ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
