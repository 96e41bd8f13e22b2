package server_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
)

// frame is a masked WebSocket frame; the mask is zero.
func frame(first byte, payload []byte) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	return append(append(b, 0, 0, 0, 0), payload...)
}

// upgraded is a WebSocket of which the test writes and reads the bytes.
func (f *face) upgraded(path string) (net.Conn, *bufio.Reader) {
	f.t.Helper()
	c := f.idle()
	_, err := io.WriteString(c, get(path, lines()...))
	require.NoError(f.t, err)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	require.NoError(f.t, err)
	require.Equal(f.t, 101, resp.StatusCode)
	return c, r
}

// closing reads frames until the close frame, or the connection's end: then the code is 0. It counts the pongs.
func closing(t *testing.T, r io.Reader) (code int, reason string, pongs int) {
	t.Helper()
	for {
		var head [2]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return 0, err.Error(), pongs
		}
		n := uint64(head[1] & 0x7f)
		size := map[uint64]int{126: 2, 127: 8}[n]
		if size > 0 {
			var long [8]byte
			if _, err := io.ReadFull(r, long[8-size:]); err != nil {
				return 0, err.Error(), pongs
			}
			n = binary.BigEndian.Uint64(long[:])
		}
		payload := make([]byte, n)
		if _, err := io.ReadFull(r, payload); err != nil {
			return 0, err.Error(), pongs
		}
		switch head[0] & 0xf {
		case 8:
			require.GreaterOrEqual(t, len(payload), 2)
			return int(binary.BigEndian.Uint16(payload)), string(payload[2:]), pongs
		case 10:
			pongs++
		}
	}
}

// badFrames break RFC 6455, or the limit on messages.
var badFrames = []struct {
	what  string
	bytes []byte
	code  int
}{
	{"text", frame(0x81, []byte("hello")), errs.CloseProtocol},
	{"not masked", []byte{0x82, 1, 'x'}, errs.CloseProtocol},
	{"reserved bit 1", frame(0xC2, []byte("x")), errs.CloseProtocol},
	{"reserved bit 2", frame(0xA2, []byte("x")), errs.CloseProtocol},
	{"reserved bit 3", frame(0x92, []byte("x")), errs.CloseProtocol},
	{"unknown opcode", frame(0x83, nil), errs.CloseProtocol},
	{"unknown control opcode", frame(0x8B, nil), errs.CloseProtocol},
	{"a continuation of nothing", frame(0x80, []byte("x")), errs.CloseProtocol},
	{"a message within a message", append(frame(0x02, []byte{1}), frame(0x82, []byte("x"))...), errs.CloseProtocol},
	{"a long ping", frame(0x89, make([]byte, 126))[:8], errs.CloseProtocol},
	{"a ping in fragments", frame(0x09, nil), errs.CloseProtocol},
	{"a close with one byte", frame(0x88, []byte{3}), errs.CloseNormal}, // taken as one without a code
	{"a close with a forbidden code", frame(0x88, []byte{0x03, 0xED}), errs.CloseProtocol},
	{"a close that is not UTF-8", frame(0x88, []byte{0x03, 0xE8, 0xFF}), errs.CloseProtocol},
	{"a length below zero", append([]byte{0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0}, 0, 0, 0, 0), errs.CloseTooBig},
	{"over 1 MiB", frame(0x82, append([]byte{1}, make([]byte, 1<<20)...)), errs.CloseTooBig},
	{"over 1 MiB in fragments", append(frame(0x02, append([]byte{1}, make([]byte, 1<<19)...)), frame(0x80, make([]byte, 1<<19))...), errs.CloseTooBig},
	{"over 1 MiB, announced as 4 EB", append([]byte{0x82, 0xFF, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, make([]byte, 1<<20)...), errs.CloseTooBig},
}

// A sidecar's connection before HELLO.
//
// Verifies: R6.6
func TestBadFramesBeforeTheHandshake(t *testing.T) {
	f := start(t, nil)
	for _, c := range badFrames {
		t.Run(c.what, func(t *testing.T) {
			conn, r := f.upgraded("/v1/tunnel")
			wrote := make(chan struct{})
			go func() {
				defer close(wrote)
				b := bytes.Clone(c.bytes)
				if len(b) > payloadAt {
					b[payloadAt] = helloType // else the message is refused for its type
				}
				_, _ = conn.Write(b)
			}()
			code, reason, _ := closing(t, r)
			assert.Equal(t, c.code, code, reason)
			conn.Close()
			<-wrote
		})
	}
}

const (
	helloType = 2         // the first byte of HELLO
	payloadAt = 2 + 8 + 4 // where the payload of a large frame begins
)

// A tunnel that runs.
//
// Verifies: R6.6
func TestBadFramesAfterTheHandshake(t *testing.T) {
	f := start(t, nil)
	for _, c := range badFrames {
		t.Run(c.what, func(t *testing.T) {
			conn, end := f.bare()
			defer end()
			wrote := make(chan struct{})
			go func() {
				defer close(wrote)
				b := bytes.Clone(c.bytes)
				if len(b) > payloadAt {
					b[payloadAt] = 0x80 // a type that is ignored: only the size is wrong
				}
				_, _ = conn.Write(b)
			}()
			code, reason, _ := closing(t, conn)
			assert.Equal(t, c.code, code, reason)
			conn.Close()
			<-wrote
		})
	}
}

// bare is a tunnel of which the test writes and reads the bytes.
func (f *face) bare() (conn net.Conn, end func()) {
	f.t.Helper()
	d := &ws.Dialer{MaxMessage: 1 << 20, Tune: func(c net.Conn) { conn = c }}
	c, err := d.Dial(f.t.Context(), "ws://"+f.Addr().String()+"/v1/tunnel", http.Header{"Authorization": {token}}, link.Subprotocol)
	require.NoError(f.t, err)
	tunnel, _, err := link.Connect(f.t.Context(), c, link.Config{})
	require.NoError(f.t, err)
	return conn, func() {
		c.Abort()
		tunnel.Close(nil)
	}
}

// Verifies: R6.6
func TestBadFramesOfPlainStreams(t *testing.T) {
	f := start(t, nil)
	for _, c := range badFrames {
		t.Run(c.what, func(t *testing.T) {
			conn, r := f.upgraded("/v1/stream/git")
			backend := <-f.backend
			over := make(chan struct{})
			go func() {
				defer close(over)
				_, _ = io.Copy(io.Discard, backend)
				backend.Close()
			}()
			wrote := make(chan struct{})
			go func() {
				defer close(wrote)
				_, _ = conn.Write(c.bytes)
			}()
			code, reason, _ := closing(t, r)
			assert.Equal(t, c.code, code, reason)
			conn.Close()
			<-wrote
			<-over
		})
	}
}

// Whoever upgrades and then does not come to the point is not waited for, whatever else it sends.
func TestWhoDoesNotSayHello(t *testing.T) {
	f := startHasty(t, 500*time.Millisecond, nil)
	hello := frame(0x82, append([]byte{helloType}, make([]byte, 200)...))
	for what, send := range map[string]func(c net.Conn) error{
		"nothing": func(net.Conn) error { return os.ErrClosed },
		"byte by byte": func() func(c net.Conn) error {
			tick, n := time.NewTicker(50*time.Millisecond), 0
			return func(c net.Conn) error {
				<-tick.C
				_, err := c.Write(hello[n : n+1])
				n = min(n+1, len(hello)-2)
				return err
			}
		}(),
		"empty fragments": func() func(c net.Conn) error {
			empty := append(frame(0x02, nil), bytes.Repeat(frame(0x00, nil), 1000)...)
			return func(c net.Conn) error {
				_, err := c.Write(empty)
				empty = bytes.Repeat(frame(0x00, nil), 1000)
				return err
			}
		}(),
		"pings": func(c net.Conn) error {
			_, err := c.Write(bytes.Repeat(frame(0x89, []byte("alive?")), 1000))
			return err
		},
		"pongs": func(c net.Conn) error { _, err := c.Write(bytes.Repeat(frame(0x8A, nil), 1000)); return err },
	} {
		t.Run(what, func(t *testing.T) {
			conn, r := f.upgraded("/v1/tunnel")
			wrote := make(chan struct{})
			go func() {
				defer close(wrote)
				for send(conn) == nil {
				}
			}()
			code, reason, pongs := closing(t, r)
			if code != 0 || what == "nothing" || what == "byte by byte" { // a flood's own bytes may reset the connection before the frame is read
				assert.Equal(t, errs.CloseProtocol, code, reason)
				assert.Contains(t, reason, errs.HandshakeLate.String())
			}
			if what == "pings" {
				assert.NotZero(t, pongs)
			}
			conn.Close()
			<-wrote
			f.strangers(0)
		})
	}
}

// Pings in any number are answered with some pongs, and streams go on.
func TestAFloodOfPings(t *testing.T) {
	f := start(t, nil)
	b := f.bystander(nil)
	conn, end := f.bare()
	defer end()
	stop, wrote := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(wrote)
		flood := bytes.Repeat(frame(0x89, []byte("alive?")), 1000)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := conn.Write(flood); err != nil {
				return
			}
		}
	}()
	b.measure(100)
	close(stop)
	<-wrote
	_, err := conn.Write(frame(0x88, nil))
	require.NoError(t, err)
	_, _, pongs := closing(t, conn)
	assert.NotZero(t, pongs)
	b.finish()
}

// A client that never reads makes its backend wait, not the gateway hold what the backend says.
func TestAClientThatNeverReads(t *testing.T) {
	f := start(t, nil)
	b := f.bystander(nil)
	conn, _ := f.upgraded("/v1/stream/git")
	backend := <-f.backend
	defer backend.Close()
	block, sent := make([]byte, 64<<10), 0
	var err error
	for err == nil {
		require.NoError(t, backend.SetWriteDeadline(time.Now().Add(time.Second)))
		var n int
		n, err = backend.Write(block)
		sent += n
		require.Less(t, sent, 64<<20, "the backend is made to wait")
	}
	require.True(t, errors.Is(err, os.ErrDeadlineExceeded), "%v", err)
	b.measure(50)
	conn.Close()
	b.finish()
	f.eventually("over", f.slots.none)
}
