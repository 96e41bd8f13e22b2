package ws_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
)

// startTinyproxy starts a real proxy that wants a user name and password, and returns its address.
func startTinyproxy(t *testing.T) string {
	for range 5 { // it cannot choose a port and tell
		addr := closedPort(t)
		_, port, err := net.SplitHostPort(addr)
		require.NoError(t, err)
		dir := t.TempDir()
		path := filepath.Join(dir, "tinyproxy.conf")
		cfg := fmt.Sprintf("Port %s\nListen 127.0.0.1\nTimeout 60\nMaxClients 20\nAllow 127.0.0.1\nBasicAuth fair lead\nLogFile %q\n", port, filepath.Join(dir, "log"))
		require.NoError(t, os.WriteFile(path, []byte(cfg), 0o600))
		cmd := exec.Command("tinyproxy", "-d", "-c", path)
		require.NoError(t, cmd.Start())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = cmd.Wait()
		}()
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			<-ended
		})
		up := false
		require.Eventually(t, func() bool {
			select {
			case <-ended: // the port was taken meanwhile
				return true
			default:
			}
			c, err := net.Dial("tcp", addr)
			if up = err == nil; up {
				c.Close()
			}
			return up
		}, 20*time.Second, 5*time.Millisecond)
		if up {
			return addr
		}
	}
	t.Fatal("no port for tinyproxy")
	return ""
}

func fixed(scheme, user, addr string) func(*http.Request) (*url.URL, error) {
	u := &url.URL{Scheme: scheme, Host: addr}
	if name, password, ok := strings.Cut(user, ":"); ok {
		u.User = url.UserPassword(name, password)
	}
	return http.ProxyURL(u)
}

func talk(t *testing.T, d ws.Dialer, u *upgradeServer) {
	t.Helper()
	d.MaxMessage, d.TLS = maxMessage, u.tls
	c, err := d.Dial(context.Background(), u.url, nil, link.Subprotocol)
	require.NoError(t, err)
	defer c.Abort()
	require.NoError(t, c.Write([]byte("hello"), nil))
	require.NoError(t, c.Flush())
	require.Equal(t, "hello", string(message(t, c)))
	c.Close(errs.CloseNormal, "done")
}

// A real proxy that wants credentials gets them; without, or with wrong ones, that is told as such, and not as a failure of
// the gateway.
func TestARealProxyWithAuthentication(t *testing.T) {
	addr := startTinyproxy(t)
	for _, secure := range []bool{false, true} {
		u := serve(t, secure, echo)
		talk(t, ws.Dialer{Proxy: fixed("http", "fair:lead", addr)}, u)
		for user, want := range map[string]string{"": "was given none", "fair:wrong": "refused those that it was given"} {
			e := dialError(t, ws.Dialer{Proxy: fixed("http", user, addr), TLS: u.tls}, u.url)
			require.Equal(t, errs.ProxyAuth, e.Code, e.Error())
			require.Contains(t, e.Message, want)
			if user == "" {
				require.Contains(t, e.Message, "scheme Basic")
			}
			require.Contains(t, e.Message, addr)
			require.NotContains(t, e.Error(), "wrong")
			require.NotEmpty(t, e.Advice())
		}
	}
	e := dialError(t, ws.Dialer{Proxy: fixed("http", "fair:lead", addr)}, "ws://"+closedPort(t)+"/v1/tunnel")
	require.Equal(t, errs.ProxyFailed, e.Code)
	require.Contains(t, e.Message, "500 Unable to connect")
}

// misproxy is a proxy that answers everything with the same bytes, and then does with the connection what then does.
func misproxy(t *testing.T, answer string, then func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = c.Read(make([]byte, 4096))
				_, _ = io.WriteString(c, answer)
				if then != nil {
					then(c)
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

func hang(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

func flood(c net.Conn) {
	line := bytes.Repeat([]byte("X-Endless: "+strings.Repeat("x", 1000)+"\r\n"), 64)
	for {
		if _, err := c.Write(line); err != nil {
			return
		}
	}
}

// A proxy that hangs, answers garbage or never ends costs bounded time and memory, and is named.
func TestProxiesThatMisbehave(t *testing.T) {
	for name, c := range map[string]struct {
		answer string
		then   func(net.Conn)
		code   errs.Code
		want   string
	}{
		"hangs":            {"", hang, errs.ProxyFailed, "deadline exceeded"},
		"hangs half-way":   {"HTTP/1.1 200 OK\r\nX: ", hang, errs.ProxyFailed, "deadline exceeded"},
		"garbage":          {"SSH-2.0-OpenSSH_9.2\r\n", nil, errs.ProxyFailed, "did not connect to gw.example:443"},
		"closes":           {"", nil, errs.ProxyFailed, "EOF"},
		"endless header":   {"HTTP/1.1 200 OK\r\n", flood, errs.ProxyFailed, "without end"},
		"endless line":     {"HTTP/1.1 200 " + strings.Repeat("O", 1<<20), hang, errs.ProxyFailed, "without end"},
		"speaks too early": {"HTTP/1.1 200 OK\r\n\r\nhello there", hang, errs.ProxyFailed, "before it was spoken to"},
		"forbids":          {"HTTP/1.1 403 Filtered\r\nContent-Length: 12\r\n\r\nno\nsuch host", nil, errs.ProxyFailed, `"403 Filtered" instead of connecting to gw.example:443: "no"`},
		"try later":        {"HTTP/1.1 503 Busy\r\nRetry-After: 9\r\nContent-Length: 0\r\n\r\n", nil, errs.ProxyFailed, "503 Busy"},
		"wants NTLM":       {"HTTP/1.1 407 x\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n", nil, errs.ProxyAuth, "scheme Negotiate or NTLM"},
		"says no scheme":   {"HTTP/1.1 407 x\r\nContent-Length: 0\r\n\r\n", nil, errs.ProxyAuth, "no scheme"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := misproxy(t, c.answer, c.then)
			e := dialError(t, ws.Dialer{Proxy: fixed("http", "me:secret", addr), Timeout: time.Second}, "wss://gw.example/v1/tunnel")
			require.Equal(t, c.code, e.Code, e.Error())
			require.Contains(t, e.Error(), c.want)
			require.Contains(t, e.Message, addr)
			require.Less(t, len(e.Error()), 1000)
			require.NotContains(t, e.Error(), "secret")
			require.NotContains(t, e.Error(), base64.StdEncoding.EncodeToString([]byte("me:secret")))
			if name == "try later" {
				require.Equal(t, 9*time.Second, e.RetryAfter)
			}
		})
	}
	t.Run("is not there", func(t *testing.T) {
		addr := closedPort(t)
		e := dialError(t, ws.Dialer{Proxy: fixed("http", "", addr)}, "wss://gw.example/v1/tunnel")
		require.Equal(t, errs.DialFailed, e.Code)
		require.Contains(t, e.Message, addr)
	})
	t.Run("unknown scheme", func(t *testing.T) {
		e := dialError(t, ws.Dialer{Proxy: fixed("ftp", "me:secret", "proxy.example")}, "wss://gw.example/v1/tunnel")
		require.Equal(t, errs.ConfigInvalid, e.Code)
		require.NotContains(t, e.Error(), "secret")
	})
	t.Run("no URL", func(t *testing.T) {
		e := dialError(t, ws.Dialer{Proxy: func(*http.Request) (*url.URL, error) { return nil, errors.New("bad URL me:secret@") }}, "wss://gw.example/v1/tunnel")
		require.Equal(t, errs.ConfigInvalid, e.Code)
		require.NotContains(t, e.Error(), "secret")
	})
}

// A proxy that speaks TLS itself.
func TestAProxyOverTLS(t *testing.T) {
	inner, connected := connectProxy(t, 0)
	u, err := inner(nil)
	require.NoError(t, err)
	server, client := serverTLS(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer near.Close()
				far, err := net.Dial("tcp", u.Host)
				if err != nil {
					return
				}
				defer far.Close()
				wg.Go(func() { _, _ = io.Copy(far, near); far.Close() })
				_, _ = io.Copy(near, far)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	plain := serve(t, false, echo)
	plain.tls = client // the proxy's authority
	talk(t, ws.Dialer{Proxy: fixed("https", "", l.Addr().String())}, plain)
	require.Equal(t, 1, connected())

	e := dialError(t, ws.Dialer{Proxy: fixed("https", "", l.Addr().String())}, plain.url)
	require.Equal(t, errs.TLSFailed, e.Code)
	require.Contains(t, e.Message, "the proxy at "+l.Addr().String())
}

// The environment is read when it is asked for, and NO_PROXY counts.
func TestTheEnvironmentsProxy(t *testing.T) {
	ask := func(rawURL string) string {
		u, err := url.Parse(rawURL)
		require.NoError(t, err)
		via, err := ws.EnvironmentProxy()(&http.Request{URL: u})
		require.NoError(t, err)
		if via == nil {
			return ""
		}
		return via.String()
	}
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "REQUEST_METHOD"} {
		t.Setenv(name, "")
	}
	require.Empty(t, ask("https://gw.example/"))
	t.Setenv("HTTPS_PROXY", "http://me:pw@proxy.example:3128")
	t.Setenv("NO_PROXY", "inside.example,10.0.0.0/8,.svc")
	require.Equal(t, "http://me:pw@proxy.example:3128", ask("https://gw.example/"))
	for _, direct := range []string{"https://inside.example/", "https://a.inside.example:8443/", "https://10.1.2.3/", "https://gw.ns.svc/", "https://127.0.0.1/", "https://[::1]/"} {
		require.Empty(t, ask(direct), direct)
	}
	require.Empty(t, ask("http://gw.example/"), "HTTPS_PROXY is for wss")
	t.Setenv("HTTPS_PROXY", "http://other.example:1")
	require.Equal(t, "http://other.example:1", ask("https://gw.example/"), "nothing is remembered")
}

// SOCKS 5, which the environment may name.
func TestASOCKSProxy(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer near.Close()
				buf := make([]byte, 64)
				if _, err := io.ReadFull(near, buf[:3]); err != nil { // version, one method, none
					return
				}
				_, _ = near.Write([]byte{5, 0})
				if _, err := io.ReadFull(near, buf[:10]); err != nil { // CONNECT to an IPv4 address
					return
				}
				far, err := net.Dial("tcp", fmt.Sprintf("%v:%d", net.IP(buf[4:8]), int(buf[8])<<8|int(buf[9])))
				if err != nil {
					_, _ = near.Write([]byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0})
					return
				}
				defer far.Close()
				_, _ = near.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
				wg.Go(func() { _, _ = io.Copy(far, near); far.Close() })
				_, _ = io.Copy(near, far)
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	talk(t, ws.Dialer{Proxy: fixed("socks5", "", l.Addr().String())}, serve(t, true, echo))
	e := dialError(t, ws.Dialer{Proxy: fixed("socks5", "", l.Addr().String())}, "ws://"+closedPort(t)+"/")
	require.Equal(t, errs.ProxyFailed, e.Code)
}
