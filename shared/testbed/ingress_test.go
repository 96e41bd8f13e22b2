package testbed_test

import (
	"bufio"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/testbed"
)

type starter func(testbed.TB, testbed.IngressConfig) *testbed.Ingress

// ingresses are the programs.
func ingresses() map[string]starter {
	return map[string]starter{"nginx": testbed.NewNginx, "haproxy": testbed.NewHAProxy}
}

// upstream starts a server that upgrades to an echo of bytes, after a line of its name, and returns its address.
func upstream(t *testing.T, name string, secure *tls.Config) string {
	t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			_, _ = io.WriteString(w, name)
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+r.Header.Get("Upgrade")+"\r\n\r\n"+name+"\n")
		_, _ = io.Copy(conn, rw) // until the ingress ends it
	}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	if server.TLS = secure; secure != nil {
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// upgraded is a connection through an ingress.
type upgraded struct {
	net.Conn
	*bufio.Reader
	upstream string
	cookie   string
}

func (u *upgraded) Read(p []byte) (int, error) { return u.Reader.Read(p) }

// upgrade opens a connection through an ingress.
func upgrade(t *testing.T, addr string, secure *tls.Config, cookie string) *upgraded {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, patience)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(2*patience)))
	if secure != nil {
		secure.ServerName = "localhost"
		conn = tls.Client(conn, secure)
	}
	request := "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: echo\r\n"
	if cookie != "" {
		request += "Cookie: " + cookie + "\r\n"
	}
	_, err = io.WriteString(conn, request+"\r\n")
	require.NoError(t, err)
	u := &upgraded{Conn: conn, Reader: bufio.NewReader(conn)}
	answer, err := http.ReadResponse(u.Reader, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusSwitchingProtocols, answer.StatusCode)
	for _, c := range answer.Cookies() {
		u.cookie = c.Name + "=" + c.Value
	}
	line, err := u.ReadString('\n')
	require.NoError(t, err)
	u.upstream = strings.TrimSpace(line)
	return u
}

func (u *upgraded) echoes(t *testing.T, text string) {
	t.Helper()
	_, err := io.WriteString(u, text)
	require.NoError(t, err)
	got := make([]byte, len(text))
	_, err = io.ReadFull(u, got)
	require.NoError(t, err)
	require.Equal(t, text, string(got))
}

// ends waits until the ingress ends the connection.
func (u *upgraded) ends(t *testing.T) {
	t.Helper()
	_, err := u.ReadByte()
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
}

func fetch(t *testing.T, url string) (int, string, http.Header) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	answer, err := client.Get(url)
	require.NoError(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return answer.StatusCode, string(body), answer.Header
}

func eachIngress(t *testing.T, test func(t *testing.T, start starter)) {
	for name, start := range ingresses() {
		t.Run(name, func(t *testing.T) { test(t, start) })
	}
}

func TestAnIngressCarriesUpgradedConnections(t *testing.T) {
	ca, cert := testbed.NewTestCA(t)
	secure, err := ca.ServerTLS(cert)
	require.NoError(t, err)
	eachIngress(t, func(t *testing.T, start starter) {
		plain := start(t, testbed.IngressConfig{Upstreams: []string{upstream(t, "plain", nil)}})
		u := upgrade(t, plain.Addr(), nil, "")
		u.echoes(t, "through")
		assert.Equal(t, "plain", u.upstream)

		encrypted := start(t, testbed.IngressConfig{Certificate: cert, UpstreamCA: ca.CertFile(), Upstreams: []string{upstream(t, "secure", secure)}})
		u = upgrade(t, encrypted.Addr(), ca.ClientTLS(), "")
		u.echoes(t, "encrypted twice")
		assert.Equal(t, "secure", u.upstream)

		other, _ := testbed.NewTestCA(t)
		require.NoError(t, encrypted.Reload(t.Context(), func(c *testbed.IngressConfig) { c.UpstreamCA = other.CertFile() }))
		require.Eventually(t, func() bool { return refuses(t, encrypted.Addr(), ca.ClientTLS()) }, patience, time.Millisecond, "the upstream's certificate is verified")
	})
}

// refuses says whether an ingress answers a request with 502 or 503.
func refuses(t *testing.T, addr string, secure *tls.Config) bool {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: secure}, Timeout: patience}
	answer, err := client.Get("https://" + addr + "/")
	require.NoError(t, err)
	defer answer.Body.Close()
	return answer.StatusCode == http.StatusBadGateway || answer.StatusCode == http.StatusServiceUnavailable
}

func TestAnIngressCutsIdleConnections(t *testing.T) {
	eachIngress(t, func(t *testing.T, start starter) {
		i := start(t, testbed.IngressConfig{Upstreams: []string{upstream(t, "up", nil)}, Idle: 300 * time.Millisecond})
		began := time.Now()
		u := upgrade(t, i.Addr(), nil, "")
		u.echoes(t, "not idle yet")
		u.ends(t)
		assert.GreaterOrEqual(t, time.Since(began), 300*time.Millisecond)
	})
}

func TestAnIngressReloads(t *testing.T) {
	eachIngress(t, func(t *testing.T, start starter) {
		i := start(t, testbed.IngressConfig{Upstreams: []string{upstream(t, "first", nil)}, Grace: 300 * time.Millisecond})
		usual := i.Workers()
		require.Positive(t, usual)
		old := upgrade(t, i.Addr(), nil, "")
		old.echoes(t, "before")
		second := upstream(t, "second", nil)
		require.NoError(t, i.Reload(t.Context(), func(c *testbed.IngressConfig) { c.Upstreams = []string{second} }))
		require.Eventually(t, func() bool { return upgrade(t, i.Addr(), nil, "").upstream == "second" }, patience, time.Millisecond)
		old.ends(t)
		require.Eventually(t, func() bool { return i.Workers() == usual }, patience, time.Millisecond, "the old workers end")
	})
}

func TestAnIngressWithoutUpstreamsSaysSo(t *testing.T) {
	eachIngress(t, func(t *testing.T, start starter) {
		gone := testbed.NewProxy(t, "127.0.0.1:1")
		require.NoError(t, gone.Refuse())
		i := start(t, testbed.IngressConfig{Upstreams: []string{gone.Addr()}})
		status, _, _ := fetch(t, "http://"+i.Addr())
		assert.Contains(t, []int{502, 503}, status)

		require.NoError(t, i.Reload(t.Context(), func(c *testbed.IngressConfig) { c.DownPage = `"back" at $5, {soon} \o/` }))
		require.Eventually(t, func() bool {
			status, body, _ := fetch(t, "http://"+i.Addr())
			return status == 503 && body == `"back" at 5, {soon} \o/`
		}, patience, time.Millisecond)
	})
}

func TestAnIngressStopsAndStartsAgain(t *testing.T) {
	eachIngress(t, func(t *testing.T, start starter) {
		i := start(t, testbed.IngressConfig{Upstreams: []string{upstream(t, "up", nil)}})
		require.Error(t, i.Start(t.Context()), "it runs already")
		for _, end := range []func(){i.Stop, i.Kill} {
			u := upgrade(t, i.Addr(), nil, "")
			u.echoes(t, "before")
			end()
			u.ends(t)
			end()
			require.Zero(t, i.Workers())
			require.Error(t, i.Reload(t.Context(), nil))
			require.NoError(t, i.Start(t.Context()))
			upgrade(t, i.Addr(), nil, "").echoes(t, "after")
		}
	})
}

func TestHAProxyKeepsAClientAtItsUpstream(t *testing.T) {
	i := testbed.NewHAProxy(t, testbed.IngressConfig{Cookie: "REPLICA", Upstreams: []string{upstream(t, "a", nil), upstream(t, "b", nil)}})
	first := upgrade(t, i.Addr(), nil, "")
	require.NotEmpty(t, first.cookie)
	for range 4 {
		assert.Equal(t, first.upstream, upgrade(t, i.Addr(), nil, first.cookie).upstream)
	}
	seen := map[string]bool{}
	for range 4 {
		seen[upgrade(t, i.Addr(), nil, "").upstream] = true
	}
	assert.Len(t, seen, 2, "without a cookie it is each in turn")
}

func TestAnIngressRefusesWhatMakesNoSense(t *testing.T) {
	_, err := testbed.StartNginx(t.Context(), testbed.IngressConfig{Dir: t.TempDir()})
	require.ErrorContains(t, err, "Upstreams")
	_, err = testbed.StartHAProxy(t.Context(), testbed.IngressConfig{Dir: t.TempDir(), Upstreams: []string{"nowhere"}})
	require.ErrorContains(t, err, "upstream")
	_, err = testbed.StartNginx(t.Context(), testbed.IngressConfig{Dir: t.TempDir(), Upstreams: []string{"127.0.0.1:1"}, Cookie: "c"})
	require.ErrorContains(t, err, "HAProxy")
}

// proxied makes a client that goes through a proxy.
func proxied(t *testing.T, proxy string, trust *tls.Config) *http.Client {
	t.Helper()
	u, err := url.Parse(proxy)
	require.NoError(t, err)
	return &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, Proxy: http.ProxyURL(u), TLSClientConfig: trust}}
}

func TestTinyproxyConnects(t *testing.T) {
	ca, cert := testbed.NewTestCA(t)
	secure, err := ca.ServerTLS(cert)
	require.NoError(t, err)
	target := upstream(t, "target", secure)

	open := testbed.NewTinyproxy(t, testbed.TinyproxyConfig{})
	answer, err := proxied(t, open.URL("", ""), ca.ClientTLS()).Get("https://" + target)
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
	assert.Equal(t, 1, open.Connects(target))
	require.Error(t, open.Start(t.Context()), "it runs already")
	open.Stop()
	open.Stop()
	_, err = proxied(t, open.URL("", ""), ca.ClientTLS()).Get("https://" + target)
	require.Error(t, err)

	guarded := testbed.NewTinyproxy(t, testbed.TinyproxyConfig{User: "me", Password: "right"})
	_, err = proxied(t, guarded.URL("", ""), ca.ClientTLS()).Get("https://" + target)
	require.ErrorContains(t, err, "Proxy Authentication Required")
	_, err = proxied(t, guarded.URL("me", "wrong"), ca.ClientTLS()).Get("https://" + target)
	require.ErrorContains(t, err, "Unauthorized", "it answers 401 then, not 407")
	answer, err = proxied(t, guarded.URL("me", "right"), ca.ClientTLS()).Get("https://" + target)
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
	assert.Equal(t, 3, guarded.Connects(target))
}
