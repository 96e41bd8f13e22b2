package server_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"fairlead/gateway/server"
	"fairlead/gateway/session"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
)

// idle is a connection that says nothing.
func (f *face) idle() net.Conn {
	f.t.Helper()
	c, err := net.Dial("tcp", f.Addr().String())
	require.NoError(f.t, err)
	f.t.Cleanup(func() { c.Close() })
	return c
}

func (f *face) strangers(n int) {
	f.t.Helper()
	f.eventually(fmt.Sprintf("%d strangers", n), func() bool { return f.metric(fmt.Sprintf("fairlead_gateway_strangers %d", n)) })
}

func TestWhoWaitsLongestMakesRoom(t *testing.T) {
	f := start(t, func(c *server.Config) { c.Strangers = 3 })
	first, second := f.idle(), f.idle()
	f.strangers(2)
	third := f.idle()
	f.strangers(3)
	resp, _ := f.ask("GET", "/healthz")
	assert.Equal(t, 200, resp.StatusCode)
	_, err := first.Read(make([]byte, 1))
	assert.ErrorIs(t, err, unix.ECONNRESET, "the first makes room")
	f.eventually("counted", func() bool { return f.metric(`fairlead_gateway_strangers_refused_total{cause="idle"} 1`) })
	assert.Contains(t, f.log.String(), "no room for more without a token")
	for _, c := range []net.Conn{second, third} { // the others are served
		_, err := io.WriteString(c, get("/healthz"))
		require.NoError(t, err)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		require.NoError(t, err)
		resp.Body.Close()
		assert.Equal(t, 200, resp.StatusCode)
	}
}

func TestWhoIsBeingServedDoesNotMakeRoom(t *testing.T) {
	asked, goOn := make(chan struct{}, 2), make(chan struct{})
	f := start(t, func(c *server.Config) {
		c.Strangers = 2
		c.Verify = func(context.Context, string, *x509.Certificate) (session.Identity, error) {
			asked <- struct{}{}
			<-goOn
			return session.Identity{}, errs.New(errs.TokenInvalid, "at last")
		}
	})
	codes := make(chan int, 3)
	ask := func(path string) {
		resp, _ := f.ask("GET", path)
		codes <- resp.StatusCode
	}
	go ask("/v1/tunnel")
	go ask("/v1/tunnel")
	<-asked
	<-asked
	go ask("/healthz")
	var dialled net.Conn = f.idle() // whoever comes now waits in the kernel's queue
	assert.Empty(t, codes)
	close(goOn)
	got := map[int]int{}
	for range 3 {
		got[<-codes]++
	}
	assert.Equal(t, map[int]int{401: 2, 200: 1}, got)
	assert.True(t, f.metric(`fairlead_gateway_strangers_refused_total{cause="idle"} 0`))
	dialled.Close()
}

func TestWhoHasShownATokenTakesNoPlace(t *testing.T) {
	f := start(t, func(c *server.Config) { c.Strangers = 2 })
	for range 4 {
		conn, backend := f.plain()
		defer backend.Close()
		defer conn.Abort()
		b := f.tunnelOnly()
		defer b()
	}
	f.strangers(0)
	assert.True(t, f.metric(`fairlead_gateway_strangers_refused_total{cause="idle"} 0`))
	assert.True(t, f.metric("fairlead_gateway_plain_streams 4"))
	assert.Equal(t, 4, f.sessions.Counts().Tunnels)
}

// tunnelOnly makes a tunnel without streams.
func (f *face) tunnelOnly() (end func()) {
	f.t.Helper()
	conn, err := (&ws.Dialer{MaxMessage: 1 << 20}).Dial(f.t.Context(), "ws://"+f.Addr().String()+"/v1/tunnel", http.Header{"Authorization": {token}}, link.Subprotocol)
	require.NoError(f.t, err)
	tunnel, lane, err := link.Connect(f.t.Context(), conn, link.Config{})
	require.NoError(f.t, err)
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		_ = lane.Run()
	}()
	return func() {
		tunnel.Close(nil)
		<-ran
		tunnel.Wait()
	}
}

func TestATokenAloneKeepsNoPlaceForever(t *testing.T) {
	f := start(t, func(c *server.Config) { c.Strangers = 2 })
	for range 2 { // upgraded, and not a word
		c := f.idle()
		_, err := io.WriteString(c, get("/v1/tunnel", lines()...))
		require.NoError(t, err)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		require.NoError(t, err)
		require.Equal(t, 101, resp.StatusCode)
	}
	f.strangers(2)
	end := f.tunnelOnly()
	defer end()
	assert.True(t, f.metric(`fairlead_gateway_strangers_refused_total{cause="idle"} 1`))
}

// admission is a limit on connections by address.
type admission struct {
	most atomic.Int64
	held atomic.Int64

	mu    sync.Mutex
	asked []string
}

func (a *admission) Admit(addr netip.Addr) (func(), error) {
	a.mu.Lock()
	a.asked = append(a.asked, addr.String())
	a.mu.Unlock()
	if a.held.Add(1) > a.most.Load() {
		a.held.Add(-1)
		return nil, errs.New(errs.HandshakeLimit, "too many connections").Within(2, 0, 2500*time.Millisecond).After(1500 * time.Millisecond)
	}
	return func() { a.held.Add(-1) }, nil
}

func (a *admission) last() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked[len(a.asked)-1]
}

// Verifies: R4.10
func TestConnectionsOfAnAddressAreLimited(t *testing.T) {
	limit := &admission{}
	limit.most.Store(2)
	f := start(t, func(c *server.Config) { c.Admit = limit.Admit })
	conn, backend := f.plain()
	defer backend.Close()
	defer conn.Abort()
	f.eventually("a stream does not count", func() bool { return limit.held.Load() == 0 })
	end := f.tunnelOnly()
	f.eventually("a tunnel does not count", func() bool { return limit.held.Load() == 0 })
	end()
	first, _ := f.idle(), f.idle()
	f.strangers(2)
	third, err := net.Dial("tcp", f.Addr().String())
	if err == nil { // the reset came after the handshake
		_, err = third.Read(make([]byte, 1))
		third.Close()
	}
	assert.ErrorIs(t, err, unix.ECONNRESET)
	assert.True(t, f.metric(`fairlead_gateway_strangers_refused_total{cause="address"} 1`))
	assert.Contains(t, f.log.String(), "connection refused")
	first.Close()
	f.strangers(1)
	resp, _ := f.ask("GET", "/healthz")
	assert.Equal(t, 200, resp.StatusCode)
	assert.Equal(t, "127.0.0.1", limit.last())
	f.strangers(1)
	assert.EqualValues(t, 1, limit.held.Load())
}

// Verifies: R4.10
func TestConnectionsBehindAProxyAreLimitedByTheClientsAddress(t *testing.T) {
	limit := &admission{}
	f := start(t, func(c *server.Config) {
		c.Admit = limit.Admit
		c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	})
	resp, _ := f.ask("GET", "/healthz")
	assert.Equal(t, 200, resp.StatusCode, "the proxy itself is not limited")
	resp, a := f.ask("GET", "/v1/tunnel", "Authorization", token, "X-Forwarded-For", "203.0.113.7")
	assert.Equal(t, 429, resp.StatusCode)
	assert.Equal(t, errs.HandshakeLimit.String(), a.Code)
	assert.Equal(t, "203.0.113.7", limit.last())
	assert.Equal(t, []string{"2", "0", "3", "2"}, []string{resp.Header.Get("X-RateLimit-Limit"), resp.Header.Get("X-RateLimit-Remaining"),
		resp.Header.Get("X-RateLimit-Reset"), resp.Header.Get("Retry-After")}, "whole seconds, rounded up")
	limit.most.Store(1)
	resp, _ = f.ask("GET", "/v1/tunnel", "Authorization", "Bearer wrong", "X-Forwarded-For", "203.0.113.7")
	assert.Equal(t, 401, resp.StatusCode)
	assert.EqualValues(t, 0, limit.held.Load())
}

// When file descriptors run out, the server goes on, and a stranger gives one back.
func TestFilesRunOut(t *testing.T) {
	f := start(t, nil)
	conn, backend := f.plain()
	defer conn.Abort()
	var was unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	for range 20 {
		f.idle()
	}
	f.strangers(20)
	most := firstFree(t)
	defer func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &was)) }()
	var more []net.Conn
	f.eventually("files run out", func() bool { // the clients are in this process too: some of the files are theirs
		most++
		require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(most), Max: was.Max}))
		c, err := net.Dial("tcp", f.Addr().String())
		if err == nil {
			more = append(more, c)
		}
		return !f.metric(`fairlead_gateway_strangers_refused_total{cause="files"} 0`)
	})
	f.eventually("it is said", func() bool { return strings.Contains(f.log.String(), "cannot accept a connection") })
	for _, c := range more {
		c.Close()
	}
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &was))
	resp, _ := f.ask("GET", "/healthz")
	assert.Equal(t, 200, resp.StatusCode)
	_, err := ws.NewBytes(conn).Write([]byte("still here"))
	require.NoError(t, err)
	_, err = io.ReadFull(backend, make([]byte, 10))
	require.NoError(t, err)
}

// firstFree is the smallest number that no open file has.
func firstFree(t *testing.T) int {
	t.Helper()
	fd, err := unix.Dup(0)
	require.NoError(t, err)
	unix.Close(fd)
	return fd
}

func TestShutdownDoesNotWaitForTheSilent(t *testing.T) {
	f := start(t, nil)
	for range 50 {
		f.idle()
	}
	f.strangers(50)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second) // they would be waited for longer
	defer cancel()
	require.NoError(t, f.Shutdown(ctx))
	f.strangers(0)
}

func TestWhatIsNotOurTLS(t *testing.T) {
	change, client := withTLS(t)
	f := start(t, change)
	try := func(change func(*tls.Config)) error {
		cfg := client.Clone()
		change(cfg)
		c, err := tls.Dial("tcp", f.Addr().String(), cfg)
		if err == nil {
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		return err
	}
	err := try(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 })
	require.ErrorContains(t, err, "protocol version")
	err = try(func(c *tls.Config) { c.NextProtos = []string{"h2"} })
	require.ErrorContains(t, err, "no application protocol")
	c := f.idle()
	_, err = io.WriteString(c, "GET /v1/tunnel HTTP/1.1\r\nHost: x\r\nAuthorization: "+token+"\r\n\r\n")
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.Equal(t, 400, resp.StatusCode)
	assert.Contains(t, string(body), "TLS")
	for _, hello := range []string{
		"\x80\x2e\x01\x03\x00\x00\x15\x00\x00\x00\x10", // SSL 2
		"\x16\x03\x00\x00\x05\x01\x00\x00\x01\x00",     // SSL 3, cut short
		"\x16\x03\x01\xff\xff",                         // a record of 65,535 bytes
		"\x15\x03\x03\x00\x02\x02\x28",                 // an alert
		"\x17\x03\x03\x00\x01x",                        // data before the handshake
		"\x16\x03\x03\x00\x04\x01\xff\xff\xff",         // a hello of 16 MB
	} {
		c := f.idle()
		_, err := io.WriteString(c, hello)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, c) // a close, after an alert or without
		assert.True(t, err == nil || errors.Is(err, unix.ECONNRESET), "%q: %v", hello, err)
	}
	resp, err = (&http.Transport{TLSClientConfig: client, DisableKeepAlives: true}).RoundTrip(mustRequest(t, "https://"+f.Addr().String()+"/healthz"))
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, 200, resp.StatusCode)
}

func mustRequest(t *testing.T, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	require.NoError(t, err)
	return req
}

// Who begins a TLS handshake and goes no further is waited for as long as for a request; one byte now and then does not
// help.
func TestAHandshakeThatDoesNotGoOnIsNotWaitedFor(t *testing.T) {
	t.Parallel() // it takes as long as the deadline
	change, _ := withTLS(t)
	f := start(t, change)
	silent, trickling := f.idle(), f.idle()
	begun := time.Now()
	hello := clientHello()
	over := make(chan struct{})
	go func() {
		defer close(over)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for _, b := range hello {
			if _, err := trickling.Write([]byte{b}); err != nil {
				return
			}
			<-tick.C
		}
	}()
	for _, c := range []net.Conn{silent, trickling} {
		_, err := io.Copy(io.Discard, c)
		assert.True(t, err == nil || errors.Is(err, unix.ECONNRESET), "%v", err)
	}
	assert.Less(t, time.Since(begun), 25*time.Second)
	trickling.Close()
	<-over
	f.strangers(0)
}
