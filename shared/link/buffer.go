package link

import (
	"sync"
	"sync/atomic"
)

// MaxPayload is the most that a DATA frame carries, in bytes: with the frame's and WebSocket's headers a message then
// fills eight TLS records of 16 KiB and no sliver of a ninth.
const MaxPayload = 128<<10 - 32

// Buffer is pooled memory for payload. Whoever holds it owns it; Release gives it back. The sender of a stream holds the
// buffers it read from the socket until the peer has consumed them, so nothing is copied to be able to resend it.
type Buffer struct {
	b    []byte // full capacity of its class
	refs int32  // holders: the queue it is in, and the lane that is writing it; guarded by the tunnel's mutex once queued
}

// Bytes is the whole memory of the buffer, to be read into.
func (b *Buffer) Bytes() []byte { return b.b }

// A byte typed at a terminal must not pin 128 KiB until it is acknowledged, so small contents live in small classes.
const (
	classSmall  = 512
	classMedium = 8 << 10
	classLarge  = 32 << 10
)

// pools is shared by all tunnels of the process: it is a cache, not state.
var pools = [4]sync.Pool{
	{New: func() any { return newBuffer(classSmall) }},
	{New: func() any { return newBuffer(classMedium) }},
	{New: func() any { return newBuffer(classLarge) }},
	{New: func() any { return newBuffer(MaxPayload) }},
}

// held counts buffers outside the pools; tests assert that it returns to where it was.
var held atomic.Int64

func newBuffer(size int) *Buffer { return &Buffer{b: make([]byte, size)} }

func classOf(n int) int {
	switch {
	case n <= classSmall:
		return 0
	case n <= classMedium:
		return 1
	case n <= classLarge:
		return 2
	}
	return 3
}

// GetBuffer returns a buffer of at least n bytes, n at most MaxPayload.
func GetBuffer(n int) *Buffer {
	b := pools[classOf(n)].Get().(*Buffer)
	b.refs = 1
	held.Add(1)
	return b
}

// Release drops one hold on the buffer.
func (b *Buffer) Release() {
	b.refs--
	switch {
	case b.refs > 0:
		return
	case b.refs < 0:
		panic("link: buffer released twice")
	}
	held.Add(-1)
	pools[classOf(len(b.b))].Put(b)
}

// fit returns a buffer whose class suits n bytes of content at b.b[:n]: b itself, or a smaller copy, releasing b.
func (b *Buffer) fit(n int) *Buffer {
	if classOf(n) == classOf(len(b.b)) {
		return b
	}
	small := GetBuffer(n)
	copy(small.b, b.b[:n])
	b.Release()
	return small
}
