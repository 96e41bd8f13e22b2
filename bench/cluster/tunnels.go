package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
)

const (
	tunnelMessage = 1 << 20 // bytes in a message, the link's own limit

	// As in R1.1.
	backoffBase = 200 * time.Millisecond
	backoffCap  = 30 * time.Second
)

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

// rider keeps a tunnel up, as a sidecar does: it resumes, makes a new one when that is over, and waits longer after each
// failure, at random.
type rider struct {
	client *Client
	addr   string

	mu      sync.Mutex
	tunnel  *Tunnel // nil while there is none
	up      bool
	since   time.Time // when it came up
	made    int       // tunnels
	resumed int
	refused map[errs.Code]int // attempts that failed, by code
	last    error             // of the last of them
	busy    sync.RWMutex      // held by who uses the tunnel, so that it is not ended meanwhile
}

// ride keeps the tunnel up until ctx ends; err is how the first attempt ended.
func (r *rider) ride(ctx context.Context, err error) {
	failures := 0
	for ; ctx.Err() == nil; err = r.attempt(ctx) {
		if err == nil {
			failures = 0
			select {
			case <-r.current().Ended():
			case <-ctx.Done():
			}
			r.mu.Lock()
			r.up = false
			r.mu.Unlock()
			continue
		}
		wait := min(backoffBase<<min(failures, 20), backoffCap)
		wait = max(rand.N(wait), errs.From(err).RetryAfter)
		failures++
		if pause(ctx, wait) != nil {
			break
		}
	}
	r.drop(nil)
}

// attempt resumes the tunnel or makes one.
func (r *rider) attempt(ctx context.Context) (err error) {
	t := r.current()
	if t != nil && t.Err() == nil {
		err = t.Resume(ctx, r.addr)
		// A sidecar makes another tunnel too while it cannot be found out whose this one is, for new streams. Here there are no
		// others.
		if gone(err) || errors.Is(err, errs.OwnerUnknown) {
			r.drop(err)
			r.count(err)
			t, err = nil, nil
		}
	} else if t != nil {
		r.drop(t.Err())
		t = nil
	}
	made := t == nil
	if made {
		t, err = r.client.Connect(ctx, r.addr)
	}
	if err != nil {
		r.count(err)
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tunnel, r.up, r.since = t, true, time.Now()
	if made {
		r.made++
	} else {
		r.resumed++
	}
	return nil
}

func (r *rider) current() *Tunnel {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tunnel
}

func (r *rider) count(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refused == nil {
		r.refused = map[errs.Code]int{}
	}
	r.refused[errs.CodeOf(err)]++
	r.last = err
}

// drop ends the tunnel.
func (r *rider) drop(why error) {
	r.mu.Lock()
	t := r.tunnel
	r.tunnel, r.up = nil, false
	r.mu.Unlock()
	if t == nil {
		return
	}
	t.Close(why)
	r.busy.Lock() // who uses it has seen that it is over
	defer r.busy.Unlock()
	t.End()
}

// state tells whether the rider has a tunnel, and of whom.
func (r *rider) state() (up bool, since time.Time, replica string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tunnel == nil {
		return false, time.Time{}, ""
	}
	return r.up, r.since, r.tunnel.Replica()
}

// exchange carries e over the rider's tunnel as it is.
func (r *rider) exchange(ctx context.Context, e exchange) (time.Duration, error) {
	r.busy.RLock()
	defer r.busy.RUnlock()
	t := r.current()
	if t == nil {
		return 0, errs.New(errs.NoTunnel, "there is no tunnel")
	}
	return t.Exchange(ctx, e, RouteEcho)
}

// riders is many of them.
type riders struct {
	all   []*rider
	stop  context.CancelFunc
	tasks sync.WaitGroup
}

// firstDials is how many riders make their first attempt at once: what is measured is how they come back.
const firstDials = 16

// ridersOf starts n riders of a client to addr; end must be called.
func ridersOf(ctx context.Context, c *Client, addr string, n int) *riders {
	ctx, stop := context.WithCancel(ctx)
	rs := &riders{stop: stop}
	turns := make(chan struct{}, firstDials)
	for range n {
		r := &rider{client: c, addr: addr}
		rs.all = append(rs.all, r)
		rs.tasks.Go(func() {
			select {
			case turns <- struct{}{}:
			case <-ctx.Done():
				return
			}
			err := r.attempt(ctx)
			<-turns
			r.ride(ctx, err)
		})
	}
	return rs
}

func (rs *riders) end() {
	rs.stop()
	rs.tasks.Wait()
}

// up counts the riders that have a tunnel.
func (rs *riders) up() (n int) {
	for _, r := range rs.all {
		if up, _, _ := r.state(); up {
			n++
		}
	}
	return n
}
