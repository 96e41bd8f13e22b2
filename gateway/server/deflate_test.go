package server_test

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/fasthttp/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/gateway/server"
	"fairlead/shared/errs"
)

func deflating(c *server.Config) { c.Deflate = true }

// foreign opens a plain stream with a client that is not ours, which offers compression, over a connection that counts.
func (f *face) foreign(route string) (c *websocket.Conn, resp *http.Response, backend *net.TCPConn, counts *counted) {
	f.t.Helper()
	d := websocket.Dialer{EnableCompression: true, NetDial: func(network, addr string) (net.Conn, error) {
		c, err := net.Dial(network, addr)
		counts = &counted{Conn: c}
		return counts, err
	}}
	c, resp, err := d.DialContext(f.t.Context(), "ws://"+f.Addr().String()+"/v1/stream/"+route, http.Header{"Authorization": {token}})
	require.NoError(f.t, err)
	f.t.Cleanup(func() { c.Close() })
	return c, resp, <-f.backend, counts
}

// offer asks for an upgrade with an offer of compression, and leaves when it is answered.
func (f *face) offer(path, extensions string) *http.Response {
	f.t.Helper()
	c := f.idle()
	defer c.Close()
	_, err := io.WriteString(c, get(path, lines("Sec-WebSocket-Extensions: "+extensions)...))
	require.NoError(f.t, err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(f.t, err)
	return resp
}

type counted struct {
	net.Conn
	in, out atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.in.Add(int64(n))
	return n, err
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.out.Add(int64(n))
	return n, err
}

// Verifies: R6.4
func TestDeflateIsNegotiatedWhereItIsConfigured(t *testing.T) {
	f := start(t, deflating)
	c, resp, backend, counts := f.foreign("git")
	defer backend.Close()
	assert.Equal(t, "permessage-deflate; server_no_context_takeover; client_no_context_takeover", resp.Header.Get("Sec-WebSocket-Extensions"))
	assert.True(t, f.metric("fairlead_gateway_plain_streams_deflated_total 1"))
	line := []byte(strings.Repeat("a line of a log that says the same again and again\n", 4000))
	require.NoError(t, c.WriteMessage(websocket.BinaryMessage, line))
	got := make([]byte, len(line))
	_, err := io.ReadFull(backend, got)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(line, got))
	assert.Less(t, counts.out.Load(), int64(len(line)/20), "the client compressed")

	go func() {
		_, _ = backend.Write(line)
		_, _ = backend.Write([]byte("short"))
		_ = backend.CloseWrite()
	}()
	var back bytes.Buffer
	for back.Len() < len(line)+5 {
		_, p, err := c.ReadMessage()
		require.NoError(t, err)
		back.Write(p)
	}
	assert.Equal(t, string(line)+"short", back.String())
	assert.Less(t, counts.in.Load(), int64(len(line)/10), "and so did the gateway")
	_, _, err = c.ReadMessage()
	assert.True(t, websocket.IsCloseError(err, websocket.CloseNormalClosure), "%v", err)
	c.Close()
	f.eventually("over", f.slots.none)
}

// Verifies: R6.4
func TestDeflateIsOffByDefaultAndNeverForTunnels(t *testing.T) {
	f := start(t, nil)
	c, resp, backend, _ := f.foreign("git")
	defer backend.Close()
	assert.Empty(t, resp.Header.Get("Sec-WebSocket-Extensions"))
	assert.True(t, f.metric("fairlead_gateway_plain_streams_deflated_total 0"))
	require.NoError(t, c.WriteMessage(websocket.BinaryMessage, []byte("as it is")))
	_, err := io.ReadFull(backend, make([]byte, 8))
	require.NoError(t, err)
	c.Close()

	on := start(t, deflating)
	resp = on.offer("/v1/tunnel", "permessage-deflate")
	assert.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
	assert.Empty(t, resp.Header.Values("Sec-WebSocket-Extensions"))
}

func TestOffersOfDeflate(t *testing.T) {
	f := start(t, deflating)
	for offer, taken := range map[string]bool{
		"permessage-deflate":                         true,
		"permessage-deflate; client_max_window_bits": true,
		"permessage-deflate; client_max_window_bits=12; server_no_context_takeover":   true,
		`permessage-deflate ; client_max_window_bits="9" ;client_no_context_takeover`: true,
		"x-other, permessage-deflate; server_max_window_bits=10, permessage-deflate":  true,
		"permessage-deflate; server_max_window_bits=15":                               true,
		"permessage-deflate; server_max_window_bits=10":                               false,
		"permessage-deflate; server_max_window_bits":                                  false,
		"permessage-deflate; client_max_window_bits=16":                               false,
		"permessage-deflate; client_max_window_bits=08":                               false,
		"permessage-deflate; client_no_context_takeover=1":                            false,
		"permessage-deflate; client_no_context_takeover; client_no_context_takeover":  false,
		"permessage-deflate; level=9":                                                 false,
		"permessage-deflate;":                                                         false,
		"permessage-deflated":                                                         false,
		"x-webkit-deflate-frame":                                                      false,
		"":                                                                            false,
	} {
		resp := f.offer("/v1/stream/git", offer)
		require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode, offer)
		assert.Equal(t, taken, resp.Header.Get("Sec-WebSocket-Extensions") != "", offer)
		(<-f.backend).Close()
	}
}

// message is one frame of a client, with the bit of compression set.
func message(payload []byte) []byte {
	b := []byte{0xC2, 0x80 | 127}
	b = binary.BigEndian.AppendUint64(b, uint64(len(payload)))
	return append(append(b, 0, 0, 0, 0), payload...) // a mask of zeros
}

// tail is what a sender leaves out at the end of a message (RFC 7692 section 7.2.1).
var tail = []byte{0, 0, 0xff, 0xff}

// deflated is what a message of n zeros is, made by hand.
func deflated(t *testing.T, n int) []byte {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	require.NoError(t, err)
	zeros := make([]byte, 1<<16)
	for ; n > 0; n -= len(zeros) {
		_, err := w.Write(zeros[:min(n, len(zeros))])
		require.NoError(t, err)
	}
	require.NoError(t, w.Flush())
	return bytes.TrimSuffix(b.Bytes(), tail)
}

// A message is limited by what it is when it is inflated, and by what it is before; and costs no more memory than a piece of it.
//
// Verifies: R6.4
func TestBombsAreDefused(t *testing.T) {
	const limit = 1 << 20
	empty := bytes.Repeat([]byte{0, 0, 0, 0xff, 0xff}, 2*limit/5) // blocks that hold nothing
	for name, one := range map[string]struct {
		payload   []byte
		delivered int // bytes that reach the backend at most
		code      int
	}{
		"at the limit":      {deflated(t, limit), limit, 0},
		"over the limit":    {deflated(t, limit+1), limit, errs.CloseTooBig},
		"a gigabyte":        {bytes.TrimSuffix(bytes.Repeat(append(deflated(t, limit), tail...), 1<<30/limit), tail), limit, errs.CloseTooBig},
		"long and empty":    {empty, 0, errs.CloseTooBig},
		"no deflate":        {bytes.Repeat([]byte{0xff}, 100), 0, errs.CloseProtocol},
		"a broken distance": {[]byte{0x4b, 0x04, 0x62, 0xff, 0x13}, 100, errs.CloseProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, deflating)
			c, _, backend, _ := f.foreign("git")
			defer backend.Close()
			got := make(chan int64, 1)
			go func() {
				n, _ := io.Copy(io.Discard, backend)
				got <- n
			}()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				_, _ = c.NetConn().Write(message(one.payload)) // fails when the gateway has seen enough
				if one.code == 0 {
					_ = c.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
				}
			}()
			_, _, err := c.ReadMessage()
			if one.code == 0 {
				<-sent
				assert.Equal(t, int64(limit), <-got)
				return
			}
			var closed *websocket.CloseError
			if assert.ErrorAs(t, err, &closed, "told why") {
				assert.Equal(t, one.code, closed.Code, "%v", closed)
			}
			c.Close()
			<-sent
			assert.LessOrEqual(t, <-got, int64(one.delivered))
			runtime.ReadMemStats(&after)
			assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(8*limit), "all that was ever allocated meanwhile")
			f.eventually("over", f.slots.none)
		})
	}
}

// A route that does not allow compression, or whose bytes are encrypted, is not compressed.
func TestRoutesThatAreNotCompressedAreNotDeflated(t *testing.T) {
	f := start(t, deflating)
	for to, taken := range map[string]bool{"off-forward": false, "auto-forward": true, "on-forward": true, "auto-passthrough": false, "on-passthrough": true} {
		_, resp, backend, _ := f.foreign("as-" + to)
		assert.Equal(t, taken, resp.Header.Get("Sec-WebSocket-Extensions") != "", to)
		backend.Close()
	}
}
