package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
)

// attempt is one dial as tunnels do it, and how far it came.
type attempt struct {
	conn *ws.Conn // nil: it failed
	err  error
	took time.Duration

	through   bool          // TCP stands, and the proxy has connected, if there is one
	throughAt time.Duration // since the start
	tlsBegun  bool
	tlsTook   time.Duration
	tlsDone   bool
	tlsErr    error
	tls       tls.ConnectionState
	asked     bool // for a client certificate
	shown     *tls.Certificate
}

// dial makes the attempt, with the token if there is one.
func (p *path) dial() {
	d := p.r.dialer()
	ctx, cancel := context.WithTimeout(p.r.ctx, p.r.cfg.Timeout)
	defer cancel()
	var mu sync.Mutex // callbacks may come from other goroutines
	var a attempt
	start := time.Now()
	var begun time.Time
	locked := func(f func()) {
		mu.Lock()
		defer mu.Unlock()
		f()
	}
	d.TLS = noticing(d.TLS, func(c *tls.Certificate) { locked(func() { a.asked, a.shown = true, c }) })
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:           func(httptrace.GotConnInfo) { locked(func() { a.through, a.throughAt = true, time.Since(start) }) },
		TLSHandshakeStart: func() { locked(func() { a.tlsBegun, begun = true, time.Now() }) },
		TLSHandshakeDone: func(s tls.ConnectionState, err error) {
			locked(func() { a.tlsDone, a.tlsErr, a.tls, a.tlsTook = true, err, s, time.Since(begun) })
		},
	})
	conn, err := d.Dial(ctx, p.url("v1/tunnel"), p.header(), link.Subprotocol)
	locked(func() {
		a.conn, a.err, a.took = conn, err, time.Since(start)
		if !a.through {
			a.throughAt = a.took
		}
		p.attempt = a
	})
}

// header carries the token, if there is one: without, the gateway's refusal still says that the way to it works.
func (p *path) header() http.Header {
	if p.r.token == "" {
		return nil
	}
	return http.Header{"Authorization": {"Bearer " + p.r.token}}
}

// noticing is a copy of cfg that tells when the server asks for a client certificate, and which one it gets.
func noticing(cfg *tls.Config, tell func(*tls.Certificate)) *tls.Config {
	c := &tls.Config{}
	if cfg != nil {
		c = cfg.Clone()
	}
	get := c.GetClientCertificate
	if get == nil && len(c.Certificates) > 0 { // the library chooses among them
		return c
	}
	c.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if get == nil {
			tell(nil)
			return &tls.Certificate{}, nil
		}
		own, err := get(info)
		tell(own)
		return own, err
	}
	return c
}

// alerted says whether err is the other side's refusal in TLS; with TLS 1.3 that of a client certificate comes after the
// client's handshake is complete.
func alerted(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// abandon closes a connection on which no tunnel was made.
func abandon(c *ws.Conn, err error) {
	c.Close(errs.CloseFrame(err))
	c.Abort()
	c.Wait()
}
