package peer

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
)

// Limits of an answer, in bytes. TLS bounds what comes before it.
const (
	maxAnswerHeader = 16 << 10
	maxAnswerBody   = 16 << 10
)

// Dial brings a call to the replica at address, whose ID is replica, if it is known. The connection that it returns stands right after
// the answer to the upgrade: the owner speaks there to the sidecar, and is spoken to by it. The caller closes it.
//
// Errors have the code of the owner's answer: OwnerGone when another replica has its address now, TunnelUnknown, those of tokens.
// OwnerUnreachable means that nobody answered within the time of Config, or of ctx; PeerRefused that one end does not know the other's
// secret, in which case the call was told to nobody; Canceled that ctx was cancelled.
func (p *Peer) Dial(ctx context.Context, address, replica string, call Call, transfer []byte) (net.Conn, error) {
	c := callHeader{Call: call, replica: replica, transfer: transfer}
	if err := c.check(); err != nil {
		return nil, err
	}
	bounded, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	defer cancel()
	conn, err := p.dial(bounded, address, c)
	switch {
	case err == nil:
		return conn, nil
	case errors.Is(ctx.Err(), context.Canceled):
		return nil, errs.Wrap(errs.Canceled, context.Cause(ctx), "calling the replica at %s", address)
	case errors.Is(err, errs.OwnerUnreachable) && bounded.Err() != nil:
		return nil, errs.Wrap(errs.OwnerUnreachable, context.Cause(bounded), "the replica at %s did not answer in time", address)
	case errors.Is(err, errs.PeerRefused):
		p.refused.Inc()
	}
	return nil, err
}

func (p *Peer) dial(ctx context.Context, address string, c callHeader) (net.Conn, error) {
	tcp, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, errs.Wrap(errs.OwnerUnreachable, err, "cannot connect to the replica at %s", address)
	}
	if p.cfg.Tune != nil {
		p.cfg.Tune(tcp)
	}
	conn, err := p.upgrade(ctx, tcp, address, c)
	if err != nil {
		_ = tcp.Close()
		return nil, err
	}
	return conn, nil
}

// upgrade speaks TLS and HTTP over a new connection, until ctx ends.
func (p *Peer) upgrade(ctx context.Context, tcp net.Conn, address string, c callHeader) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = tcp.Close() })
	defer stop()
	secure := tls.Client(ws.NewCork(tcp), p.keys.client())
	if err := secure.HandshakeContext(ctx); err != nil {
		if network(err) {
			return nil, errs.Wrap(errs.OwnerUnreachable, err, "TLS with the replica at %s", address)
		}
		return nil, refusal(err, "TLS with the replica at %s", address)
	}
	req, key := request(c)
	if err := req.Write(secure); err != nil {
		return nil, explain(err, "the call to the replica at %s", address)
	}
	r := bufio.NewReader(&io.LimitedReader{R: secure, N: maxAnswerHeader})
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, explain(err, "the answer of the replica at %s", address)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, told(resp, address)
	}
	if !confirms(resp, key) {
		return nil, errs.New(errs.OwnerUnreachable, "%s answered the call with an upgrade of another kind: it is no gateway", address)
	}
	early, err := r.Peek(r.Buffered())
	if err == nil {
		var raw *ws.Raw
		if raw, err = ws.NewRaw(secure); err == nil && stop() {
			return &answered{Raw: raw, early: append([]byte(nil), early...)}, nil
		}
	}
	return nil, errs.Wrap(errs.OwnerUnreachable, errors.Join(err, ctx.Err()), "the answer of the replica at %s", address)
}

// request is the upgrade of a call, and the nonce in it.
func request(c callHeader) (*http.Request, string) {
	var nonce [keyBytes]byte
	_, _ = rand.Read(nonce[:]) // never fails
	key := base64.StdEncoding.EncodeToString(nonce[:])
	h := c.header()
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", "websocket")
	h.Set("Sec-WebSocket-Version", "13")
	h.Set("Sec-WebSocket-Key", key)
	h.Set("Sec-WebSocket-Protocol", link.Subprotocol)
	h.Set("User-Agent", "fairlead")
	return &http.Request{Method: http.MethodGet, URL: &url.URL{Path: path}, Host: "fairlead-peer", Header: h}, key
}

// confirms says whether an answer is to the nonce (RFC 6455 section 4.1) and of the link.
func confirms(resp *http.Response, key string) bool {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return strings.EqualFold(resp.Header.Get("Upgrade"), "websocket") && resp.Header.Get("Sec-WebSocket-Accept") == base64.StdEncoding.EncodeToString(sum[:]) &&
		resp.Header.Get("Sec-WebSocket-Protocol") == link.Subprotocol && resp.Header.Get("Sec-WebSocket-Extensions") == ""
}

// explain gives an error after the handshake its code: only now does this end learn that the other one has refused it.
func explain(err error, format string, args ...any) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == alert {
		return refusal(err, format, args...)
	}
	return errs.Wrap(errs.OwnerUnreachable, err, format, args...)
}

// told is the error that an answer tells.
func told(resp *http.Response, address string) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBody)) // as much as came
	var a errs.Answer
	if json.Unmarshal(body, &a) == nil {
		if code, ok := errs.ParseCode(a.Code); ok {
			e := errs.New(code, "the replica at %s answered: %.*s", address, maxMessage, a.Message).After(time.Duration(min(max(a.RetryAfterMS, 0), maxRetryMS)) * time.Millisecond)
			e.Quota = a.Quota
			return e
		}
	}
	return errs.New(errs.OwnerUnreachable, "%s answered %.100q to the call", address, resp.Status)
}

const (
	maxMessage = 1 << 10   // bytes of another replica's text
	maxRetryMS = 3_600_000 // that it may ask to wait
)

// answered is a connection to an owner, some of whose bytes came with its answer. One goroutine reads.
type answered struct {
	*ws.Raw
	early []byte
}

func (a *answered) Read(p []byte) (int, error) {
	if len(a.early) > 0 {
		n := copy(p, a.early)
		if a.early = a.early[n:]; len(a.early) == 0 {
			a.early = nil
		}
		return n, nil
	}
	return a.Raw.Read(p)
}
