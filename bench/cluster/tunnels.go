package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"sync"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
)

const tunnelMessage = 1 << 20 // bytes in a message, the link's own limit

// Client makes tunnels that speak for a tenant: the protocol without a sidecar's pool, queue and listeners.
type Client struct {
	dialer ws.Dialer
	header http.Header
}

// Client returns one for a tenant.
func (s *Site) Client(tenant string) (*Client, error) {
	token, err := s.Token(tenant)
	if err != nil {
		return nil, err
	}
	return &Client{dialer: ws.Dialer{TLS: &tls.Config{RootCAs: s.ca.Pool(), MinVersion: tls.VersionTLS13}, MaxMessage: tunnelMessage, Tune: ws.Tune},
		header: http.Header{"Authorization": {"Bearer " + token}}}, nil
}

// Tunnel is a tunnel whose lane runs.
type Tunnel struct {
	*link.Tunnel
	client *Client

	mu   sync.Mutex
	lane chan struct{} // closed once the last lane has ended
	err  error         // how it did; read after lane
}

// Connect makes a tunnel through addr, a gateway or the balancer.
func (c *Client) Connect(ctx context.Context, addr string) (*Tunnel, error) {
	conn, err := c.dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	t, lane, err := link.Connect(ctx, conn, link.Config{MaxMessage: tunnelMessage})
	if err != nil {
		abandon(conn, err)
		return nil, err
	}
	held := &Tunnel{Tunnel: t, client: c}
	held.run(lane)
	return held, nil
}

// Resume carries the tunnel on through addr. The lane that it has ends by that.
func (t *Tunnel) Resume(ctx context.Context, addr string) error {
	conn, err := t.client.dial(ctx, addr)
	if err != nil {
		return err
	}
	before := t.Ended()
	lane, err := t.Tunnel.Resume(ctx, conn)
	if err != nil {
		abandon(conn, err)
		return err
	}
	<-before // a lane that is displaced ends
	t.run(lane)
	return nil
}

func (t *Tunnel) run(lane *link.Lane) {
	done := make(chan struct{})
	t.mu.Lock()
	t.lane = done
	t.mu.Unlock()
	go func() {
		defer close(done)
		err := lane.Run()
		t.mu.Lock()
		t.err = err
		t.mu.Unlock()
	}()
}

// Ended is closed once the tunnel's lane has ended.
func (t *Tunnel) Ended() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lane
}

// LaneErr is how the last lane that has ended did.
func (t *Tunnel) LaneErr() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// End ends the tunnel and waits for all of it.
func (t *Tunnel) End() {
	t.Close(nil)
	<-t.Ended()
	t.Wait()
}

// Exchange opens a stream and carries e over it.
func (t *Tunnel) Exchange(ctx context.Context, e exchange, route string) (opened time.Duration, err error) {
	began := time.Now()
	s, err := t.Open(link.OpenRequest{Route: route})
	if err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { s.Reset(errs.New(errs.Canceled, "no time is left")) })
	defer stop()
	return e.carry(ctx, tunnelStream{s}, began)
}

// tunnelStream is a stream of a tunnel.
type tunnelStream struct{ *link.Stream }

func (s tunnelStream) abort() { s.Reset(errs.New(errs.Canceled, "the other direction failed")) }

func (c *Client) dial(ctx context.Context, addr string) (*ws.Conn, error) {
	return c.dialer.Dial(ctx, "wss://"+addr+"/v1/tunnel", c.header, link.Subprotocol)
}

func abandon(conn *ws.Conn, err error) {
	conn.Close(errs.CloseFrame(err))
	conn.Abort()
	conn.Wait()
}

// gone says whether a refused resume means that the tunnel is over.
func gone(err error) bool {
	for _, code := range []errs.Code{errs.TunnelUnknown, errs.OwnerGone, errs.OwnerUnreachable, errs.LeaseLost} {
		if errors.Is(err, code) {
			return true
		}
	}
	return false
}
