package ws_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/stretchr/testify/require"
	"github.com/valyala/fasthttp"

	"fairlead/shared/link"
	"fairlead/shared/ws"
)

const maxMessage = 1 << 20

// upgradeServer is a fasthttp server whose upgraded connections go to handle.
type upgradeServer struct {
	url  string
	tls  *tls.Config // for clients
	addr string
}

func serverTLS(t testing.TB) (server, client *tls.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	server = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13, DynamicRecordSizingDisabled: true}
	return server, &tls.Config{RootCAs: pool}
}

// handlers counts hijack handlers. They begin when fasthttp likes, so a sync.WaitGroup would be added to while it is waited for.
type handlers struct {
	mu   sync.Mutex
	cond *sync.Cond
	n    int
}

func (h *handlers) add(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.n += n; h.cond != nil {
		h.cond.Broadcast()
	}
}

func (h *handlers) wait() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cond = sync.NewCond(&h.mu)
	for h.n > 0 {
		h.cond.Wait()
	}
}

func serve(t testing.TB, secure bool, handle func(*ws.Conn)) *upgradeServer {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	u := &upgradeServer{url: "ws://" + tcp.Addr().String() + "/", addr: tcp.Addr().String()}
	var l net.Listener = &ws.Listener{Listener: tcp}
	if secure {
		server, client := serverTLS(t)
		l, u.tls = tls.NewListener(l, server), client
		u.url = "wss://" + tcp.Addr().String() + "/"
	}
	up := websocket.FastHTTPUpgrader{ReadBufferSize: ws.ReadBufferSize, WriteBufferSize: ws.WriteBufferSize, WriteBufferPool: ws.WriteBuffers, Subprotocols: []string{link.Subprotocol}}
	var running handlers
	srv := &fasthttp.Server{KeepHijackedConns: true, ReadBufferSize: 16 << 10, Handler: func(ctx *fasthttp.RequestCtx) {
		_ = up.Upgrade(ctx, func(c *websocket.Conn) {
			running.add(1)
			defer running.add(-1)
			defer c.Close()
			conn, err := ws.New(c, maxMessage)
			if err == nil {
				handle(conn)
			}
		})
	}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() {
		_ = tcp.Close() // Shutdown knows it only once Serve has begun
		_ = srv.Shutdown()
		<-done
		running.wait()
	})
	return u
}

func (u *upgradeServer) dial(t testing.TB) *ws.Conn { return u.dialOver(t, nil) }

// dialOver is dial over a connection that the test makes.
func (u *upgradeServer) dialOver(t testing.TB, tcp func(ctx context.Context, network, addr string) (net.Conn, error)) *ws.Conn {
	d := ws.Dialer{TLS: u.tls, MaxMessage: maxMessage, DialTCP: tcp}
	c, err := d.Dial(context.Background(), u.url, http.Header{}, link.Subprotocol)
	require.NoError(t, err)
	return c
}

// tunnel connects a tunnel over a real WebSocket; the gateway's end serves streams with accept.
func tunnel(t testing.TB, secure bool, cfg link.Config, accept func(*link.Stream)) *link.Tunnel {
	return tunnelOver(t, secure, cfg, accept, nil)
}

// tunnelOver is tunnel over a connection that the test makes.
func tunnelOver(t testing.TB, secure bool, cfg link.Config, accept func(*link.Stream), tcp func(ctx context.Context, network, addr string) (net.Conn, error)) *link.Tunnel {
	gw := cfg
	gw.Accept = accept
	u := serve(t, secure, func(c *ws.Conn) {
		hs, err := link.Greet(context.Background(), c)
		if err != nil {
			return
		}
		tun, lane, err := hs.Accept(gw)
		if err != nil {
			return
		}
		_ = lane.Run()
		tun.Close(nil)
		tun.Wait()
	})
	tun, lane, err := link.Connect(context.Background(), u.dialOver(t, tcp), cfg)
	require.NoError(t, err)
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		_ = lane.Run()
	}()
	t.Cleanup(func() {
		tun.Close(nil)
		<-ran
		tun.Wait()
	})
	return tun
}

// slowTCP is a connection whose network takes rate bytes in a second, in pieces of a few milliseconds.
type slowTCP struct {
	net.Conn
	rate int
	next time.Time // when the network is free
}

func (c *slowTCP) Write(p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		n, err := c.Conn.Write(p[:min(len(p), max(c.rate/200, 4<<10))])
		total += n
		if err != nil {
			return total, err
		}
		p = p[n:]
		now := time.Now()
		if c.next.Before(now) {
			c.next = now
		}
		c.next = c.next.Add(time.Duration(n) * time.Second / time.Duration(c.rate))
		<-time.After(time.Until(c.next))
	}
	return total, nil
}
