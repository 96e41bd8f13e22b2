package ws_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
)

// nameServer answers every question for A records with what answers returns, and knows no other records.
func nameServer(t *testing.T, answers func() []net.IP) *net.Resolver {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 512)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(reply(buf[:n], answers()), from)
		}
	})
	t.Cleanup(func() { pc.Close(); wg.Wait() })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", pc.LocalAddr().String())
	}}
}

// reply makes an answer to a question (RFC 1035 section 4).
func reply(query []byte, ips []net.IP) []byte {
	end := 12
	for query[end] != 0 {
		end += int(query[end]) + 1
	}
	end += 5
	if binary.BigEndian.Uint16(query[end-4:]) != 1 { // not A
		ips = nil
	}
	r := append([]byte(nil), query[:end]...)
	binary.BigEndian.PutUint16(r[2:], 0x8180)
	binary.BigEndian.PutUint16(r[6:], uint16(len(ips)))
	binary.BigEndian.PutUint32(r[8:], 0)
	for _, ip := range ips {
		r = append(r, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
		r = append(r, ip.To4()...)
	}
	return r
}

// swallow makes connections to ip:port hang: a listener whose queue is full drops what still comes.
func swallow(t *testing.T, ip [4]byte, port int) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: ip}))
	require.NoError(t, syscall.Listen(fd, 0))
	addr := fmt.Sprintf("%v:%d", net.IP(ip[:]), port)
	for range 10 {
		c, err := net.DialTimeout("tcp", addr, 100*time.Millisecond)
		if err != nil {
			return
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the queue does not fill")
}

// When a name has several addresses, a dead one does not hold up the others, and when its addresses change, the next attempt
// knows.
func TestAllAddressesOfANameAreTried(t *testing.T) {
	u := serve(t, false, echo)
	_, portText, err := net.SplitHostPort(u.addr)
	require.NoError(t, err)
	var port int
	_, err = fmt.Sscan(portText, &port)
	require.NoError(t, err)
	swallow(t, [4]byte{127, 0, 0, 2}, port)
	live, swallowed, closed := net.IPv4(127, 0, 0, 1), net.IPv4(127, 0, 0, 2), net.IPv4(127, 0, 0, 3)

	var mu sync.Mutex
	var answer []net.IP
	d := ws.Dialer{MaxMessage: maxMessage, Timeout: 5 * time.Second, Resolver: nameServer(t, func() []net.IP {
		mu.Lock()
		defer mu.Unlock()
		return answer
	})}
	dial := func(ips ...net.IP) error {
		mu.Lock()
		answer = ips
		mu.Unlock()
		c, err := d.Dial(context.Background(), "ws://gw.example.:"+portText+"/", nil, link.Subprotocol)
		if err == nil {
			c.Abort()
		}
		return err
	}
	require.NoError(t, dial(swallowed, live), "the second is tried beside the first")
	require.NoError(t, dial(closed, swallowed, live))
	require.NoError(t, dial(live))
	require.ErrorIs(t, dial(closed), errs.DialFailed, "the name leads elsewhere now")
	require.ErrorIs(t, dial(), errs.DNSFailed)
	require.NoError(t, dial(live), "and back")
	d.Timeout = 500 * time.Millisecond
	err = dial(swallowed, closed)
	require.ErrorIs(t, err, errs.DialFailed)
	require.ErrorContains(t, err, "127.0.0.3")
}

func TestIPv6Literals(t *testing.T) {
	l, err := net.Listen("tcp6", "[::1]:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	e := dialError(t, ws.Dialer{}, "ws://"+addr+"/v1/tunnel")
	require.Equal(t, errs.UpgradeFailed, e.Code, "the server was reached")
	require.Contains(t, e.Message, "418")
	require.NoError(t, (&ws.Dialer{}).Probe(context.Background(), "ws://"+addr+"/v1/tunnel"))
}

// An answer to the upgrade without end is bounded.
func TestAnAnswerWithoutEnd(t *testing.T) {
	addr := misproxy(t, "HTTP/1.1 101 Switching Protocols\r\n", flood)
	e := dialError(t, ws.Dialer{}, "ws://"+addr+"/")
	require.Equal(t, errs.UpgradeFailed, e.Code)
	require.ErrorContains(t, e, "more than")
}

// Cookies of answers are kept, of refusals too, and sent.
func TestCookiesAreKeptAndSent(t *testing.T) {
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	addr := answering(t, http.StatusServiceUnavailable, map[string]string{"Set-Cookie": "replica=two; Path=/"}, "no")
	_, err = (&ws.Dialer{}).Do(context.Background(), ws.Request{Endpoint: "ws://" + addr + "/v1/tunnel", Jar: jar})
	require.ErrorIs(t, err, errs.UpgradeFailed)
	cookies := jar.Cookies(&url.URL{Scheme: "http", Host: addr, Path: "/"})
	require.Len(t, cookies, 1)
	require.Equal(t, "two", cookies[0].Value)
}

// A probe goes the way of a tunnel and asks for readiness.
func TestProbes(t *testing.T) {
	type asked struct{ path, method string }
	requests := make(chan asked, 10)
	status, body := http.StatusOK, ""
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests <- asked{r.URL.Path, r.Method}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	probe := func(d ws.Dialer, path string) error {
		return d.Probe(context.Background(), "ws://"+l.Addr().String()+path)
	}
	require.NoError(t, probe(ws.Dialer{}, "/v1/tunnel"))
	require.Equal(t, asked{"/readyz", "GET"}, <-requests)
	require.NoError(t, probe(ws.Dialer{}, "/base/v1/tunnel"))
	require.Equal(t, asked{"/base/readyz", "GET"}, <-requests)
	proxy, connected := connectProxy(t, 0)
	require.NoError(t, probe(ws.Dialer{Proxy: proxy}, "/v1/tunnel"))
	require.Equal(t, 1, connected(), "by way of the proxy")
	status = http.StatusNotFound
	require.NoError(t, probe(ws.Dialer{}, "/v1/tunnel"), "an ingress may keep that path to itself")
	status = http.StatusBadGateway
	err = probe(ws.Dialer{}, "/v1/tunnel")
	require.ErrorIs(t, err, errs.UpgradeFailed)
	require.ErrorContains(t, err, "502 Bad Gateway")
	var answer []byte
	status, answer = errs.HTTP(errs.New(errs.Draining, "going away"))
	body = string(answer)
	require.ErrorIs(t, probe(ws.Dialer{}, "/v1/tunnel"), errs.Draining)

	require.ErrorIs(t, (&ws.Dialer{}).Probe(context.Background(), "ws://"+closedPort(t)+"/"), errs.DialFailed)
	silent := misproxy(t, "", hang)
	require.ErrorIs(t, (&ws.Dialer{Timeout: 100 * time.Millisecond}).Probe(context.Background(), "ws://"+silent+"/"), errs.UpgradeFailed)
	u := serve(t, true, echo)
	require.NoError(t, (&ws.Dialer{TLS: u.tls}).Probe(context.Background(), u.url))
	require.ErrorIs(t, (&ws.Dialer{}).Probe(context.Background(), u.url), errs.TLSFailed)
}
