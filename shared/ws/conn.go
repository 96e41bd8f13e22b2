package ws

import (
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fasthttp/websocket"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// Sizes for the WebSocket library, in bytes. Its write buffer holds a whole frame, else it would be fragmented; the read
// buffer is small, because payload is read past it into the caller's.
const (
	ReadBufferSize  = 1 << 10
	WriteBufferSize = 128 << 10
)

// WriteBuffers is shared by all connections of the process: it is a cache, not state.
var WriteBuffers websocket.BufferPool = new(sync.Pool)

const (
	closeTime  = time.Second // for a close frame to leave
	lingerTime = time.Second // for the peer to answer it
)

// Conn is a message connection over WebSocket; it implements link.Conn.
type Conn struct {
	ws      *websocket.Conn
	cork    *Cork
	limit   int64
	message limitedReader // the one being read
	closing sync.Once
	closed  atomic.Bool // a close frame of ours was sent, not one of the library's
	pings   sync.WaitGroup
	pinging atomic.Bool
	deflate bool // permessage-deflate was negotiated
}

var _ link.Conn = (*Conn)(nil)

// New takes over a WebSocket whose network connection is corked; every way of fairlead to make one does that. Messages
// over maxMessage bytes are refused.
func New(c *websocket.Conn, maxMessage int) (*Conn, error) {
	cork, ok := findCork(c.NetConn())
	if !ok {
		return nil, errs.New(errs.Internal, "a WebSocket over %T, which is not corked", c.NetConn())
	}
	cork.hold()
	conn := &Conn{ws: c, cork: cork, limit: int64(maxMessage)}
	c.SetPingHandler(conn.onPing)
	c.SetCloseHandler(func(int, string) error { return nil }) // whoever reads the CloseError answers it
	return conn, nil
}

// Messages that were deflated (RFC 7692).
const (
	// A smaller message that is written goes as it is: deflate would make it larger.
	deflateLeast = 256
	// What does not shrink grows by up to 5 bytes in each block, of which an honest peer makes no small ones.
	deflateOverhead = 1 << 10
)

// NewDeflated is New for a WebSocket on which permessage-deflate was negotiated. No message may be over maxMessage bytes when it is
// inflated; nor may it be, but for what deflate adds to what does not shrink, before: a message can also be long and hold little.
func NewDeflated(c *websocket.Conn, maxMessage int) (*Conn, error) {
	conn, err := New(c, maxMessage)
	if err == nil {
		conn.deflate = true
		c.SetReadLimit(int64(maxMessage) + int64(maxMessage)/1000 + deflateOverhead)
	}
	return conn, err
}

// NextReader waits for a message. See link.Conn.
func (c *Conn) NextReader() (io.Reader, error) {
	kind, r, err := c.ws.NextReader()
	if err != nil {
		return nil, c.readError(err)
	}
	if kind != websocket.BinaryMessage {
		return nil, errs.New(errs.ProtocolViolation, "a text message; only binary ones are allowed")
	}
	c.message = limitedReader{c: c, r: r, left: c.limit}
	return &c.message, nil
}

// limitedReader reads one message and refuses it when it is over the limit.
type limitedReader struct {
	c     *Conn
	r     io.Reader
	left  int64
	ended bool // read to its end
}

func (l *limitedReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	l.left -= int64(n)
	l.ended = err == io.EOF
	switch {
	case l.left < 0:
		return 0, errs.New(errs.MessageTooBig, "a message over %d bytes", l.c.limit)
	case err != nil && err != io.EOF:
		err = l.c.readError(err)
	}
	return n, err
}

// readError gives an error of the library its code. A peer's close frame is answered. The library has no type for a breach
// of RFC 6455, only its prefix, which errors of the network do not have; the same goes for what cannot be inflated.
func (c *Conn) readError(err error) error {
	var closed *websocket.CloseError
	if errors.As(err, &closed) && closed.Code != websocket.CloseAbnormalClosure {
		c.Close(errs.CloseNormal, "")
		return errs.FromCloseFrame(closed.Code, closed.Text)
	}
	if errors.Is(err, websocket.ErrReadLimit) { // a length that no counter holds
		return errs.Wrap(errs.MessageTooBig, err, "a message over %d bytes", c.limit)
	}
	if !errors.As(err, &closed) && strings.HasPrefix(err.Error(), "websocket: ") {
		return errs.Wrap(errs.ProtocolViolation, err, "not a WebSocket frame")
	}
	if c.deflate && strings.HasPrefix(err.Error(), "flate: ") {
		return errs.Wrap(errs.ProtocolViolation, err, "a message that cannot be inflated")
	}
	return errs.Wrap(errs.LaneLost, err, "reading from the peer")
}

// Write appends one binary message to the write buffer. See link.Conn.
func (c *Conn) Write(head, payload []byte) error {
	err := c.write(head, payload)
	if errors.Is(err, websocket.ErrCloseSent) && !c.closed.Load() {
		// The library has told a peer that it broke RFC 6455. Its reader knows more, and is about to end the connection;
		// were this an error, the writer would, and the peer might never read why.
		return c.cork.Flush()
	}
	return err
}

func (c *Conn) write(head, payload []byte) error {
	if c.deflate {
		c.ws.EnableWriteCompression(len(head)+len(payload) >= deflateLeast)
	}
	w, err := c.ws.NextWriter(websocket.BinaryMessage)
	if err != nil {
		return err
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	if len(payload) > 0 {
		if _, err := w.Write(payload); err != nil {
			return err
		}
	}
	return w.Close()
}

// Flush writes the write buffer to the network.
func (c *Conn) Flush() error { return c.cork.Flush() }

// Buffered is the number of bytes in the write buffer.
func (c *Conn) Buffered() int { return c.cork.Buffered() }

// Received counts the bytes from the network.
func (c *Conn) Received() uint64 { return c.cork.received.Load() }

// RemoteAddr is the other end of the network connection.
func (c *Conn) RemoteAddr() net.Addr { return c.ws.RemoteAddr() }

// onPing answers a ping of a middlebox or a foreign client. The reader that calls it must not wait for the writer, so a
// goroutine does; pings that come meanwhile need no answer of their own (RFC 6455 section 5.5.3).
func (c *Conn) onPing(data string) error {
	if c.pinging.Swap(true) {
		return nil
	}
	c.pings.Add(1)
	go func() {
		defer c.pings.Done()
		defer c.pinging.Store(false)
		if c.ws.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(closeTime)) == nil {
			_ = c.cork.Flush() // a failure shows to the writer and the reader
		}
	}()
	return nil
}

// Close sends a close frame. See link.Conn.
func (c *Conn) Close(code int, reason string) {
	c.closing.Do(func() {
		_ = c.cork.Conn.SetReadDeadline(time.Now().Add(closeTime + lingerTime))
		_ = c.cork.Conn.SetWriteDeadline(time.Now().Add(closeTime))
		err := c.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, reason), time.Now().Add(closeTime))
		c.closed.Store(err == nil)
		if err == nil || errors.Is(err, websocket.ErrCloseSent) { // the library sends one itself when a frame is malformed
			_ = c.cork.Flush() // the peer may be gone
		}
		_ = c.cork.Conn.SetReadDeadline(time.Now().Add(lingerTime))
	})
}

// Drain discards what still comes. See link.Conn.
func (c *Conn) Drain() {
	_ = c.cork.CloseWrite()
	_, _ = io.Copy(io.Discard, c.cork.Conn) // ends at the deadline that Close has set, or when the peer closes
}

// Abort ends the connection at once.
func (c *Conn) Abort() { _ = c.cork.Conn.Close() }

// Wait returns when no ping is being answered any more.
func (c *Conn) Wait() { c.pings.Wait() }
