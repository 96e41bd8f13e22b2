package ws_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
)

func dialError(t *testing.T, d ws.Dialer, endpoint string) *errs.Error {
	t.Helper()
	d.MaxMessage = maxMessage
	c, err := d.Dial(context.Background(), endpoint, nil, link.Subprotocol)
	require.Error(t, err)
	require.Nil(t, c)
	return errs.From(err)
}

// answering is a plain HTTP server that answers everything in one way.
func answering(t *testing.T, status int, header map[string]string, body string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for k, v := range header {
			w.Header().Set(k, v)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return l.Addr().String()
}

// closedPort is an address where nobody listens.
func closedPort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}

// Verifies: R2.1, R2.2
func TestDialNamesTheHopThatFailed(t *testing.T) {
	t.Run("DNS", func(t *testing.T) {
		nowhere := closedPort(t)
		resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", nowhere)
		}}
		e := dialError(t, ws.Dialer{DialTCP: (&net.Dialer{Resolver: resolver}).DialContext}, "ws://gateway.invalid:8443/v1/tunnel")
		require.Equal(t, errs.DNSFailed, e.Code)
		require.Equal(t, errs.Network, e.Category())
		require.Contains(t, e.Message, "gateway.invalid:8443")
	})
	t.Run("refused", func(t *testing.T) {
		addr := closedPort(t)
		e := dialError(t, ws.Dialer{}, "ws://"+addr+"/")
		require.Equal(t, errs.DialFailed, e.Code)
		require.Contains(t, e.Message, addr)
	})
	t.Run("unknown authority", func(t *testing.T) {
		u := serve(t, true, func(*ws.Conn) {})
		e := dialError(t, ws.Dialer{TLS: &tls.Config{RootCAs: x509.NewCertPool()}}, u.url)
		require.Equal(t, errs.TLSFailed, e.Code)
		require.Contains(t, e.Message, u.url)
		var unknown x509.UnknownAuthorityError
		require.ErrorAs(t, e, &unknown)
	})
	t.Run("expired certificate", func(t *testing.T) {
		addr, pool := expiredServer(t)
		e := dialError(t, ws.Dialer{TLS: &tls.Config{RootCAs: pool}}, "wss://"+addr+"/")
		require.Equal(t, errs.TLSFailed, e.Code)
		var invalid x509.CertificateInvalidError
		require.ErrorAs(t, e, &invalid)
		require.Equal(t, x509.Expired, invalid.Reason)
	})
	t.Run("silence", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		e := dialError(t, ws.Dialer{Timeout: 100 * time.Millisecond}, "ws://"+l.Addr().String()+"/")
		require.Equal(t, errs.UpgradeFailed, e.Code)
	})
	t.Run("no URL", func(t *testing.T) {
		require.Equal(t, errs.ConfigInvalid, dialError(t, ws.Dialer{}, "gateway:8443").Code)
	})
	t.Run("canceled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err := (&ws.Dialer{}).Dial(ctx, "ws://"+closedPort(t)+"/", nil, "")
		require.ErrorIs(t, err, context.Canceled)
	})
	t.Run("another subprotocol", func(t *testing.T) {
		u := serve(t, false, func(c *ws.Conn) { _, _ = c.NextReader() })
		_, err := (&ws.Dialer{MaxMessage: maxMessage}).Dial(context.Background(), u.url, nil, "other.v9")
		require.ErrorIs(t, err, errs.UpgradeFailed)
		require.ErrorContains(t, err, "other.v9")
	})
}

func expiredServer(t *testing.T) (addr string, roots *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	roots = x509.NewCertPool()
	roots.AddCert(cert)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.(*tls.Conn).Handshake()
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String(), roots
}

// An answer other than an upgrade names who gave it: status, server and first line.
//
// Verifies: R6.8
func TestFailedUpgradeNamesWhatAnswered(t *testing.T) {
	addr := answering(t, http.StatusForbidden, map[string]string{"Server": "corp-proxy/3.1", "Retry-After": "7"}, "Access blocked by policy 12\nsecond line")
	e := dialError(t, ws.Dialer{}, "ws://"+addr+"/v1/tunnel")
	require.Equal(t, errs.UpgradeFailed, e.Code)
	for _, want := range []string{"ws://" + addr + "/v1/tunnel", "403 Forbidden", "corp-proxy/3.1", "Access blocked by policy 12"} {
		require.Contains(t, e.Message, want)
	}
	require.NotContains(t, e.Message, "second line")
	require.Equal(t, 7*time.Second, e.RetryAfter)

	addr = answering(t, http.StatusBadGateway, nil, string(make([]byte, 5000)))
	e = dialError(t, ws.Dialer{}, "ws://"+addr+"/")
	require.Contains(t, e.Message, "a server that does not say its name")
	require.Less(t, len(e.Message), 1000)
}

// The gateway's own refusal comes through with its code and delay.
//
// Verifies: R2.9
func TestRefusalOfTheGatewayKeepsItsCode(t *testing.T) {
	for _, code := range []errs.Code{errs.TokenExpired, errs.TokenInvalid, errs.TokenMissing, errs.RouteForbidden, errs.TunnelLimit} {
		status, body := errs.HTTP(errs.New(code, "because").After(1500 * time.Millisecond))
		addr := answering(t, status, nil, string(body))
		e := dialError(t, ws.Dialer{}, "ws://"+addr+"/")
		require.Equal(t, code, e.Code)
		require.Equal(t, 1500*time.Millisecond, e.RetryAfter)
		require.Contains(t, e.Message, "because")
	}
}

// connectProxy is an egress proxy that knows CONNECT, and refuses with refuse if that is not 0.
func connectProxy(t *testing.T, refuse int) (proxy func(*http.Request) (*url.URL, error), connected func() int) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	var mu sync.Mutex
	count := 0
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				req, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil || req.Method != http.MethodConnect {
					return
				}
				if refuse != 0 {
					_, _ = io.WriteString(c, "HTTP/1.1 "+strconv.Itoa(refuse)+" "+http.StatusText(refuse)+"\r\nContent-Length: 0\r\n\r\n")
					return
				}
				far, err := net.Dial("tcp", req.Host)
				if err != nil {
					return
				}
				defer far.Close()
				mu.Lock()
				count++
				mu.Unlock()
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
				var both sync.WaitGroup
				both.Go(func() { _, _ = io.Copy(far, c); _ = far.(*net.TCPConn).CloseWrite() })
				_, _ = io.Copy(c, far)
				_ = c.(*net.TCPConn).CloseWrite()
				both.Wait()
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	u := &url.URL{Scheme: "http", Host: l.Addr().String()}
	return http.ProxyURL(u), func() int {
		mu.Lock()
		defer mu.Unlock()
		return count
	}
}

// A proxy that refuses is told from a gateway that does, with and without TLS.
func TestProxyThatRefuses(t *testing.T) {
	proxy, _ := connectProxy(t, http.StatusForbidden)
	for _, secure := range []bool{false, true} {
		u := serve(t, secure, func(*ws.Conn) {})
		e := dialError(t, ws.Dialer{Proxy: proxy, TLS: u.tls}, u.url)
		require.Equal(t, errs.ProxyFailed, e.Code)
		require.Contains(t, e.Message, "403 Forbidden")
		require.Contains(t, e.Message, u.addr)
	}
}

// Through a proxy that connects, everything is as without.
func TestDialThroughAProxy(t *testing.T) {
	for _, secure := range []bool{false, true} {
		proxy, connected := connectProxy(t, 0)
		u := serve(t, secure, echo)
		c, err := (&ws.Dialer{Proxy: proxy, TLS: u.tls, MaxMessage: maxMessage}).Dial(context.Background(), u.url, nil, link.Subprotocol)
		require.NoError(t, err)
		require.NoError(t, c.Write([]byte("hello"), nil))
		require.NoError(t, c.Flush())
		require.Equal(t, "hello", string(message(t, c)))
		c.Close(errs.CloseNormal, "done")
		c.Abort()
		require.Equal(t, 1, connected())
	}
}

func TestTheAnswersHeaderIsHandedOut(t *testing.T) {
	u := serve(t, false, func(c *ws.Conn) { _, _ = c.NextReader() })
	var got http.Header
	c, err := (&ws.Dialer{}).Do(t.Context(), ws.Request{Endpoint: u.url, Subprotocol: link.Subprotocol, Answer: func(h http.Header) { got = h }})
	require.NoError(t, err)
	require.Equal(t, link.Subprotocol, got.Get("Sec-WebSocket-Protocol"))
	c.Close(errs.CloseFrame(nil))
	c.Abort()
	c.Wait()
}
