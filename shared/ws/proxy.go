package ws

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"

	"fairlead/shared/errs"
)

// EnvironmentProxy reads HTTPS_PROXY, HTTP_PROXY and NO_PROXY now, and returns what they ask for, for Dialer.Proxy. Unlike
// http.ProxyFromEnvironment it does not remember what the first caller in the process found.
func EnvironmentProxy() func(*http.Request) (*url.URL, error) {
	choose := httpproxy.FromEnvironment().ProxyFunc()
	return func(r *http.Request) (*url.URL, error) { return choose(r.URL) }
}

// maxProxyAnswer bounds the header of a proxy's answer, in bytes.
const maxProxyAnswer = 16 << 10

// proxyFor is the proxy on the way to target, an http or https URL; nil: none.
func (a *dialAttempt) proxyFor(target *url.URL) (*url.URL, error) {
	if a.d.Proxy == nil {
		return nil, nil
	}
	u, err := a.d.Proxy(&http.Request{Method: http.MethodGet, URL: target, Host: target.Host, Header: http.Header{}})
	if err != nil {
		return nil, errs.New(errs.ConfigInvalid, "the egress proxy is not a URL that can be used") // err would show its password
	}
	return u, nil
}

// dialProxy makes a connection to addr by way of a proxy.
func (a *dialAttempt) dialProxy(ctx context.Context, via *url.URL, network, addr string) (net.Conn, error) {
	host, err := proxyHost(via)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(via.Scheme, "socks5") {
		return a.dialSOCKS(ctx, via, network, addr)
	}
	c, err := a.dialHost(ctx, network, host)
	if err != nil {
		return nil, err
	}
	if via.Scheme == "https" {
		if c, err = a.proxyTLS(ctx, c, via.Hostname()); err != nil {
			return nil, err
		}
	}
	if err := a.connect(c, via, addr); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// proxyHost is the host:port of a proxy.
func proxyHost(via *url.URL) (string, error) {
	port := via.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[via.Scheme]
	}
	if port == "" || via.Hostname() == "" {
		return "", errs.New(errs.ConfigInvalid, "a proxy %s://%s; allowed are http, https and socks5 with a host", via.Scheme, via.Host)
	}
	return net.JoinHostPort(via.Hostname(), port), nil
}

// proxyTLS speaks TLS with the proxy itself. The roots are those for the gateway.
func (a *dialAttempt) proxyTLS(ctx context.Context, c net.Conn, name string) (net.Conn, error) {
	cfg := &tls.Config{}
	if a.d.TLS != nil {
		cfg.RootCAs = a.d.TLS.RootCAs
	}
	cfg.MinVersion, cfg.ServerName, cfg.NextProtos = tls.VersionTLS12, name, []string{"http/1.1"}
	t := tls.Client(c, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		c.Close()
		return nil, errs.Wrap(errs.TLSFailed, err, "TLS with the proxy at %s", a.addr)
	}
	return &proxied{Conn: t, raw: c}, nil
}

// proxied is a connection inside TLS with a proxy. Its end must not wait for the proxy to take a TLS alert.
type proxied struct {
	*tls.Conn
	raw net.Conn
}

// Close ends the connection at once.
func (p *proxied) Close() error { return p.raw.Close() }

// connect asks the proxy for a connection to addr.
func (a *dialAttempt) connect(c net.Conn, via *url.URL, addr string) error {
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: addr}, Host: addr, Header: http.Header{}}
	if user := via.User; user != nil {
		password, _ := user.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)))
	}
	if err := req.Write(c); err != nil {
		return a.proxyFailed(err, addr)
	}
	bounded := &io.LimitedReader{R: c, N: maxProxyAnswer}
	r := bufio.NewReaderSize(bounded, 1<<10)
	resp, err := http.ReadResponse(r, req)
	switch {
	case err != nil && bounded.N <= 0:
		return a.proxyFailed(errors.New("an answer without end"), addr)
	case err != nil:
		return a.proxyFailed(err, addr)
	case resp.StatusCode/100 == 2 && r.Buffered() > 0:
		return a.proxyFailed(errors.New("it spoke before it was spoken to"), addr)
	case resp.StatusCode/100 == 2:
		return nil
	}
	return a.proxyRefused(resp, via, addr)
}

func (a *dialAttempt) proxyFailed(cause error, addr string) error {
	return errs.Wrap(errs.ProxyFailed, cause, "the proxy at %s did not connect to %s", a.addr, addr)
}

// proxyRefused explains an answer other than 2xx, with its first line.
func (a *dialAttempt) proxyRefused(resp *http.Response, via *url.URL, addr string) error {
	// Some proxies, tinyproxy among them, answer wrong credentials as a server would.
	if resp.StatusCode == http.StatusProxyAuthRequired || resp.StatusCode == http.StatusUnauthorized {
		why := "and was given none"
		if via.User != nil {
			why = "and refused those that it was given"
		}
		return errs.New(errs.ProxyAuth, "the proxy at %s wants credentials (%d, %s) %s", a.addr, resp.StatusCode, schemes(resp.Header), why)
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10)) // as much as came
	return errs.New(errs.ProxyFailed, "the proxy at %s answered %q instead of connecting to %s: %q", a.addr, clip(resp.Status), addr, firstLine(body)).
		After(retryAfter(resp, errs.Answer{}))
}

// schemes names the ways to authenticate that a proxy offers; this side knows Basic.
func schemes(h http.Header) string {
	var all []string
	for _, v := range h.Values("Proxy-Authenticate") {
		if name, _, _ := strings.Cut(v, " "); name != "" && len(all) < 4 {
			all = append(all, clip(name))
		}
	}
	if len(all) == 0 {
		return "of no scheme that it names"
	}
	return "scheme " + strings.Join(all, " or ")
}

// dialSOCKS goes through a SOCKS 5 proxy, which the environment may name.
func (a *dialAttempt) dialSOCKS(ctx context.Context, via *url.URL, network, addr string) (net.Conn, error) {
	d, err := proxy.FromURL(via, forward{a})
	if err != nil {
		return nil, errs.New(errs.ConfigInvalid, "the egress proxy %s://%s cannot be used", via.Scheme, via.Host)
	}
	c, err := d.(proxy.ContextDialer).DialContext(ctx, network, addr)
	if err != nil && a.tcp {
		err = a.proxyFailed(err, addr)
	}
	return c, err
}

// forward dials the proxy for the SOCKS library.
type forward struct{ a *dialAttempt }

func (f forward) Dial(network, addr string) (net.Conn, error) {
	return f.a.dialHost(context.Background(), network, addr)
}

func (f forward) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	return f.a.dialHost(ctx, network, addr)
}
