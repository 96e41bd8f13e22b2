package ws_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
)

const (
	opContinued = 0x0
	opBinary    = 0x2
	opPing      = 0x9
	final       = 0x80
)

// frame is a WebSocket frame of a client, with a mask of its own; long: with more bytes for its length than it needs.
func frame(first byte, payload []byte, long bool) []byte {
	b := []byte{first}
	switch {
	case long:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(len(payload)))
	case len(payload) > 125:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(len(payload)))
	default:
		b = append(b, 0x80|byte(len(payload)))
	}
	mask := []byte{1, 2, 3, 4}
	b = append(b, mask...)
	for i, c := range payload {
		b = append(b, c^mask[i%4])
	}
	return b
}

// handmade is a client that writes its frames itself, after the upgrade and the gateway's CHALLENGE.
func handmade(t *testing.T, u *upgradeServer) (net.Conn, *bufio.Reader) {
	c, err := net.Dial("tcp", u.addr)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	if u.tls != nil {
		cfg := u.tls.Clone()
		cfg.ServerName = "127.0.0.1"
		c = tls.Client(c, cfg)
	}
	_, err = c.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: " + link.Subprotocol + "\r\n\r\n"))
	require.NoError(t, err)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
	challenge := make([]byte, 2+16+32)
	_, err = io.ReadFull(r, challenge)
	require.NoError(t, err)
	require.Equal(t, []byte{final | opBinary, 48, 1}, challenge[:3])
	return c, r
}

// helloMessage is HELLO of a resume, header included; its proof is none.
func helloMessage() []byte {
	b := make([]byte, 16+66)
	b[0] = 2
	p := b[16:]
	binary.BigEndian.PutUint16(p, link.Version)
	binary.BigEndian.PutUint32(p[2:], 1<<20)
	binary.BigEndian.PutUint32(p[6:], 1<<18)
	p[10] = 7  // the tunnel
	p[33] = 12 // the epoch
	return b
}

// After the handshake of the link the connection can be had back: what comes then comes as it is, whatever frames the handshake
// was in; unless the client has sent more already.
func TestDetach(t *testing.T) {
	hello := helloMessage()
	ping := frame(final|opPing, []byte("are you there"), false)
	for name, c := range map[string]struct {
		sent    []byte
		pong    bool
		refused bool
	}{
		"one frame":                   {sent: frame(final|opBinary, hello, false)},
		"a length of eight bytes":     {sent: frame(final|opBinary, hello, true)},
		"fragments":                   {sent: append(append(frame(opBinary, hello[:3], false), frame(opContinued, hello[3:20], true)...), frame(final|opContinued, hello[20:], false)...)},
		"an empty last fragment":      {sent: append(frame(opBinary, hello, false), frame(final|opContinued, nil, false)...)},
		"a ping before":               {sent: append(append([]byte(nil), ping...), frame(final|opBinary, hello, false)...), pong: true},
		"a ping between fragments":    {sent: append(append(frame(opBinary, hello[:9], false), ping...), frame(final|opContinued, hello[9:], false)...), pong: true},
		"a ping behind":               {sent: append(frame(final|opBinary, hello, false), ping...), refused: true},
		"a byte behind":               {sent: append(frame(final|opBinary, hello, false), 0x82), refused: true},
		"another message behind":      {sent: append(frame(final|opBinary, hello, false), frame(final|opBinary, make([]byte, 300), false)...), refused: true},
		"the last fragment is behind": {sent: append(frame(opBinary, hello, false), frame(final|opContinued, []byte("and more"), false)...)},
	} {
		for _, secure := range []bool{false, true} {
			t.Run(name+map[bool]string{true: " over TLS"}[secure], func(t *testing.T) {
				detached := make(chan error, 1)
				epoch := make(chan uint64, 1)
				u := serve(t, secure, func(conn *ws.Conn) {
					ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
					defer cancel()
					hs, err := link.Greet(ctx, conn)
					if err != nil {
						detached <- err
						return
					}
					epoch <- hs.Epoch()
					raw, err := conn.Detach()
					detached <- err
					if err != nil {
						conn.Close(errs.CloseFrame(err))
						conn.Drain()
						conn.Abort()
						return
					}
					conn.Close(errs.CloseNormal, "not mine any more") // must not be seen
					_, err = raw.Write([]byte("go on"))
					if err == nil {
						_, err = io.Copy(raw, raw)
					}
					if err == nil {
						err = raw.(interface{ CloseWrite() error }).CloseWrite()
					}
					_, _ = io.Copy(io.Discard, raw)
					raw.Close()
					detached <- err
				})
				client, r := handmade(t, u)
				_, err := client.Write(c.sent)
				require.NoError(t, err)
				require.EqualValues(t, 12, <-epoch)
				err = <-detached
				if c.refused {
					require.ErrorIs(t, err, errs.ProtocolViolation)
					head := make([]byte, 4)
					_, err := io.ReadFull(r, head)
					require.NoError(t, err)
					require.Equal(t, []byte{0x88, 1002 >> 8, 1002 & 0xff}, []byte{head[0], head[2], head[3]}, "the client is told")
					return
				}
				require.NoError(t, err)
				want := "go on"
				if c.pong {
					want = "\x8a\x0dare you there" + want
				}
				got := make([]byte, len(want))
				_, err = io.ReadFull(r, got)
				require.NoError(t, err)
				require.Equal(t, want, string(got))
				data := make([]byte, 300_000)
				_, _ = rand.Read(data)
				written := make(chan error, 1)
				go func() {
					_, err := client.Write(data)
					if err == nil {
						err = client.(interface{ CloseWrite() error }).CloseWrite()
					}
					written <- err
				}()
				back, err := io.ReadAll(r)
				require.NoError(t, err)
				require.Equal(t, data, back)
				require.NoError(t, <-written)
				client.Close()
				require.NoError(t, <-detached)
			})
		}
	}
}

// What is half read, closed or detached already cannot be detached.
func TestDetachRefusesWhatIsNotInOrder(t *testing.T) {
	done := make(chan struct{})
	u := serve(t, false, func(conn *ws.Conn) {
		defer close(done)
		r, err := conn.NextReader()
		require.NoError(t, err)
		_, err = r.Read(make([]byte, 1))
		require.NoError(t, err)
		_, err = conn.Detach()
		require.ErrorIs(t, err, errs.ProtocolViolation)
		rest, err := io.ReadAll(r)
		require.NoError(t, err)
		require.Equal(t, "ello", string(rest), "a refusal changes nothing")
		raw, err := conn.Detach()
		require.NoError(t, err)
		_, err = conn.Detach()
		require.ErrorIs(t, err, errs.LaneLost)
		raw.Close()
	})
	c := u.dial(t)
	require.NoError(t, c.Write([]byte("hello"), nil))
	require.NoError(t, c.Flush())
	<-done
	c.Abort()
}
