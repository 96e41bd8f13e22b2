package ws

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"fairlead/shared/errs"
)

// Probe asks whether something that may be a gateway is at endpoint: it goes the way of Dial, by the same proxy and TLS
// settings, and then asks for readiness, which costs the gateway no authentication. Whatever answers with less than 500
// passes, since not every ingress lets that path through. Errors carry the code of the hop that failed.
func (d *Dialer) Probe(ctx context.Context, endpoint string) error {
	ctx, cancel := d.bounded(ctx)
	defer cancel()
	a := dialAttempt{d: d, endpoint: endpoint}
	resp, body, err := a.ask(ctx)
	if a.stop != nil {
		a.stop()
	}
	switch {
	case err != nil:
		return a.explain(ctx, nil, err)
	case resp.StatusCode < 500:
		return nil
	}
	if e := own(resp, body); e != nil {
		return e
	}
	return errs.New(errs.UpgradeFailed, "%s answered %q when asked for its readiness: %q", endpoint, clip(resp.Status), firstLine(body))
}

// ask gets the endpoint's readiness, and at most 1 KiB of the body.
func (a *dialAttempt) ask(ctx context.Context) (*http.Response, []byte, error) {
	u, err := url.Parse(a.endpoint)
	if err != nil {
		return nil, nil, err
	}
	secure := u.Scheme == "wss"
	port := u.Port()
	if port == "" {
		port = map[bool]string{true: "443", false: "80"}[secure]
	}
	c, err := a.dial(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return nil, nil, err
	}
	raw := c
	defer raw.Close() // not through TLS, which would wait for the peer to take its alert
	if secure {
		cfg := a.d.tlsConfig()
		if cfg.ServerName == "" {
			cfg.ServerName = u.Hostname()
		}
		t := tls.Client(c, cfg)
		if a.tlsErr = t.HandshakeContext(ctx); a.tlsErr != nil {
			return nil, nil, a.tlsErr
		}
		c = t
	}
	u.Scheme, u.RawPath, u.RawQuery = "", "", ""
	u.Path = strings.TrimSuffix(strings.TrimSuffix(u.Path, "v1/tunnel"), "/") + "/readyz"
	req := &http.Request{Method: http.MethodGet, URL: u, Host: u.Host, Header: http.Header{"Connection": {"close"}}}
	if err := req.Write(c); err != nil {
		return nil, nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), req)
	if err != nil {
		return nil, nil, err
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	return resp, body, nil
}
