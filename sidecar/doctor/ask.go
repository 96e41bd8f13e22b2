package doctor

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"fairlead/shared/errs"
)

// question is an HTTP request by which the doctor finds out more than tunnels need to know.
type question struct {
	path     string // below the endpoint
	header   http.Header
	insecure bool // whoever answers is believed, whatever its certificate; nothing secret may be sent
	onlyTLS  bool // the handshake is enough: nothing is sent
}

// answered is what came back, as far as anything did.
type answered struct {
	err         error
	proxyStatus int                 // of the proxy's answer to CONNECT; 0: there was none
	tls         tls.ConnectionState // zero: no TLS
	status      int                 // 0: no answer
	text        string              // "502 Bad Gateway"
	server      string
	location    string
	date        time.Time // of the answer; zero: not told
	at          time.Time // by our clock, about when the answer was made
	line        string    // first of the body
}

const (
	maxAnswer = 64 << 10 // bytes that are read in all, certificates included
	maxBody   = 4 << 10  // bytes of the body that are looked at
)

// errEnough ends a handshake of which enough was seen.
var errEnough = errors.New("enough was seen")

// ask goes to the endpoint by the same proxy and, unless insecure, with the same TLS settings as tunnels do.
func (p *path) ask(ctx context.Context, q question) (a answered) {
	raw, err := p.r.dialTCP(ctx, p.first)
	if err != nil {
		a.err = err
		return a
	}
	defer raw.Close() // not through TLS, which would wait for the peer to take its alert
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	c, err := p.tunnelled(ctx, bounded{raw, io.LimitReader(raw, maxAnswer)}, &a)
	if err == nil && p.endpoint.Scheme == "wss" {
		c, err = p.handshake(ctx, c, q, &a)
	}
	if err == nil && !q.onlyTLS {
		err = p.exchange(c, q, &a)
	}
	a.err = err
	return a
}

// bounded is a connection of which no more is read than is good.
type bounded struct {
	net.Conn
	r io.Reader
}

func (b bounded) Read(p []byte) (int, error) { return b.r.Read(p) }

// tunnelled asks the proxy, if there is one, to connect.
func (p *path) tunnelled(ctx context.Context, c net.Conn, a *answered) (net.Conn, error) {
	if p.proxy == nil {
		return c, nil
	}
	switch p.proxy.Scheme {
	case "http":
	case "https":
		t := tls.Client(c, &tls.Config{ServerName: p.proxy.Hostname()})
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		c = t
	default:
		return nil, errs.New(errs.ProxyFailed, "a proxy of scheme %s is not asked", p.proxy.Scheme)
	}
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Host: p.target}, Host: p.target, Header: http.Header{}}
	if u := p.proxy.User; u != nil {
		password, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	if err := req.Write(c); err != nil {
		return nil, err
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, err
	}
	if a.proxyStatus = resp.StatusCode; resp.StatusCode != http.StatusOK {
		return nil, errs.New(errs.ProxyFailed, "the proxy answered %q", clip(resp.Status, 60))
	}
	return bounded{c, r}, nil
}

func (p *path) handshake(ctx context.Context, c net.Conn, q question, a *answered) (net.Conn, error) {
	cfg := &tls.Config{}
	if own := p.r.parts.Dialer.TLS; own != nil {
		cfg = own.Clone()
	}
	cfg.MinVersion, cfg.NextProtos, cfg.ServerName = tls.VersionTLS13, []string{"http/1.1"}, cmp.Or(cfg.ServerName, p.endpoint.Hostname())
	if q.insecure {
		cfg.InsecureSkipVerify, cfg.MinVersion, cfg.GetClientCertificate, cfg.Certificates = true, tls.VersionTLS10, nil, nil
	}
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		a.tls = s
		if q.onlyTLS {
			return errEnough
		}
		return nil
	}
	t := tls.Client(c, cfg)
	return t, t.HandshakeContext(ctx)
}

func (p *path) exchange(c net.Conn, q question, a *answered) error {
	header := q.header
	if header == nil {
		header = http.Header{"Connection": {"close"}}
	}
	req := &http.Request{Method: http.MethodGet, URL: p.web(q.path), Host: p.endpoint.Host, Header: header}
	sent := time.Now()
	if err := req.Write(c); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), req)
	if err != nil {
		return err
	}
	a.at = p.r.cfg.Now().Add(-time.Since(sent) / 2)
	a.status, a.text = resp.StatusCode, clip(resp.Status, 60)
	a.server, a.location = clip(resp.Header.Get("Server"), 60), clip(resp.Header.Get("Location"), 120)
	a.date, _ = http.ParseTime(resp.Header.Get("Date")) // zero if it is none
	if resp.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxBody)) // what came is enough
		line, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
		a.line = clip(strings.TrimSpace(line), 120)
	}
	return nil
}
