package cluster

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"fairlead/shared/errs"
)

const (
	// As in R1.1.
	backoffBase = 200 * time.Millisecond
	backoffCap  = 30 * time.Second
)

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
