package ws

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// corked is a cork that holds, over TCP, and what arrives at the other end.
func corked(t *testing.T) (*Cork, net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	far, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { near.Close(); far.Close() })
	return NewCork(near), far
}

// arrived reads what has come, without waiting for more.
func arrived(t *testing.T, c net.Conn) string {
	require.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	b, err := io.ReadAll(c)
	var timeout net.Error
	require.True(t, errors.As(err, &timeout) && timeout.Timeout(), "%v", err)
	return string(b)
}

// Before it holds, a cork passes everything on; then nothing leaves before a flush, and all of it does in order.
func TestCorkHoldsUntilItIsFlushed(t *testing.T) {
	c, far := corked(t)
	_, err := c.Write([]byte("handshake"))
	require.NoError(t, err)
	require.Equal(t, "handshake", arrived(t, far))
	c.hold()
	for _, s := range []string{"one ", "two ", "three"} {
		n, err := c.Write([]byte(s))
		require.NoError(t, err)
		require.Equal(t, len(s), n)
	}
	require.Equal(t, 13, c.Buffered())
	require.Empty(t, arrived(t, far))
	require.NoError(t, c.Flush())
	require.Zero(t, c.Buffered())
	require.Equal(t, "one two three", arrived(t, far))
	require.NoError(t, c.Flush(), "nothing to do")
}

// A cork that is full writes what it has and holds the rest.
func TestFullCorkWrites(t *testing.T) {
	c, far := corked(t)
	c.hold()
	sent := make([]byte, 2*corkSize+100)
	for i := range sent {
		sent[i] = byte(i / 251)
	}
	got := make([]byte, len(sent))
	read := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(far, got)
		read <- err
	}()
	n, err := c.Write(sent)
	require.NoError(t, err)
	require.Equal(t, len(sent), n)
	require.Equal(t, 100, c.Buffered())
	require.NoError(t, c.Flush())
	require.NoError(t, <-read)
	require.Equal(t, sent, got)
}

// Writers, flushers and the end of the connection may come at once; whole writes stay whole.
func TestCorkTakesConcurrentWritersFlushersAndClose(t *testing.T) {
	c, far := corked(t)
	c.hold()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			line := []byte{byte('a' + w), byte('a' + w), byte('a' + w), '\n'}
			for range 1000 {
				_, _ = c.Write(line)
			}
		})
		wg.Go(func() {
			for range 200 {
				_ = c.Flush()
				_ = c.Buffered()
			}
		})
	}
	wg.Wait()
	require.NoError(t, c.Flush())
	wg.Go(func() { _ = c.Close() })
	wg.Go(func() { _, _ = c.Write([]byte("late")); _ = c.Flush() })
	got, err := io.ReadAll(far)
	require.NoError(t, err)
	wg.Wait()
	require.GreaterOrEqual(t, len(got), 16_000)
	for i := 0; i < 16_000; i += 4 {
		require.Equal(t, string([]byte{got[i], got[i], got[i], '\n'}), string(got[i:i+4]))
	}
}

// brokenConn takes half of the first write and everything after it.
type brokenConn struct {
	net.Conn
	wrote [][]byte
}

func (b *brokenConn) Write(p []byte) (int, error) {
	b.wrote = append(b.wrote, append([]byte(nil), p...))
	if len(b.wrote) == 1 {
		return len(p) / 2, io.ErrShortWrite
	}
	return len(p), nil
}

// After a write that failed half-way nothing follows: the peer would take it for the rest.
func TestCorkWritesNothingAfterAFailure(t *testing.T) {
	b := &brokenConn{}
	c := NewCork(b)
	c.hold()
	_, err := c.Write([]byte("a frame"))
	require.NoError(t, err)
	require.ErrorIs(t, c.Flush(), io.ErrShortWrite)
	_, err = c.Write([]byte("a close frame"))
	require.ErrorIs(t, err, io.ErrShortWrite)
	require.ErrorIs(t, c.Flush(), io.ErrShortWrite)
	require.Len(t, b.wrote, 1)
	require.NoError(t, c.CloseWrite(), "no TCP connection: nothing to do")
}

// The deadline of one control frame must not end a later flush.
func TestCorkIgnoresTheLibrarysWriteDeadlines(t *testing.T) {
	c, far := corked(t)
	require.NoError(t, c.SetWriteDeadline(time.Now().Add(-time.Second)))
	_, err := c.Write([]byte("x"))
	require.Error(t, err, "before it holds, deadlines count")
	require.NoError(t, c.SetWriteDeadline(time.Time{}))
	c.hold()
	require.NoError(t, c.SetWriteDeadline(time.Now().Add(-time.Second)))
	_, err = c.Write([]byte("y"))
	require.NoError(t, err)
	require.NoError(t, c.Flush())
	require.Equal(t, "y", arrived(t, far))
}

func TestFindCork(t *testing.T) {
	c, far := corked(t)
	found, ok := findCork(c)
	require.True(t, ok)
	require.Same(t, c, found)
	_, ok = findCork(far)
	require.False(t, ok)
}
