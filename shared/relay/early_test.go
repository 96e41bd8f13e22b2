package relay_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
	"weak"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/relay"
)

// waiting is a connection that is watched.
type waiting struct {
	t     *testing.T
	app   half
	conn  net.Conn
	early *relay.Early
	ended chan error
}

func watch(t *testing.T, network string, limit int) *waiting {
	t.Helper()
	addr := "127.0.0.1:0"
	switch network {
	case "unix":
		addr = filepath.Join(t.TempDir(), "s")
	case "tcp6":
		addr = "[::1]:0"
	}
	l, err := net.Listen(network, addr)
	require.NoError(t, err)
	defer l.Close()
	app, err := net.Dial(network, l.Addr().String())
	require.NoError(t, err)
	conn, err := l.Accept()
	require.NoError(t, err)
	w := &waiting{t, app.(half), conn, relay.NewEarly(conn.(relay.Conn), limit), make(chan error, 1)}
	go func() { w.ended <- w.early.Watch() }()
	t.Cleanup(func() {
		app.Close()
		conn.Close()
		if w.early != nil {
			w.early.Stop()
		}
	})
	return w
}

// goes waits until the application is noticed to have gone.
func (w *waiting) goes(code errs.Code) {
	w.t.Helper()
	select {
	case err := <-w.ended:
		require.ErrorIs(w.t, err, code)
	case <-time.After(10 * time.Second):
		require.Fail(w.t, "nobody noticed")
	}
}

// stop ends the watch, and returns what was kept.
func (w *waiting) stop() []byte {
	w.t.Helper()
	w.early.Stop()
	require.NoError(w.t, <-w.ended)
	return w.early.Kept()
}

func networks() []string { return []string{"tcp", "tcp6", "unix"} }

// An application that resets or closes its connection is noticed, whatever it has done before.
//
// Verifies: R1.3
func TestAnApplicationThatGoesAwayWhileItWaits(t *testing.T) {
	for _, network := range networks() {
		t.Run(network, func(t *testing.T) {
			w := watch(t, network, 100)
			require.NoError(t, w.app.Close())
			w.goes(errs.Canceled)

			w = watch(t, network, 0)
			require.NoError(t, w.app.Close())
			w.goes(errs.Canceled)

			w = watch(t, network, 100)
			require.NoError(t, w.app.CloseWrite()) // it may still want to read
			select {
			case err := <-w.ended:
				require.Fail(t, "a half-closed connection is not gone", "%v", err)
			case <-time.After(100 * time.Millisecond): // several looks
			}
			require.NoError(t, w.app.Close())
			w.goes(errs.Canceled)
		})
	}
	for what, before := range map[string]func(c half){
		"nothing":      func(half) {},
		"a little":     func(c half) { _, _ = c.Write([]byte("abc")) },
		"all that fit": func(c half) { _, _ = c.Write(make([]byte, 100)) },
		"too much":     func(c half) { _, _ = c.Write(make([]byte, 5000)) },
		"an end":       func(c half) { _, _ = c.Write([]byte("abc")); _ = c.CloseWrite() },
	} {
		t.Run("reset after "+what, func(t *testing.T) {
			w := watch(t, "tcp", 100)
			before(w.app)
			abort(t, w.app)
			w.goes(errs.ConnectionBroken)
		})
	}
	t.Run("unix with bytes unread", func(t *testing.T) {
		w := watch(t, "unix", 100)
		_, err := w.conn.Write([]byte("abc"))
		require.NoError(t, err)
		require.NoError(t, w.app.Close())
		w.goes(errs.ConnectionBroken)
	})
}

// What was sent before an orderly close is not lost for it: without fairlead it would arrive too.
func TestBytesBeforeACloseAreKept(t *testing.T) {
	for _, network := range networks() {
		w := watch(t, network, 100)
		_, err := w.app.Write([]byte("fire and forget"))
		require.NoError(t, err)
		require.NoError(t, w.app.Close())
		require.Equal(t, "fire and forget", string(carried(t, w)), network)
	}
}

// collect is a tunnel whose gateway hands over what each stream brought, once that has ended.
func collect(t *testing.T) (tun *link.Tunnel, got chan []byte) {
	got = make(chan []byte, 10)
	return tunnel(t, func(s *link.Stream) {
		s.Accept()
		b, err := io.ReadAll(s)
		if err == nil {
			got <- b
			_ = s.CloseWrite()
		}
	}), got
}

// carried stops the watch, carries the connection and returns what arrived until the end of its direction.
func carried(t *testing.T, w *waiting) []byte {
	tun, got := collect(t)
	s, err := tun.Open(link.OpenRequest{Route: "git"})
	require.NoError(t, err)
	kept := w.stop()
	ended := make(chan error, 1)
	relay.StartAfter(s, w.conn.(relay.Conn), kept, func(err error) { ended <- err })
	select {
	case b := <-got:
		<-ended
		return b
	case err := <-ended:
		require.NoError(t, err)
		return <-got
	}
}

// Bytes that came early go first, the rest behind them, then the end: more than is kept, so that the kernel holds the rest,
// or so few that all wait here.
//
// Verifies: R1.3
func TestEarlyBytesComeFirstAndInOrder(t *testing.T) {
	for _, network := range networks() {
		for _, size := range []int{0, 1, 1000, 64 << 10, 300 << 10, 3 << 20} {
			w := watch(t, network, 64<<10)
			b := make([]byte, size)
			_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(b)
			wrote := make(chan error, 1)
			go func() {
				_, err := w.app.Write(b)
				if err == nil {
					err = w.app.CloseWrite()
				}
				wrote <- err
			}()
			got := carried(t, w)
			require.NoError(t, <-wrote)
			require.Equal(t, sha256.Sum256(b), sha256.Sum256(got), "%s, %d bytes", network, size)
			rest, err := io.ReadAll(w.app)
			require.NoError(t, err)
			require.Empty(t, rest, "the other direction ends in order")
		}
	}
}

// No more is kept than was said, and no memory is taken before anything has come.
func TestEarlyBytesAreBounded(t *testing.T) {
	const limit = 5_000
	w := watch(t, "unix", limit)
	require.Nil(t, w.early.Kept())
	sent := bytes.Repeat([]byte("0123456789"), limit) // as much as a Unix socket takes without a reader
	_, err := w.app.Write(sent)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return unread(t, w.conn) == len(sent)-limit }, 10*time.Second, time.Millisecond, "the rest stays in the kernel")
	kept := w.stop()
	require.Equal(t, sent[:limit], kept)
	require.LessOrEqual(t, cap(kept), limit)
	b := make([]byte, len(sent)-limit)
	_, err = io.ReadFull(w.conn, b) // the deadline that ended the watch does not stay
	require.NoError(t, err)
	require.Equal(t, sent[limit:], b)
}

// Early bytes are free memory once they are sent, however long the connection lasts.
func TestEarlyBytesAreLetGo(t *testing.T) {
	tun := tunnel(t, func(s *link.Stream) {
		s.Accept()
		_, _ = io.Copy(s, s)
		_ = s.CloseWrite()
	})
	const size = 4096 // no tiny object, which shares its memory
	w := watch(t, "unix", size)
	_, err := w.app.Write(make([]byte, size))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return unread(t, w.conn) == 0 }, 10*time.Second, time.Millisecond)
	s, err := tun.Open(link.OpenRequest{Route: "git"})
	require.NoError(t, err)
	kept := w.stop()
	require.NotEmpty(t, kept)
	memory := weak.Make(&kept[0])
	ended := make(chan error, 1)
	relay.StartAfter(s, w.conn.(relay.Conn), kept, func(err error) { ended <- err })
	kept, w.early = nil, nil
	_, err = io.ReadFull(w.app, make([]byte, size))
	require.NoError(t, err)
	require.Eventually(t, func() bool { runtime.GC(); return memory.Value() == nil }, 10*time.Second, time.Millisecond)
	require.NoError(t, w.app.CloseWrite())
	require.NoError(t, <-ended)
}

// A stream that is refused before the early bytes were taken ends the connection, and leaves nothing.
func TestARefusalWhileEarlyBytesAreSent(t *testing.T) {
	tun := tunnel(t, func(s *link.Stream) { s.Reset(errs.New(errs.RouteForbidden, "not yours")) })
	w := watch(t, "tcp", 1<<20)
	wrote := make(chan error, 1)
	go func() {
		_, err := w.app.Write(make([]byte, 1<<20))
		wrote <- err
	}()
	require.Eventually(t, func() bool { return unread(t, w.conn) == 0 }, 10*time.Second, time.Millisecond)
	s, err := tun.Open(link.OpenRequest{Route: "git"})
	require.NoError(t, err)
	ended := make(chan error, 1)
	relay.StartAfter(s, w.conn.(relay.Conn), w.stop(), func(err error) { ended <- err })
	require.ErrorIs(t, <-ended, errs.RouteForbidden)
	_, err = io.Copy(io.Discard, w.app)
	require.ErrorIs(t, errors.Join(err, <-wrote), syscall.ECONNRESET, "told once, to whichever asks first")
}

func TestOnlySocketsCanBeWatched(t *testing.T) {
	d, _ := duplexPair()
	require.Nil(t, relay.NewEarly(d, 100))
}
