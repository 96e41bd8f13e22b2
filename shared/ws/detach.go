package ws

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"reflect"
	"time"

	"github.com/fasthttp/websocket"

	"fairlead/shared/errs"
)

// Raw is a corked connection without its WebSocket: bytes go through as they are. What one Write gets leaves together. Close,
// CloseWrite and the deadlines are the network's: none of them waits for the peer.
type Raw struct {
	net.Conn // TLS if there is some, what fasthttp has made of it, and the cork below
	cork     *Cork
}

// NewRaw lets the cork under c hold, and c be written in whole pieces from now on.
func NewRaw(c net.Conn) (*Raw, error) {
	cork, ok := findCork(c)
	if !ok {
		return nil, errs.New(errs.Internal, "a raw connection over %T, which is not corked", c)
	}
	cork.hold()
	return &Raw{Conn: c, cork: cork}, nil
}

// Write sends p, in as few pieces as it can.
func (r *Raw) Write(p []byte) (int, error) {
	n, err := r.Conn.Write(p)
	if err == nil {
		err = r.cork.Flush()
	}
	return n, err
}

// CloseWrite ends the direction to the peer, in TLS too. The other one goes on.
func (r *Raw) CloseWrite() error {
	if layer, ok := findTLS(r.Conn); ok {
		_ = layer.CloseWrite() // into the cork
		if err := r.cork.Flush(); err != nil {
			return err
		}
	}
	return r.cork.CloseWrite()
}

// Close ends the connection at once; reads and writes fail.
func (r *Raw) Close() error { return r.cork.Conn.Close() }

// SetDeadline bounds reads and writes. One that is missed ends a TLS connection for good.
func (r *Raw) SetDeadline(t time.Time) error { return r.cork.Conn.SetDeadline(t) }

// SetReadDeadline bounds reads.
func (r *Raw) SetReadDeadline(t time.Time) error { return r.cork.Conn.SetReadDeadline(t) }

// SetWriteDeadline bounds writes.
func (r *Raw) SetWriteDeadline(t time.Time) error { return r.cork.Conn.SetWriteDeadline(t) }

func findTLS(c net.Conn) (*tls.Conn, bool) {
	for {
		switch layer := c.(type) {
		case *tls.Conn:
			return layer, true
		case *Cork:
			return nil, false
		case interface{ NetConn() net.Conn }:
			c = layer.NetConn()
		case interface{ UnsafeConn() net.Conn }:
			c = layer.UnsafeConn()
		default:
			return nil, false
		}
	}
}

// Detach gives the WebSocket up and returns the connection that it was on, for its bytes to be copied elsewhere: it stands
// after the last message that was read, and everything that was written has left. The connection is the caller's; c is not
// to be used any more. On an error nothing has changed.
//
// The last message must have been read to its end, and the peer must not have sent anything after it that is here already:
// what has been taken apart cannot be passed on. That is a ProtocolViolation, of a peer that ought to wait for an answer.
func (c *Conn) Detach() (net.Conn, error) {
	early, err := unread(c.ws)
	switch {
	case err != nil:
		return nil, err
	case c.deflate:
		return nil, errs.New(errs.Internal, "a WebSocket with compression cannot be detached")
	case early > 0 || c.message.r != nil && !c.message.ended:
		return nil, errs.New(errs.ProtocolViolation, "the peer sent more before it was answered")
	}
	// A ping that came before may be being answered yet: by nobody but a peer that does not read, for longer than a moment.
	_ = c.cork.Conn.SetWriteDeadline(time.Now().Add(closeTime))
	c.pings.Wait()
	raw, err := NewRaw(c.ws.NetConn())
	if err == nil {
		err = c.cork.Flush()
	}
	_ = c.cork.Conn.SetWriteDeadline(time.Time{})
	if err != nil {
		return nil, errs.Wrap(errs.LaneLost, err, "writing to the peer")
	}
	detached := false
	c.closing.Do(func() { detached = true })
	if !detached {
		return nil, errs.New(errs.LaneLost, "the connection was closed")
	}
	c.message = limitedReader{}
	return raw, nil
}

// unread is how many bytes the library has read and not yet given out. It does not tell, nor lets it its reader be replaced, so this
// looks: at numbers only, and only where everything is as expected (a test sees to it with each version).
func unread(c *websocket.Conn) (int, error) {
	br := reflect.ValueOf(c).Elem().FieldByName("br")
	if !br.IsValid() || br.Type() != reflect.TypeFor[*bufio.Reader]() || br.IsNil() {
		return 0, errs.New(errs.Internal, "the WebSocket library reads in another way than is known")
	}
	r, w := br.Elem().FieldByName("r"), br.Elem().FieldByName("w")
	if !r.IsValid() || !w.IsValid() || r.Kind() != reflect.Int || w.Kind() != reflect.Int {
		return 0, errs.New(errs.Internal, "the standard library's bufio.Reader is another one than is known")
	}
	return int(w.Int() - r.Int()), nil
}

var _ io.ReadWriteCloser = (*Raw)(nil)
