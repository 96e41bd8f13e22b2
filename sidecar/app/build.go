package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"

	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
	"fairlead/shared/ws"
	"fairlead/sidecar/config"
	"fairlead/sidecar/listener"
	"fairlead/sidecar/queue"
	"fairlead/sidecar/spool"
	"fairlead/sidecar/tunnel"
)

// newPool makes the pool of tunnels from the configuration.
func (a *App) newPool() (*tunnel.Pool, error) {
	c, err := a.poolConfig(a.cfg)
	if err != nil {
		return nil, err
	}
	c.Memory, c.Logger, c.Metrics = a.learned, a.log, a.metrics.Set()
	c.Waiting = func() bool { return a.queue.Len() > 0 }
	c.Up = func() {
		a.wasReady.Store(true)
		a.queue.Release()
		if a.spool != nil {
			a.spool.Kick()
		}
	}
	c.GaveUp = func(err error) {
		err = errs.Wrap(errs.GaveUp, err, "the sidecar has given up reconnecting")
		a.queue.Fail(err)
		if a.config().Reconnect.Exit {
			a.ask(err)
		}
	}
	return tunnel.New(c), nil
}

// poolConfig is what may change at run time.
func (a *App) poolConfig(cfg config.Config) (tunnel.Config, error) {
	dialer, err := newDialer(cfg)
	if err != nil {
		return tunnel.Config{}, err
	}
	a.warnPlaintext(cfg)
	return tunnel.Config{
		Endpoints:      endpoints(cfg.Gateway),
		Failback:       cfg.Gateway.Failback,
		Probe:          cfg.Gateway.Probe,
		Dialer:         dialer,
		ConnectTimeout: cfg.Gateway.ConnectTimeout,
		Token:          a.token.get,
		Link:           linkConfig(cfg, a.compressor),
		Min:            cfg.Tunnels.Min,
		Max:            cfg.Tunnels.Max,
		Mixed:          mixed(cfg.Listeners),
		Idle:           cfg.Tunnel.Idle,
		Backoff:        tunnel.Backoff{Base: cfg.Reconnect.Base, Cap: cfg.Reconnect.Cap, MaxAttempts: cfg.Reconnect.MaxAttempts},
		Reconnect:      cfg.Reconnect.Enabled,
	}, nil
}

func queueConfig(q config.Queue, a *App) queue.Config {
	return queue.Config{Size: q.Size, Wait: q.Wait, Pressure: q.Pressure, Rate: q.Release, Burst: max(1, q.Release/10), Logger: a.log, Metrics: a.metrics.Set()}
}

// newSpool makes the spool, if a listener wants it.
func (a *App) newSpool() (err error) {
	if !slices.ContainsFunc(a.cfg.Listeners, func(l config.Listener) bool { return l.Delivery == config.DeliverySpool }) {
		return nil
	}
	c := a.cfg.Spool
	a.spool, err = spool.New(spool.Config{Dir: c.Dir, Size: int64(c.Size), Full: c.Full, Fsync: c.Fsync, Resume: c.Resume, Overlap: overlap(min(c.Overlap, c.Size/4)),
		Open: c.Receiving, Connections: c.Connections, Concurrency: c.Concurrency, OpensPerMin: c.OpensPerMinute, Interval: c.Interval, EndWait: c.EndWait, Stall: c.Stall,
		RetryBase: c.Retry.Base, RetryCap: c.Retry.Cap, RetryDenied: c.Retry.Denied, KeyFile: c.KeyFile, OldKeyFiles: c.OldKeyFiles, Logger: a.log, Metrics: a.metrics.Set(),
		Stream: func(_ context.Context, req link.OpenRequest) (*link.Stream, error) { return a.pool.Open(req) }})
	if err == nil {
		a.stack.Push("spool", a.spool.Close)
	}
	return err
}

// overlap gives 0 the meaning that it has in the configuration: none.
func overlap(b sharedconfig.Bytes) int64 {
	if b == 0 {
		return -1
	}
	return int64(b)
}

// listenerConfig is valid: the configuration was validated.
func (a *App) listenerConfig(cfg config.Config, l config.Listener) listener.Config {
	prio, _ := link.ParsePriority(l.Priority)
	compression, _ := link.ParseCompression(l.Compression)
	c := listener.Config{Name: l.Name, Listen: l.Listen, Route: l.Route, Priority: prio, Logger: a.log, Metrics: a.metrics.Set()}
	if l.Delivery == config.DeliverySpool {
		c.Handle = func(ctx context.Context, conn net.Conn, took func(n int)) error {
			_, err := a.spool.Accept(ctx, conn, spool.Origin{Listener: l.Name, Route: l.Route, Priority: prio, Peer: conn.RemoteAddr().String(), Trace: link.NewTrace()}, took)
			return err
		}
		return c
	}
	c.Queue, c.EarlyBytes = a.queue, int(cfg.Queue.EarlyBytes)
	c.Open = func(_ context.Context, req link.OpenRequest) (*link.Stream, error) {
		req.Compression = compression
		return a.pool.Open(req)
	}
	return c
}

func newDialer(cfg config.Config) (*ws.Dialer, error) {
	d := &ws.Dialer{Timeout: cfg.Gateway.ConnectTimeout, MaxMessage: int(cfg.Tunnel.MaxMessage), Tune: ws.Tune, Proxy: ws.EnvironmentProxy()}
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
func (a *App) warnPlaintext(cfg config.Config) {
	for _, e := range cfg.Gateway.Endpoints {
		if u, err := url.Parse(e); err == nil && u.Scheme == "ws" {
			a.log.Warn("no TLS to this endpoint: the token and everything else travel in plain text", logging.FieldEndpoint, e)
		}
	}
}

// endpoints completes the URLs with the path of tunnels.
func endpoints(g config.Gateway) []tunnel.Endpoint {
	all := make([]tunnel.Endpoint, len(g.Endpoints))
	for i, raw := range g.Endpoints {
		all[i].URL = raw
		if u, err := url.Parse(raw); err == nil {
			all[i].URL = u.JoinPath("v1/tunnel").String()
		}
		if i < len(g.Weights) {
			all[i].Weight, _ = strconv.Atoi(g.Weights[i]) // it was validated
		}
	}
	return all
}

func linkConfig(cfg config.Config, compressor *link.Compressor) link.Config {
	t := cfg.Tunnel
	return link.Config{Window: int(t.Window), MaxWindow: int(t.MaxWindow), Memory: int64(t.Memory), MaxMessage: int(t.MaxMessage), Heartbeat: t.Heartbeat, Compressor: compressor}
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
