package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/testbed"
	"fairlead/shared/testbed/fault"
	"fairlead/sidecar/config"
)

// web serves HTTP with a handler, over TLS unless cfg is nil, and returns its address.
func web(t *testing.T, cfg *tls.Config, handler http.HandlerFunc) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	if cfg != nil {
		l = tls.NewListener(l, cfg)
	}
	srv := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-served
	})
	return addr
}

// Verifies: R2.5
func TestEveryHopWorks(t *testing.T) {
	p := newPatient(t)
	p.cfg.Size = 3 << 20
	g := p.gateway(&gateway{})
	r := p.examine()
	assert.Equal(t, []string{"configuration ok", "files ok", "token-file ok", "dns ok", "tcp ok", "proxy ok", "tls ok", "clock ok", "upgrade ok", "token ok",
		"tunnel ok", "round-trip ok", "transfer ok", "throughput ok", "policy skipped"}, r.statuses())
	assert.True(t, r.OK)
	assert.Zero(t, r.Exit)
	assert.Empty(t, r.Culprit)
	assert.Equal(t, "Every hop that was tried works.", r.Conclusion)
	assert.Equal(t, "TLS 1.3", r.hop(HopTLS).Data["version"])
	assert.Equal(t, "replica-1", r.hop(HopTunnel).Data["replica"])
	assert.EqualValues(t, 60, r.hop(HopTunnel).Data["resume_ttl_s"])
	for hop, bytes := range map[string]int64{HopTransfer: transferSize, HopThroughput: 3 << 20} {
		assert.Equal(t, bytes, r.hop(hop).Data["bytes"])
		assert.Equal(t, r.hop(hop).Data["sha256_sent"], r.hop(hop).Data["sha256_returned"])
	}
	assert.Equal(t, []string{link.ProbeRoute, link.ProbeRoute, link.ProbeRoute}, g.asked)
}

// fullBacklog is an address where the kernel answers nobody: one that listens, and whose queue is full.
func fullBacklog(t *testing.T) string {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, syscall.Listen(fd, 0))
	name, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	addr := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return addr
}

// Each thing that can be wrong on the way is found at its hop, is told with its own words, and ends what needs it.
//
// Verifies: R2.2, R2.3, R2.5, R2.6
func TestWhatIsWrongIsFoundAtItsHop(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, closed.Close())
	short := 700 * time.Millisecond // of probes that wait in vain
	page := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "<html>hello</html>") }
	server := func(p *patient, c testbed.CertificateConfig) *tls.Config {
		cert, err := p.ca.Issue(c)
		require.NoError(t, err)
		cfg, err := p.ca.ServerTLS(cert)
		require.NoError(t, err)
		return cfg
	}
	for name, c := range map[string]struct {
		ail    func(t *testing.T, p *patient)
		hop    string
		code   errs.Code
		exit   int
		detail string
		next   string // the hop that is not tried for it
	}{
		"configuration": {func(_ *testing.T, p *patient) {
			p.cfg.Load = func() (c config.Config, err error) { return c, errs.New(errs.ConfigUnreadable, "no such file") }
		}, HopConfiguration, errs.ConfigUnreadable, 2, "no such file", ""},
		"authority file": {func(_ *testing.T, p *patient) {
			p.cfg.Build = func(config.Config) (Parts, error) { return Parts{}, errs.New(errs.KeyUnreadable, "gateway.ca_file") }
			p.at("wss://" + web(t, nil, page))
		}, HopFiles, errs.KeyUnreadable, 2, "gateway.ca_file", HopTLS},
		"name": {func(_ *testing.T, p *patient) {
			p.dialer.Resolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no resolver here") }}
			p.at("wss://no-such-host.invalid/")
		}, HopDNS, errs.DNSFailed, 1, "cannot resolve no-such-host.invalid", HopTCP},
		"closed port": {func(_ *testing.T, p *patient) { p.at("wss://" + closed.Addr().String()) }, HopTCP, errs.DialFailed, 1, "refused", HopTLS},
		"black hole": {func(t *testing.T, p *patient) {
			p.cfg.Timeout = short
			p.at("wss://" + fullBacklog(t))
		}, HopTCP, errs.DialFailed, 1, "timeout", HopTLS},
		"silence": {func(t *testing.T, p *patient) {
			silent, err := fault.New(fault.Config{Target: p.gateway(&gateway{}).addr})
			require.NoError(t, err)
			t.Cleanup(silent.Close)
			silent.Stall()
			p.cfg.Timeout = short
			p.at("wss://" + silent.Addr())
		}, HopTLS, errs.TLSFailed, 1, "nothing answers the TLS handshake", HopUpgrade},
		"plain HTTP": {func(t *testing.T, p *patient) { p.at("wss://" + web(t, nil, page)) }, HopTLS, errs.TLSFailed, 1, "plain HTTP server", HopUpgrade},
		"expired": {func(t *testing.T, p *patient) {
			p.at("wss://" + web(t, server(p, testbed.CertificateConfig{NotBefore: time.Now().Add(-3 * time.Hour), NotAfter: time.Now().Add(-2 * time.Hour)}), page))
		}, HopTLS, errs.TLSFailed, 1, "expired 2h0m ago", HopUpgrade},
		"not yet valid": {func(t *testing.T, p *patient) {
			p.at("wss://" + web(t, server(p, testbed.CertificateConfig{NotBefore: time.Now().Add(3 * time.Hour), NotAfter: time.Now().Add(4 * time.Hour)}), page))
		}, HopTLS, errs.TLSFailed, 1, "valid only in 3h0m", HopUpgrade},
		"wrong name": {func(t *testing.T, p *patient) {
			p.at("wss://" + web(t, server(p, testbed.CertificateConfig{Hosts: []string{"other.example"}}), page))
		}, HopTLS, errs.TLSFailed, 1, "certificate is for other.example, not for 127.0.0.1", HopUpgrade},
		"wrong authority": {func(t *testing.T, p *patient) {
			other := newPatient(t)
			p.at("wss://" + web(t, server(other, testbed.CertificateConfig{}), page))
		}, HopTLS, errs.TLSFailed, 1, "authority that is not trusted here: CN=fairlead testbed CA", HopUpgrade},
		"TLS 1.2": {func(t *testing.T, p *patient) {
			cfg := server(p, testbed.CertificateConfig{})
			cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			p.at("wss://" + web(t, cfg, page))
		}, HopTLS, errs.TLSFailed, 1, "speaks no newer than TLS 1.2; tunnels need TLS 1.3", HopUpgrade},
		"client certificate": {func(t *testing.T, p *patient) {
			cfg := server(p, testbed.CertificateConfig{})
			cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, p.ca.Pool()
			p.at("wss://" + web(t, cfg, page))
		}, HopTLS, errs.ClientCertRefused, 3, "asks for a client certificate, and none is configured", HopUpgrade},
		"token file": {func(_ *testing.T, p *patient) {
			p.token = func() (string, error) { return "", errs.New(errs.TokenUnreadable, "gateway.token_file: no such file") }
			p.gateway(&gateway{refuse: func(token string) error {
				if token == "" {
					return errs.New(errs.TokenMissing, "the request carries no token")
				}
				return nil
			}})
		}, HopTokenFile, errs.TokenUnreadable, 3, "no such file", HopTunnel},
		"token": {func(_ *testing.T, p *patient) {
			p.gateway(&gateway{refuse: func(string) error { return errs.New(errs.TokenRevoked, "revoked yesterday") }})
		}, HopToken, errs.TokenRevoked, 3, "revoked yesterday", HopTunnel},
		"draining": {func(_ *testing.T, p *patient) {
			p.gateway(&gateway{refuse: func(string) error { return errs.New(errs.Draining, "takes no new tunnels") }})
		}, HopUpgrade, errs.Draining, 1, "takes no new tunnels", HopToken},
		"link": {func(_ *testing.T, p *patient) {
			p.gateway(&gateway{turn: errs.New(errs.VersionUnsupported, "speaks another version")})
		}, HopTunnel, errs.VersionUnsupported, 1, "speaks another version", HopRoundTrip},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPatient(t)
			c.ail(t, p)
			r := p.examine()
			require.False(t, r.OK, r.statuses())
			assert.Equal(t, c.hop, r.Culprit)
			failed := r.hop(c.hop)
			assert.Equal(t, Fail, failed.Status)
			assert.Equal(t, c.code.String(), failed.Code)
			assert.Contains(t, failed.Detail, c.detail)
			assert.NotEmpty(t, failed.Advice)
			assert.Equal(t, c.exit, r.Exit)
			assert.Contains(t, r.Conclusion, "The likely culprit is")
			if c.next != "" {
				skipped := r.hop(c.next)
				assert.Equal(t, Skipped, skipped.Status, r.statuses())
				assert.Contains(t, skipped.Detail, "not tried: needs ")
			}
		})
	}
}

// An ingress that answers instead of the gateway is named, with what it said and what that means.
//
// Verifies: R6.8, R2.2
func TestWhoAnswersInsteadIsNamed(t *testing.T) {
	for _, c := range []struct {
		status          int
		server, body    string
		detail, culprit string
	}{
		{502, "nginx/1.22.1", "<html>\n<head><title>502 Bad Gateway</title></head>", `an ingress (nginx/1.22.1) answered "502 Bad Gateway" instead of upgrading: the gateway behind it did not answer (first line: "<html>")`,
			"an ingress (nginx/1.22.1) answered, the gateway behind it did not"},
		{404, "nginx", "<html>", "it knows nothing at this address", "a rule that is missing in front of the gateway"},
		{403, "cloudflare", "Attention Required!", "it lets nobody through", "a CDN (cloudflare) refused, not the gateway"},
		{503, "", "<html><body><h1>503 Service Unavailable</h1>", "something that does not say its name answered", "the gateway behind it did not"},
		{302, "envoy", "", `it redirects to "https://login.example/"`, "a redirect in front of the gateway"},
		{200, "Apache/2.4", "<h1>It works!</h1>", `(first line: "<h1>It works!</h1>")`, "the endpoint's address"},
		{400, "awselb/2.0", "Bad\x1b[31m Request", `(first line: "Bad [31m Request")`, "does not pass upgrades on"},
		{429, "gunicorn", "slow down", "a server (gunicorn)", "a limit in front of the gateway"},
		{418, "teapot", "short and stout", "that is not an upgrade", "what answers in front of the gateway"},
	} {
		t.Run(fmt.Sprint(c.status), func(t *testing.T) {
			p := newPatient(t)
			cfg, err := p.ca.ServerTLS(p.cert)
			require.NoError(t, err)
			p.at("wss://" + web(t, cfg, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Server", c.server)
				if c.status == 302 {
					w.Header().Set("Location", "https://login.example/")
				}
				w.WriteHeader(c.status)
				_, _ = w.Write([]byte(c.body))
			}))
			r := p.examine()
			up := r.hop(HopUpgrade)
			assert.Equal(t, Fail, up.Status)
			assert.Equal(t, "FL-N104", up.Code)
			assert.Contains(t, up.Detail, c.detail)
			assert.Contains(t, r.Conclusion, c.culprit)
			assert.Equal(t, c.status, up.Data["status"])
			assert.Equal(t, c.server, up.Data["server"])
			assert.Equal(t, OK, r.hop(HopTLS).Status)
			assert.Equal(t, OK, r.hop(HopClock).Status)
			assert.Equal(t, Skipped, r.hop(HopToken).Status)
			assert.Equal(t, 1, r.Exit)
		})
	}
}

// Verifies: R2.6
func TestCertificatesThatExpireSoonAreWarnedOf(t *testing.T) {
	day := 24 * time.Hour
	for left, status := range map[time.Duration]Status{13 * day: Warn, 15 * day: OK} {
		p := newPatient(t)
		var err error
		p.cert, err = p.ca.Issue(testbed.CertificateConfig{Name: "gw", NotBefore: time.Now().Add(-60 * day), NotAfter: time.Now().Add(left)})
		require.NoError(t, err)
		cfg, err := p.ca.ServerTLS(p.cert)
		require.NoError(t, err)
		cfg.Certificates[0].Certificate = cfg.Certificates[0].Certificate[:1] // the authority's lives for a day
		p.at("wss://" + (&gateway{}).start(t, cfg).addr)
		r := p.examine()
		assert.Equal(t, status, r.hop(HopTLS).Status)
		assert.Zero(t, r.Exit, "a warning is no failure")
		assert.True(t, r.OK)
		if status == Warn {
			assert.Contains(t, r.hop(HopTLS).Detail, "certificate of gw expires in 12 days")
			assert.Contains(t, r.Conclusion, "1 warning")
		}
	}
}

// Verifies: R2.6
func TestAClockThatIsOffIsWarnedOf(t *testing.T) {
	for skew, c := range map[time.Duration]struct {
		status Status
		detail string
	}{
		0:                {OK, "apart"},
		time.Hour:        {Warn, "this machine's clock is 1h0m behind"},
		-2 * time.Minute: {Warn, "this machine's clock is 2m ahead of"},
	} {
		p := newPatient(t)
		p.gateway(&gateway{})
		p.cfg.Now = func() time.Time { return time.Now().Add(-skew) }
		r := p.examine()
		clock := r.hop(HopClock)
		assert.Equal(t, c.status, clock.Status, skew)
		assert.Contains(t, clock.Detail, c.detail)
		assert.Zero(t, r.Exit)
	}
}

// proxy is an egress proxy that wants a user and a password unless they are empty, and what it was asked for.
func proxy(t *testing.T, user, password string) (addr string, asked *[]string) {
	asked = new([]string)
	return web(t, nil, func(w http.ResponseWriter, r *http.Request) {
		*asked = append(*asked, r.Method+" "+r.Host)
		request := &http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}
		if u, p, _ := request.BasicAuth(); u != user || p != password {
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		c, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer c.Close()
		client, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer client.Close()
		_, _ = client.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n"))
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = copyAll(c, client)
		}()
		_, _ = copyAll(client, c)
		<-done
	}), asked
}

// copyAll copies, and ends the other direction too.
func copyAll(dst, src net.Conn) (int64, error) {
	defer dst.Close()
	defer src.Close()
	return io.Copy(dst, src)
}

// Verifies: R2.6
func TestTheEgressProxyIsNamed(t *testing.T) {
	for name, c := range map[string]struct {
		user   *url.Userinfo
		status Status
		detail string
	}{
		"right":   {url.UserPassword("me", "secret"), OK, "as gateway.proxy says; it connects to"},
		"missing": {nil, Fail, "wants a user name and password (407)"},
		"wrong":   {url.UserPassword("me", "s3cret-but-wrong"), Fail, "does not accept the user name and password of its URL (407)"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPatient(t)
			g := p.gateway(&gateway{})
			addr, asked := proxy(t, "me", "secret")
			via := &url.URL{Scheme: "http", Host: addr, User: c.user}
			p.dialer.Proxy, p.settings.Gateway.Proxy = http.ProxyURL(via), via.String()
			r := p.examine()
			assert.Equal(t, addr, r.hop(HopTCP).Target, "what is connected to is the proxy")
			res := r.hop(HopProxy)
			assert.Equal(t, c.status, res.Status)
			assert.Contains(t, res.Detail, c.detail)
			assert.Equal(t, "http://"+addr, res.Data["proxy"])
			assert.Equal(t, "CONNECT "+g.addr, (*asked)[0])
			assert.Equal(t, c.status == OK, r.OK, r.statuses())
			if c.status == Fail {
				assert.Equal(t, 407, res.Data["status"])
				assert.Contains(t, r.Conclusion, "credentials (407)")
				assert.Equal(t, Skipped, r.hop(HopTLS).Status)
			}
			assert.NotContains(t, fmt.Sprint(r.Report), "secret")
			assert.NotContains(t, fmt.Sprint(r.Report), "s3cret")
		})
	}
}

func TestWhyThereIsNoProxy(t *testing.T) {
	p := newPatient(t)
	p.gateway(&gateway{})
	p.dialer.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	assert.Contains(t, p.examine().hop(HopProxy).Detail, "neither gateway.proxy nor HTTPS_PROXY is set")
	p.environ["https_proxy"] = "http://proxy.example:3128"
	assert.Contains(t, p.examine().hop(HopProxy).Detail, "NO_PROXY exempts")
	p.dialer.Proxy = func(*http.Request) (*url.URL, error) { return nil, errors.New("http://me:secret@ is no URL") }
	r := p.examine()
	assert.False(t, r.OK)
	assert.NotContains(t, fmt.Sprint(r.hop(HopProxy)), "secret")
}

// A second endpoint is tried whatever the first one is like, and the routes by way of one that works.
func TestOtherEndpointsAreTriedToo(t *testing.T) {
	p := newPatient(t)
	g := p.gateway(&gateway{routes: map[string]string{}})
	p.listener("git", "127.0.0.1:1")
	p.at("wss://127.0.0.1:1/", "wss://"+g.addr+"/", "wss://"+g.addr+"/again/")
	r := p.examine()
	assert.Equal(t, HopTCP, r.Culprit)
	assert.Contains(t, r.Conclusion, "Another endpoint works.")
	tunnels := r.all(HopTunnel)
	require.Len(t, tunnels, 3)
	assert.Equal(t, []Status{Skipped, OK, OK}, []Status{tunnels[0].Status, tunnels[1].Status, tunnels[2].Status})
	require.Len(t, r.all(HopPolicy), 1)
	assert.Equal(t, "unknown", r.hop(HopPolicy).Data["decision"])
}

// An address that is dead is worth a look while another one of the name works, and no more.
func TestADeadAddressBesideALiveOne(t *testing.T) {
	p := newPatient(t)
	g := p.gateway(&gateway{})
	_, port, err := net.SplitHostPort(g.addr)
	require.NoError(t, err)
	p.at("wss://localhost:" + port)
	p.dialer.DialTCP = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if strings.HasPrefix(addr, "[::1]") {
			return nil, syscall.ECONNREFUSED
		}
		return (&net.Dialer{}).DialContext(ctx, network, strings.Replace(addr, "localhost", "127.0.0.1", 1))
	}
	r := p.examine()
	assert.True(t, r.OK, r.statuses())
	for _, res := range r.all(HopTCP) {
		want := OK
		if strings.HasPrefix(res.Target, "[::1]") {
			want = Warn
		}
		assert.Equal(t, want, res.Status, res.Target)
	}
}

// Who interrupts gets what is known, at once.
func TestInterruptedWithWhatIsKnown(t *testing.T) {
	p := newPatient(t)
	silent, err := fault.New(fault.Config{Target: p.gateway(&gateway{}).addr})
	require.NoError(t, err)
	t.Cleanup(silent.Close)
	silent.Stall()
	p.at("wss://"+silent.Addr(), "wss://"+silent.Addr()+"/2")
	p.listener("git", "127.0.0.1:1")
	ctx, cancel := context.WithCancel(t.Context())
	p.cfg.Each = func(r Result) {
		if r.Hop == HopTCP {
			cancel()
		}
	}
	r := report{t, Run(ctx, p.cfg)}
	assert.Equal(t, errs.ExitInterrupted, r.Exit)
	assert.False(t, r.OK)
	assert.Contains(t, r.Conclusion, "Interrupted")
	assert.Equal(t, []string{"configuration ok", "files ok", "token-file ok", "dns ok", "tcp ok"}, r.statuses()[:5])
	assert.False(t, slices.Contains(r.statuses(), "tls ok"))
	assert.Equal(t, Skipped, r.hop(HopPolicy).Status)
}

// All probes together are bounded, however many there are.
func TestAllProbesTogetherAreBounded(t *testing.T) {
	p := newPatient(t)
	p.cfg.Timeout = 100 * time.Millisecond
	backlog := fullBacklog(t)
	for i := range 20 {
		p.settings.Gateway.Endpoints = append(p.settings.Gateway.Endpoints, fmt.Sprintf("wss://%s/%d", backlog, i))
	}
	r := p.examine()
	assert.Equal(t, 1, r.Exit)
	last := r.all(HopDNS)[19]
	assert.Equal(t, Skipped, last.Status)
	assert.Contains(t, last.Detail, "all probes together have 1.2s, which are over")
}
