package ws

import (
	"bufio"
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
	Proxy      func(*http.Request) (*url.URL, error)                             // egress proxy; nil: none
	Timeout    time.Duration                                                     // for everything up to the upgrade; 10 s
	MaxMessage int                                                               // bytes in a message that is read
	DialTCP    func(ctx context.Context, network, addr string) (net.Conn, error) // nil: net.Dialer
	Tune       func(net.Conn)                                                    // applied to the TCP connection; nil: none
}

const defaultDialTimeout = 10 * time.Second

// Dial connects to endpoint, a ws or wss URL, with the header fields given and a subprotocol, if not empty. Errors carry
// the code of the hop that failed, or the gateway's own.
func (d *Dialer) Dial(ctx context.Context, endpoint string, header http.Header, subprotocol string) (*Conn, error) {
	timeout := d.Timeout
	if timeout == 0 {
		timeout = defaultDialTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	attempt := dialAttempt{d: d, endpoint: endpoint}
	lib := websocket.Dialer{
		NetDialContext:  attempt.dialTCP,
		TLSClientConfig: d.tlsConfig(),
		Proxy:           d.Proxy,
		ReadBufferSize:  ReadBufferSize,
		WriteBufferSize: WriteBufferSize,
		WriteBufferPool: WriteBuffers,
	}
	if subprotocol != "" {
		lib.Subprotocols = []string{subprotocol}
	}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:          func(httptrace.GotConnInfo) { attempt.through = true },
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) { attempt.tlsErr = err },
	})
	c, resp, err := lib.DialContext(ctx, endpoint, header)
	if attempt.stop != nil && !attempt.stop() && err == nil {
		c.Close()
		err = ctx.Err()
	}
	if err != nil {
		return nil, attempt.explain(resp, err)
	}
	if c.Subprotocol() != subprotocol {
		c.Close()
		return nil, errs.New(errs.UpgradeFailed, "%s upgraded without the subprotocol %s", endpoint, subprotocol)
	}
	return New(c, d.MaxMessage)
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
	through  bool // the proxy, if there is one, has connected
	tlsErr   error
	stop     func() bool // of the watch that ends the connection with the context
}

func (a *dialAttempt) dialTCP(ctx context.Context, network, addr string) (net.Conn, error) {
	a.addr = addr
	dial := a.d.DialTCP
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
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
	return NewCork(c), nil
}

// explain gives the error its code, and says what was reached.
func (a *dialAttempt) explain(resp *http.Response, err error) error {
	var dns *net.DNSError
	switch {
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
	case !a.through:
		return errs.Wrap(errs.ProxyFailed, err, "the proxy at %s did not connect to %s", a.addr, a.endpoint)
	}
	return errs.Wrap(errs.UpgradeFailed, err, "%s did not answer the upgrade", a.endpoint)
}

// refused explains an answer other than 101: the gateway's own error, or who else answered, with its first line.
func (a *dialAttempt) refused(resp *http.Response) error {
	body, _ := io.ReadAll(resp.Body) // at most 1 KiB, by the library
	var answer errs.Answer
	if json.Unmarshal(body, &answer) == nil {
		if code, ok := errs.ParseCode(answer.Code); ok {
			return errs.New(code, "the gateway refused: %s", answer.Message).After(retryAfter(resp, answer))
		}
	}
	line, _, _ := bufio.NewReader(strings.NewReader(string(body))).ReadLine()
	server := resp.Header.Get("Server")
	if server == "" {
		server = "a server that does not say its name"
	}
	return errs.New(errs.UpgradeFailed, "%s answered %s by %q instead of upgrading: %q", a.endpoint, resp.Status, server, clip(string(line))).
		After(retryAfter(resp, answer))
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

func clip(s string) string {
	const most = 120
	if len(s) > most {
		return fmt.Sprintf("%.*s…", most, s)
	}
	return s
}
