package ws

import (
	"errors"
	"io"

	"fairlead/shared/errs"
)

// Bytes is a plain byte stream over binary messages: what a WebSocket client without knowledge of the link speaks. An end
// of the peer is its close frame; WebSocket has no half-close.
type Bytes struct {
	c *Conn
	r io.Reader
}

// NewBytes uses a connection as a byte stream.
func NewBytes(c *Conn) *Bytes { return &Bytes{c: c} }

// Read reads across messages. It returns io.EOF after a normal close of the peer.
func (b *Bytes) Read(p []byte) (int, error) {
	for {
		if b.r == nil {
			r, err := b.c.NextReader()
			if err != nil {
				return 0, endOfBytes(err)
			}
			b.r = r
		}
		n, err := b.r.Read(p)
		if err == io.EOF {
			b.r, err = nil, nil
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

func endOfBytes(err error) error {
	if errors.Is(err, errs.Canceled) {
		return io.EOF
	}
	return err
}

// Write sends p as one message.
func (b *Bytes) Write(p []byte) (int, error) {
	if err := b.c.Write(p, nil); err != nil {
		return 0, err
	}
	if err := b.c.Flush(); err != nil {
		return 0, err
	}
	return len(p), nil
}
