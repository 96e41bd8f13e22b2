package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"fairlead/shared/errs"
)

// Bounds of what is taken from whoever answers at the address, which need not be a sidecar.
const (
	answerLimit    = 8 << 20
	headerLimit    = 64 << 10
	defaultTimeout = 5 * time.Second
)

// ClientConfig says where a sidecar's admin API is.
type ClientConfig struct {
	// Address is host:port as in admin.listen. Where that names every address of the machine, the client asks loopback.
	Address string
	// Timeout bounds each request with its answer; 0: 5 s.
	Timeout time.Duration
}

// Client asks a running sidecar through its admin API. Its methods return errs.NoSidecar when none answers, and the
// sidecar's own error when it refuses.
type Client struct {
	address string   // as asked for
	dial    []string // tried in this order
	timeout time.Duration
	http    http.Client
}

// NewClient makes a client; nothing is connected yet. A wrong address is errs.ConfigInvalid.
func NewClient(cfg ClientConfig) (*Client, error) {
	host, port, err := net.SplitHostPort(cfg.Address)
	if err != nil {
		return nil, errs.New(errs.ConfigInvalid, "the address of the admin API: %.200q: allowed is host:port", cfg.Address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strings.ContainsAny(host, "/?#@ \t\r\n") {
		return nil, errs.New(errs.ConfigInvalid, "the address of the admin API: %.200q: allowed is host:port with a port from 1 to 65535; "+
			"the log line that says listening names the one in use", cfg.Address)
	}
	c := &Client{timeout: cfg.Timeout, dial: dialed(host, port)}
	c.address = c.dial[0]
	if c.timeout <= 0 {
		c.timeout = defaultTimeout
	}
	c.http = http.Client{
		// No proxy of the environment: the address is on this machine.
		Transport:     &http.Transport{DialContext: c.connect, MaxResponseHeaderBytes: headerLimit, MaxIdleConns: 1, IdleConnTimeout: time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// dialed is where a listener on host is reached.
func dialed(host, port string) []string {
	ip := net.ParseIP(host)
	switch {
	case host == "" || ip != nil && ip.IsUnspecified() && ip.To4() != nil:
		return []string{net.JoinHostPort("127.0.0.1", port), net.JoinHostPort("::1", port)}
	case ip != nil && ip.IsUnspecified():
		return []string{net.JoinHostPort("::1", port), net.JoinHostPort("127.0.0.1", port)}
	}
	return []string{net.JoinHostPort(host, port)}
}

func (c *Client) connect(ctx context.Context, network, _ string) (conn net.Conn, err error) {
	var first error
	for _, address := range c.dial {
		if conn, err = (&net.Dialer{}).DialContext(ctx, network, address); err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// Address is where the client asks.
func (c *Client) Address() string { return c.address }

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Raw is the answer of GET /api/status as it is. It is valid JSON.
func (c *Client) Raw(ctx context.Context) ([]byte, error) {
	body, err := c.ask(ctx, http.MethodGet, "/api/status")
	if err != nil {
		return nil, err
	}
	if !json.Valid(body) {
		return nil, errs.New(errs.NoSidecar, "what answers at %s is no sidecar: its status is no JSON", c.address)
	}
	return body, nil
}

// Status asks for the sidecar's status.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var st Status
	if err := c.decode(ctx, "/api/status", &st); err != nil {
		return nil, err
	}
	if st.State == "" {
		return nil, errs.New(errs.NoSidecar, "what answers at %s is no sidecar: its status has no state", c.address)
	}
	return &st, nil
}

// History asks for the last minutes, oldest first.
func (c *Client) History(ctx context.Context) (samples []Sample, err error) {
	err = c.decode(ctx, "/api/history", &samples)
	return samples, err
}

// Ready is nil when a connection would be carried now, else the sidecar's reason.
func (c *Client) Ready(ctx context.Context) error {
	_, err := c.ask(ctx, http.MethodGet, "/readyz")
	return err
}

// Drain asks the sidecar to stop once its connections have ended.
func (c *Client) Drain(ctx context.Context) error { return c.do(ctx, "/api/drain") }

// Quit asks the sidecar to stop, and to take no more connections.
func (c *Client) Quit(ctx context.Context) error { return c.do(ctx, "/quitquitquit") }

// Reconnect asks the sidecar to try again now, also when it has given up.
func (c *Client) Reconnect(ctx context.Context) error { return c.do(ctx, "/api/reconnect") }

func (c *Client) do(ctx context.Context, path string) error {
	_, err := c.ask(ctx, http.MethodPost, path)
	return err
}

func (c *Client) decode(ctx context.Context, path string, into any) error {
	body, err := c.ask(ctx, http.MethodGet, path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return errs.Wrap(errs.NoSidecar, cleaned{err}, "what answers at %s is no sidecar, or one of another version", c.address)
	}
	return nil
}

// ask returns the body of an answer with a status of 2xx.
func (c *Client) ask(ctx context.Context, method, path string) ([]byte, error) {
	within, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(within, method, "http://"+c.address+path, nil)
	if err != nil {
		return nil, errs.Wrap(errs.ConfigInvalid, err, "the address of the admin API")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.failed(ctx, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, answerLimit+1))
	switch {
	case err != nil:
		return nil, c.failed(ctx, err)
	case len(body) > answerLimit:
		return nil, errs.New(errs.NoSidecar, "what answers at %s is no sidecar: more than %d MiB", c.address, answerLimit>>20)
	case resp.StatusCode/100 != 2:
		return nil, c.refused(resp.StatusCode, body)
	}
	return body, nil
}

// failed names the cause without the URL, which net/http puts before it.
func (c *Client) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errs.Wrap(errs.Canceled, context.Cause(ctx), "asking the sidecar at %s", c.address)
	}
	var inner interface{ Unwrap() error }
	if errors.As(err, &inner) && inner.Unwrap() != nil {
		err = inner.Unwrap()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errs.Wrap(errs.NoSidecar, err, "no answer from %s within %s", c.address, c.timeout)
	}
	return errs.Wrap(errs.NoSidecar, cleaned{err}, "no sidecar answers at %s", c.address)
}

// cleaned is an error whose text may quote what a stranger has sent.
type cleaned struct{ error }

func (c cleaned) Error() string { return Clean(clip(c.error.Error(), 300)) }

func (c cleaned) Unwrap() error { return c.error }

// refused is the error that an answer carries.
func (c *Client) refused(httpStatus int, body []byte) error {
	var a errs.Answer
	if err := json.NewDecoder(bytes.NewReader(body)).Decode(&a); err == nil {
		if code, ok := errs.ParseCode(a.Code); ok {
			return errs.New(code, "%s", Clean(clip(a.Message, 500))).After(time.Duration(min(max(a.RetryAfterMS, 0), 1<<40)) * time.Millisecond)
		}
	}
	return errs.New(errs.NoSidecar, "what answers at %s is no sidecar: HTTP status %d", c.address, httpStatus)
}
