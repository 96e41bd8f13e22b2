package app

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/url"
	"os"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
	"fairlead/shared/ws"
	"fairlead/sidecar/config"
	"fairlead/sidecar/tunnel"
)

// newPool makes the pool of tunnels from the configuration.
func (a *App) newPool() (*tunnel.Pool, error) {
	dialer, err := newDialer(a.cfg)
	if err != nil {
		return nil, err
	}
	a.warnPlaintext()
	return tunnel.New(tunnel.Config{
		Endpoints:      tunnel.InOrder(endpoints(a.cfg.Gateway.Endpoints)),
		Dialer:         dialer,
		ConnectTimeout: a.cfg.Gateway.ConnectTimeout,
		Token:          a.token.get,
		Link:           linkConfig(a.cfg),
		Min:            a.cfg.Tunnels.Min,
		Max:            a.cfg.Tunnels.Max,
		Mixed:          mixed(a.cfg.Listeners),
		Idle:           a.cfg.Tunnel.Idle,
		Backoff:        tunnel.Backoff{Base: a.cfg.Reconnect.Base, Cap: a.cfg.Reconnect.Cap, MaxAttempts: a.cfg.Reconnect.MaxAttempts},
		Reconnect:      a.cfg.Reconnect.Enabled,
		Waiting:        func() bool { return a.queue.Len() > 0 },
		Up: func() {
			a.wasReady.Store(true)
			a.queue.Release()
		},
		GaveUp:  func(err error) { a.queue.Fail(errs.Wrap(errs.GaveUp, err, "the sidecar has given up reconnecting")) },
		Logger:  a.log,
		Metrics: a.metrics.Set(),
	}), nil
}

func newDialer(cfg config.Config) (*ws.Dialer, error) {
	d := &ws.Dialer{Timeout: cfg.Gateway.ConnectTimeout, MaxMessage: int(cfg.Tunnel.MaxMessage), Tune: ws.Tune, Proxy: http.ProxyFromEnvironment}
	if file := cfg.Gateway.CAFile; file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, errs.Wrap(errs.KeyUnreadable, err, "gateway.ca_file")
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, errs.New(errs.KeyUnreadable, "gateway.ca_file: %s holds no PEM certificate", file)
		}
		d.TLS = &tls.Config{RootCAs: roots}
	}
	if g := cfg.Gateway; g.ClientCertFile != "" {
		if _, err := clientCertificate(g); err != nil {
			return nil, err
		}
		if d.TLS == nil {
			d.TLS = &tls.Config{}
		}
		d.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return clientCertificate(g) }
	}
	if cfg.Gateway.Proxy != "" {
		u, err := url.Parse(cfg.Gateway.Proxy)
		if err != nil {
			return nil, errs.New(errs.ConfigInvalid, "gateway.proxy is no URL")
		}
		d.Proxy = http.ProxyURL(u)
	}
	return d, nil
}

// clientCertificate reads the files anew: such certificates may live for hours only.
func clientCertificate(g config.Gateway) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(g.ClientCertFile, g.ClientKeyFile)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "gateway.client_cert_file and gateway.client_key_file")
	}
	return &pair, nil
}

// warnPlaintext says which endpoints are without TLS: the configuration has to ask for it, and nobody should overlook it.
func (a *App) warnPlaintext() {
	for _, e := range a.cfg.Gateway.Endpoints {
		if u, err := url.Parse(e); err == nil && u.Scheme == "ws" {
			a.log.Warn("no TLS to this endpoint: the token and everything else travel in plain text", logging.FieldEndpoint, e)
		}
	}
}

// endpoints completes the URLs with the path of tunnels.
func endpoints(urls []string) []string {
	full := make([]string, len(urls))
	for i, u := range urls {
		full[i] = u
		if p, err := url.Parse(u); err == nil {
			full[i] = p.JoinPath("v1/tunnel").String()
		}
	}
	return full
}

func linkConfig(cfg config.Config) link.Config {
	t := cfg.Tunnel
	return link.Config{Window: int(t.Window), MaxWindow: int(t.MaxWindow), Memory: int64(t.Memory), MaxMessage: int(t.MaxMessage), Heartbeat: t.Heartbeat}
}

// mixed says whether listeners differ in priority, so that bulk could be in the way of interactive streams.
func mixed(listeners []config.Listener) bool {
	for _, l := range listeners {
		if l.Priority != listeners[0].Priority {
			return true
		}
	}
	return false
}

// tokenSource reads the token anew each time, and watches its file.
type tokenSource struct {
	fixed logging.Secret
	file  string
}

// tokenPoll is how often the token's file is looked at: projected tokens are renewed minutes before they expire.
const tokenPoll = 5 * time.Second

func newTokenSource(g config.Gateway) (*tokenSource, error) {
	t := &tokenSource{fixed: g.Token, file: g.TokenFile}
	if t.file == "" && t.fixed == "" {
		return nil, errs.New(errs.TokenMissing, "neither gateway.token_file nor gateway.token is set")
	}
	return t, nil
}

func (t *tokenSource) get() (string, error) {
	if t.file == "" {
		return t.fixed.Reveal(), nil
	}
	b, err := os.ReadFile(t.file)
	if err != nil {
		return "", errs.Wrap(errs.TokenUnreadable, err, "gateway.token_file")
	}
	token := string(bytes.TrimSpace(b))
	if token == "" {
		return "", errs.New(errs.TokenUnreadable, "gateway.token_file: %s is empty", t.file)
	}
	return token, nil
}

// watch calls renew when the token changes, until ctx ends.
func (t *tokenSource) watch(ctx context.Context, renew func(string)) error {
	if t.file == "" {
		return nil
	}
	tick := time.NewTicker(tokenPoll)
	defer tick.Stop()
	last, _ := t.get() // an attempt tells what is wrong with it
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if token, err := t.get(); err == nil && token != last {
			last = token
			renew(token)
		}
	}
}
