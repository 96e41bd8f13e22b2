package chaos

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
)

// digest is what a direction carried, as one of its ends saw it.
type digest struct {
	bytes int64
	sum   [sha256.Size]byte
}

// order is who sends when. Those that are not both show that a half-closed connection stays so.
type order int

const (
	both order = iota // both at once
	ask               // the application sends and half-closes, then the backend sends
	tell              // the backend sends and half-closes, then the application sends
	orders
)

func (o order) String() string { return [...]string{"both", "ask", "tell"}[o] }

// connection is one connection of an application, known to both of its ends.
type connection struct {
	id       uint64
	seed     uint64
	order    order
	up, down int64 // bytes of content
	piece    int   // most bytes of one read or write

	app, backend end
	met          chan struct{} // closed when the backend's end is done
}

// end is what one end of a connection did.
type end struct {
	sent, received digest
	err            error
}

func (c *connection) String() string {
	return fmt.Sprintf("connection %d (%s, %d bytes up, %d down)", c.id, c.order, c.up, c.down)
}

// verify says what is wrong with a finished connection.
func (c *connection) verify() error {
	switch {
	case c.app.err != nil:
		return fmt.Errorf("%v: the application's connection was lost: %w", c, c.app.err)
	case c.backend.err != nil:
		return fmt.Errorf("%v: the backend's connection was lost: %w", c, c.backend.err)
	case c.app.sent != c.backend.received:
		return fmt.Errorf("%v: up, %d bytes with the hash %x were sent, %d with %x arrived", c, c.app.sent.bytes, c.app.sent.sum, c.backend.received.bytes, c.backend.received.sum)
	case c.backend.sent != c.app.received:
		return fmt.Errorf("%v: down, %d bytes with the hash %x were sent, %d with %x arrived", c, c.backend.sent.bytes, c.backend.sent.sum, c.app.received.bytes, c.app.received.sum)
	case c.app.sent.bytes != c.up || c.backend.sent.bytes != c.down:
		return fmt.Errorf("%v: %d and %d bytes were sent", c, c.app.sent.bytes, c.backend.sent.bytes)
	}
	return nil
}

// carry is one end's part: it sends n bytes made from seed and reads to the end, in the order that is its own. moved
// counts what arrives.
func carry(conn *net.TCPConn, n int64, seed uint64, piece int, first, last bool, moved *atomic.Int64) (e end) {
	send := func() error {
		var err error
		e.sent, err = sendContent(conn, n, seed, piece)
		return err
	}
	receive := func() error {
		var err error
		e.received, err = receiveContent(conn, piece, moved)
		return err
	}
	switch {
	case first:
		e.err = errors.Join(send(), receive())
	case last:
		e.err = errors.Join(receive(), send())
	default:
		sent := make(chan error, 1)
		go func() { sent <- send() }()
		err := receive()
		e.err = errors.Join(err, <-sent)
	}
	return e
}

// sendContent sends n bytes and half-closes.
func sendContent(conn *net.TCPConn, n int64, seed uint64, piece int) (d digest, err error) {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	source, sum, buf := rand.NewChaCha8(key), sha256.New(), make([]byte, piece)
	for d.bytes < n {
		p := buf[:min(int64(piece), n-d.bytes)]
		_, _ = source.Read(p) // never fails
		sum.Write(p)
		if _, err := conn.Write(p); err != nil {
			return d, fmt.Errorf("sending after %d bytes: %w", d.bytes, err)
		}
		d.bytes += int64(len(p))
	}
	d.sum = finish(sum)
	return d, conn.CloseWrite()
}

// receiveContent reads to the end.
func receiveContent(conn *net.TCPConn, piece int, moved *atomic.Int64) (d digest, err error) {
	sum, buf := sha256.New(), make([]byte, piece)
	for {
		n, err := conn.Read(buf)
		sum.Write(buf[:n])
		d.bytes += int64(n)
		moved.Add(int64(n))
		if err == io.EOF {
			d.sum = finish(sum)
			return d, nil
		}
		if err != nil {
			return d, fmt.Errorf("receiving after %d bytes: %w", d.bytes, err)
		}
	}
}

func finish(h hash.Hash) (sum [sha256.Size]byte) {
	h.Sum(sum[:0])
	return sum
}
