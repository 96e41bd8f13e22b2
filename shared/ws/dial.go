package ws

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/fasthttp/websocket"

	"fairlead/shared/errs"
)

// Dialer makes WebSockets to a gateway. It is used as it is by the tunnels and by the probes of the doctor.
type Dialer struct {
	TLS        *tls.Config                                                       // roots and name; nil: the system's roots
	Proxy      func(*http.Request) (*url.URL, error)                             // egress proxy; nil: none. See EnvironmentProxy
	Timeout    time.Duration                                                     // for everything up to the upgrade; 10 s
	MaxMessage int                                                               // bytes in a message that is read
	Resolver   *net.Resolver                                                     // asked for each attempt; nil: the system's
	DialTCP    func(ctx context.Context, network, addr string) (net.Conn, error) // nil: all addresses of the name, see happy.go
	Tune       func(net.Conn)                                                    // applied to the TCP connection; nil: none
}

// Request is one attempt at a WebSocket.
type Request struct {
	Endpoint    string            // a ws or wss URL
	Header      http.Header       // sent with the upgrade
	Subprotocol string            // asked for, and insisted on; empty: none
	Jar         http.CookieJar    // its cookies are sent, and it takes those of the answer, also of a refusal; nil: none
	Answer      func(http.Header) // is told the header of the answer that upgrades, before Do returns; nil: nobody is
}

const (
	defaultDialTimeout = 10 * time.Second
	// maxGreeting bounds what is read before the upgrade is complete, in bytes: certificates and headers.
	maxGreeting = 256 << 10
)

// Dial connects to endpoint, a ws or wss URL, with the header fields given and a subprotocol, if not empty. Errors carry
// the code of the hop that failed, or the gateway's own.
func (d *Dialer) Dial(ctx context.Context, endpoint string, header http.Header, subprotocol string) (*Conn, error) {
	return d.Do(ctx, Request{Endpoint: endpoint, Header: header, Subprotocol: subprotocol})
}

// Do connects as the request asks. Errors are those of Dial.
func (d *Dialer) Do(ctx context.Context, r Request) (*Conn, error) {
	ctx, cancel := d.bounded(ctx)
	defer cancel()
	attempt := dialAttempt{d: d, endpoint: r.Endpoint}
	lib := websocket.Dialer{
		NetDialContext:  attempt.dial,
		TLSClientConfig: d.tlsConfig(),
		ReadBufferSize:  ReadBufferSize,
		WriteBufferSize: WriteBufferSize,
		WriteBufferPool: WriteBuffers,
		Jar:             r.Jar,
	}
	if r.Subprotocol != "" {
		lib.Subprotocols = []string{r.Subprotocol}
	}
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) { attempt.tlsErr = err },
	})
	c, resp, err := lib.DialContext(traced, r.Endpoint, r.Header)
	if attempt.stop != nil && !attempt.stop() && err == nil {
		c.Close()
		err = ctx.Err()
	}
	if err != nil {
		return nil, attempt.explain(ctx, resp, err)
	}
	if c.Subprotocol() != r.Subprotocol {
		c.Close()
		return nil, errs.New(errs.UpgradeFailed, "%s upgraded without the subprotocol %s", r.Endpoint, r.Subprotocol)
	}
	if r.Answer != nil {
		r.Answer(resp.Header)
	}
	return New(c, d.MaxMessage)
}

func (d *Dialer) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if d.Timeout == 0 {
		return context.WithTimeout(ctx, defaultDialTimeout)
	}
	return context.WithTimeout(ctx, d.Timeout)
}

func (d *Dialer) tlsConfig() *tls.Config {
	cfg := &tls.Config{}
	if d.TLS != nil {
		cfg = d.TLS.Clone()
	}
	cfg.MinVersion = tls.VersionTLS13
	cfg.NextProtos = []string{"http/1.1"}
	cfg.DynamicRecordSizingDisabled = true
	return cfg
}

// dialAttempt remembers how far an attempt came.
type dialAttempt struct {
	d        *Dialer
	endpoint string
	addr     string // dialled: the gateway's, or the proxy's
	tcp      bool
	tlsErr   error
	stop     func() bool // of the watch that ends the connection with the context
}

// dial makes the connection on which the gateway is spoken to, by way of the proxy if there is one.
func (a *dialAttempt) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	target, err := url.Parse(a.endpoint)
	if err != nil {
		return nil, err
	}
	target.Scheme = map[string]string{"wss": "https", "ws": "http"}[target.Scheme]
	via, err := a.proxyFor(target)
	if err != nil {
		return nil, err
	}
	var c net.Conn
	if via == nil {
		c, err = a.dialHost(ctx, network, addr)
	} else {
		c, err = a.dialProxy(ctx, via, network, addr)
	}
	if err != nil {
		return nil, err
	}
	cork := NewCork(c)
	cork.bound = maxGreeting
	return cork, nil
}

// dialHost makes the TCP connection, to the gateway or to the proxy.
func (a *dialAttempt) dialHost(ctx context.Context, network, addr string) (net.Conn, error) {
	a.addr = addr
	dial := a.d.DialTCP
	if dial == nil {
		dial = a.d.dialAny
	}
	c, err := dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	a.tcp = true
	if a.d.Tune != nil {
		a.d.Tune(c)
	}
	// The library looks at its context only while it dials.
	a.stop = context.AfterFunc(ctx, func() { c.Close() })
	return c, nil
}

// explain gives the error its code, and says what was reached.
func (a *dialAttempt) explain(ctx context.Context, resp *http.Response, err error) error {
	var dns *net.DNSError
	var coded *errs.Error
	if errors.As(err, &coded) {
		err = coded
	}
	late := a.tcp && ctx.Err() != nil // the connection was closed for it, which is what err says
	if late {
		err, a.tlsErr = ctx.Err(), nil
	}
	switch {
	case coded != nil && late:
		return errs.Wrap(coded.Code, err, "%s", coded.Message)
	case coded != nil:
		return coded
	case errors.Is(err, websocket.ErrBadHandshake) && resp != nil:
		return a.refused(resp)
	case errors.As(err, &dns) && !a.tcp:
		return errs.Wrap(errs.DNSFailed, err, "cannot resolve %s", a.addr)
	case !a.tcp && a.addr != "":
		return errs.Wrap(errs.DialFailed, err, "cannot connect to %s", a.addr)
	case a.addr == "":
		return errs.Wrap(errs.ConfigInvalid, err, "endpoint %s", a.endpoint)
	case a.tlsErr != nil:
		return errs.Wrap(errs.TLSFailed, a.tlsErr, "TLS with %s", a.endpoint)
	}
	return errs.Wrap(errs.UpgradeFailed, err, "%s did not answer the upgrade", a.endpoint)
}

// refused explains an answer other than 101: the gateway's own error, or who else answered, with its first line.
func (a *dialAttempt) refused(resp *http.Response) error {
	body, _ := io.ReadAll(resp.Body) // at most 1 KiB, by the library
	if e := own(resp, body); e != nil {
		return e
	}
	server := resp.Header.Get("Server")
	if server == "" {
		server = "a server that does not say its name"
	}
	return errs.New(errs.UpgradeFailed, "%s answered %q by %q instead of upgrading: %q", a.endpoint, clip(resp.Status), clip(server), firstLine(body)).
		After(retryAfter(resp, errs.Answer{}))
}

// own is the error that a gateway tells in its answer; nil when somebody else answered.
func own(resp *http.Response, body []byte) error {
	var answer errs.Answer
	if json.Unmarshal(body, &answer) != nil {
		return nil
	}
	code, ok := errs.ParseCode(answer.Code)
	if !ok {
		return nil
	}
	return errs.New(code, "the gateway refused: %s", answer.Message).After(retryAfter(resp, answer))
}

func retryAfter(resp *http.Response, answer errs.Answer) time.Duration {
	if answer.RetryAfterMS > 0 {
		return time.Duration(answer.RetryAfterMS) * time.Millisecond
	}
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
		return time.Duration(seconds) * time.Second
	}
	return 0
}

func firstLine(body []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
	return clip(strings.TrimSuffix(line, "\r"))
}

func clip(s string) string {
	const most = 120
	if len(s) > most {
		return fmt.Sprintf("%.*s…", most, s)
	}
	return s
}
