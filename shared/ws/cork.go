// Package ws carries messages over WebSocket: both ends of a lane, and plain byte streams. It is the only importer of
// fasthttp/websocket, but for the gateway's upgrade.
package ws

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"fairlead/shared/errs"
)

// Cork is a network connection that gathers writes once it is asked to: it sits under TLS, so that the records of a frame,
// and small frames one after another, leave in one system call instead of one per 16 KiB record. Until Cork.hold it
// passes everything through, as the handshakes need.
type Cork struct {
	net.Conn
	received atomic.Uint64
	bound    uint64 // most bytes to be read until it holds; 0: no bound. The reading goroutine alone uses it

	mu   sync.Mutex
	held bool
	buf  *[corkSize]byte // from corks, while there is something in it
	err  error           // of a write that failed: what would follow it is not what the peer expects
	n    atomic.Int64    // bytes in buf
}

// corkSize holds a frame of the greatest size with its headers and the overhead of nine TLS records.
const corkSize = 132 << 10

var corks = sync.Pool{New: func() any { return new([corkSize]byte) }}

// NewCork wraps a connection.
func NewCork(c net.Conn) *Cork { return &Cork{Conn: c} }

// Read reads from the network and counts.
func (c *Cork) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if total := c.received.Add(uint64(n)); c.bound > 0 && total > c.bound {
		return 0, errs.New(errs.UpgradeFailed, "an answer of more than %d bytes before the WebSocket", c.bound)
	}
	return n, err
}

// Write gathers p, or passes it on while the cork does not hold.
func (c *Cork) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return 0, c.err
	case !c.held:
		return c.Conn.Write(p)
	}
	total := 0
	for len(p) > 0 {
		if c.buf == nil {
			c.buf = corks.Get().(*[corkSize]byte)
		}
		n := copy(c.buf[c.n.Load():], p)
		p, total = p[n:], total+n
		if c.n.Add(int64(n)) == corkSize {
			if err := c.flush(); err != nil {
				return total, err
			}
		}
	}
	return total, nil
}

// Flush writes what is gathered.
func (c *Cork) Flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flush()
}

func (c *Cork) flush() error {
	n := c.n.Load()
	if n == 0 || c.err != nil {
		return c.err
	}
	_, c.err = c.Conn.Write(c.buf[:n])
	corks.Put(c.buf)
	c.buf = nil
	c.n.Store(0)
	return c.err
}

// Buffered is the number of bytes gathered.
func (c *Cork) Buffered() int { return int(c.n.Load()) }

// hold begins to gather, and ends the bound. Nobody reads meanwhile.
func (c *Cork) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held, c.bound = true, 0
}

// SetWriteDeadline has no effect on a cork that holds: its writes do not block, and a deadline that the WebSocket library
// set for one control frame would otherwise end a later flush.
func (c *Cork) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	held := c.held
	c.mu.Unlock()
	if held {
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

// CloseWrite half-closes a TCP connection.
func (c *Cork) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// findCork looks for the cork under the layers that TLS and fasthttp put on it.
func findCork(c net.Conn) (*Cork, bool) {
	for {
		switch layer := c.(type) {
		case *Cork:
			return layer, true
		case interface{ NetConn() net.Conn }:
			c = layer.NetConn()
		case interface{ UnsafeConn() net.Conn }:
			c = layer.UnsafeConn()
		default:
			return nil, false
		}
	}
}

// Listener wraps what it accepts in corks; TLS goes on top of it.
type Listener struct {
	net.Listener
	// Tune is applied to accepted connections; nil: none.
	Tune func(net.Conn)
}

// Accept waits for a connection.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if l.Tune != nil {
		l.Tune(c)
	}
	return NewCork(c), nil
}

var _ io.Writer = (*Cork)(nil)
