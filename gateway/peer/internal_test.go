package peer

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
	"fairlead/shared/testbed"
	"fairlead/shared/ws"
)

const testSecret = "a secret of the replicas, long enough: 0123456789"

// started is a Peer as change makes it, until the test ends. It admits nobody.
func started(t *testing.T, change func(*Peer)) *Peer {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(file, []byte(testSecret), 0o600))
	p, err := New(Config{Listen: "127.0.0.1:0", SecretFile: file, Replica: "a/1", Name: "a", MaxMessage: 1 << 20, Metrics: metrics.NewSet(),
		Logger: slog.New(slog.NewTextHandler(&testbed.LogBuffer{}, nil)),
		Admit: func(context.Context, Call) (func(link.Conn, *link.Handshake), error) {
			return nil, errs.New(errs.TunnelUnknown, "admitted")
		}})
	require.NoError(t, err)
	if change != nil {
		change(p)
	}
	served := make(chan error, 1)
	go func() { served <- p.Serve() }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		assert.NoError(t, p.Shutdown(ctx))
		assert.NoError(t, <-served)
	})
	return p
}

// known is a connection of somebody who knows the secret.
func known(t *testing.T, p *Peer) *tls.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", p.Addr().String(), p.keys.client())
	require.NoError(t, err)
	t.Cleanup(func() { c.NetConn().Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	return c
}

// good is a call that is admitted.
func good() callHeader {
	id := link.ID{1, 2, 3}
	b := make([]byte, 37+66)
	b[0], b[37+1], b[37+3], b[37+7], b[37+33] = 1, link.Version, 1, 1, 2
	copy(b[37+10:], id[:])
	return callHeader{Call: Call{Tunnel: id, Token: "Bearer x", Client: "192.0.2.7", Via: "b"}, transfer: b}
}

// Whoever knows the secret is bound to the rules all the same.
func TestRequestsThatAreRefused(t *testing.T) {
	p := started(t, nil)
	req, _ := request(good())
	var b strings.Builder
	require.NoError(t, req.Write(&b))
	whole := strings.TrimSuffix(b.String(), "\r\n")
	for name, c := range map[string]struct {
		sent   string
		status int
		code   errs.Code
	}{
		"in order":         {whole, 404, errs.TunnelUnknown},
		"another address":  {strings.Replace(whole, path, "/healthz", 1), 404, errs.NotFound},
		"a query":          {strings.Replace(whole, path, path+"?x", 1), 404, errs.NotFound},
		"POST":             {strings.Replace(whole, "GET", "POST", 1), 400, errs.BadRequest},
		"HTTP/1.0":         {strings.Replace(whole, "HTTP/1.1", "HTTP/1.0", 1), 400, errs.BadRequest},
		"no upgrade":       {strings.Replace(whole, "Upgrade: websocket\r\n", "", 1), 400, errs.BadRequest},
		"no subprotocol":   {strings.Replace(whole, "Sec-Websocket-Protocol: "+link.Subprotocol+"\r\n", "", 1), 400, errs.BadRequest},
		"a bad key":        {strings.Replace(whole, "Sec-Websocket-Key: ", "Sec-Websocket-Key: x", 1), 400, errs.BadRequest},
		"two tunnels":      {whole + fieldTunnel + ": " + strings.Repeat("00", 16) + "\r\n", 400, errs.BadRequest},
		"two tokens":       {whole + fieldToken + ": Bearer y\r\n", 400, errs.BadRequest},
		"no tunnel":        {strings.Replace(whole, fieldTunnel, "X", 1), 400, errs.BadRequest},
		"not hexadecimal":  {strings.Replace(whole, "0102", "xx02", 1), 400, errs.BadRequest},
		"not base64":       {whole + fieldCertificate + ": ?\r\n", 400, errs.BadRequest},
		"no HTTP":          {"hello\r\n", 400, errs.BadRequest},
		"a body":           {whole + "Content-Length: 10\r\n", 400, errs.BadRequest},
		"an endless field": {whole + "X: " + strings.Repeat("x", 2*headerBuffer) + "\r\n", 400, errs.BadRequest},
	} {
		conn := known(t, p)
		go func() { _, _ = io.WriteString(conn, c.sent+"\r\n0123456789") }()
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err, name)
		var a errs.Answer
		require.NoError(t, json.NewDecoder(resp.Body).Decode(&a), name)
		require.Equal(t, c.status, resp.StatusCode, "%s: %+v", name, a)
		require.Equal(t, c.code.String(), a.Code, name)
		require.True(t, resp.Close, name)
	}
}

// Who knows the secret and says nothing, or drips, loses the connection in time.
func TestASlowRequestIsNotWaitedFor(t *testing.T) {
	p := started(t, func(p *Peer) { p.http.ReadTimeout = 50 * time.Millisecond })
	for _, first := range []string{"", "GET /v1/peer/tunnel HTTP/1.1\r\nHost:"} {
		conn := known(t, p)
		_, err := io.WriteString(conn, first)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, conn)
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the port has closed it")
	}
}

// A stranger that says nothing is dropped after the time of a handshake.
func TestAStrangerIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keyring{}
		state := &keys{}
		require.NoError(t, state.add([]byte(testSecret)))
		k.state.Store(state)
		set := metrics.NewSet()
		g := newGate(nil, gateConfig{tls: k.server(), to: slog.New(slog.NewTextHandler(&testbed.LogBuffer{}, nil)), log: logging.NewTamed(), refused: set.NewCounter("refused")})
		here, there := net.Pipe()
		begin := time.Now()
		require.True(t, g.enter(ws.NewCork(here)))
		_, err := there.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, handshake, time.Since(begin))
		synctest.Wait()
		require.Zero(t, g.taken)
		require.Empty(t, g.sources)
	})
}

// answering is somebody who knows the secret, and answers calls in his own way.
func answering(t *testing.T, p *Peer, answer func(c net.Conn, req *http.Request)) (address string) {
	l, err := tls.Listen("tcp", "127.0.0.1:0", p.keys.server())
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if req, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			answer(c, req)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String()
}

// An owner that answers nonsense is one that cannot be reached, and costs neither memory nor time.
func TestAnswersThatAreNone(t *testing.T) {
	p := started(t, nil)
	for name, say := range map[string]string{
		"nothing":           "",
		"no HTTP":           "hello\r\n\r\n",
		"another page":      "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"an unknown code":   "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n" + `{"code":"FL-X00000"}`,
		"an endless header": "HTTP/1.1 101 Switching Protocols\r\nX: " + strings.Repeat("x", 1<<20),
		"an endless body":   "HTTP/1.1 404 Not Found\r\n\r\n" + strings.Repeat("x", 1<<20),
		"another key":       "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
	} {
		address := answering(t, p, func(c net.Conn, _ *http.Request) { _, _ = io.WriteString(c, say) })
		c := good()
		_, err := p.Dial(t.Context(), address, "", c.Call, c.transfer)
		require.ErrorIs(t, err, errs.OwnerUnreachable, "%s: %v", name, err)
	}
}

// FuzzCall: no header makes the parser panic; what it accepts is within the limits, and is the same when it is written and read again.
func FuzzCall(f *testing.F) {
	for _, c := range []callHeader{good(), {}} {
		req, _ := request(c)
		var b strings.Builder
		require.NoError(f, req.Write(&b))
		f.Add([]byte(b.String()))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var h fasthttp.RequestHeader
		if h.Read(bufio.NewReaderSize(strings.NewReader(string(raw)), headerBuffer)) != nil {
			return
		}
		c, err := parseCall(h.PeekAll)
		if err != nil {
			require.ErrorIs(t, err, errs.BadRequest)
			return
		}
		require.NoError(t, c.check())
		if c.fits() == nil {
			require.NotZero(t, c.Tunnel)
		}
		var again fasthttp.RequestHeader
		for name, values := range c.header() {
			again.Set(name, values[0])
		}
		twice, err := parseCall(again.PeekAll)
		require.NoError(t, err)
		require.Equal(t, c, twice)
	})
}
