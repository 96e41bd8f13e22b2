package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
)

// replicas are gateways behind one address. Connections go to those in turn first, then to the last one.
type replicas struct {
	mu   sync.Mutex
	turn []*gateway
	all  []*gateway
}

// newReplicas makes n replicas, each of which can carry on the tunnels of the others.
func newReplicas(t *testing.T, n int) *replicas {
	b := &replicas{}
	for i := range n {
		g := newGateway(t)
		g.name = "gw-" + string(rune('0'+i))
		g.door, g.echo = g.name, true
		b.all = append(b.all, g)
	}
	for _, g := range b.all {
		g.peers = b.all
	}
	return b
}

// next says where the next connections go.
func (b *replicas) next(turn ...*gateway) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turn = turn
}

func (b *replicas) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	b.mu.Lock()
	g := b.turn[0]
	if len(b.turn) > 1 {
		b.turn = b.turn[1:]
	}
	b.mu.Unlock()
	var d net.Dialer
	return d.DialContext(ctx, network, g.l.Addr().String())
}

// pool starts one whose only endpoint is the address of all replicas; the first one gets its tunnels.
func (b *replicas) pool(t *testing.T, change func(*Config)) *running {
	b.next(b.all[0])
	r := startPool(t, func(c *Config) {
		c.Endpoints = InOrder([]string{"ws://gateways.example/v1/tunnel"})
		c.Dialer = &ws.Dialer{MaxMessage: 1 << 20, DialTCP: b.dial}
		if change != nil {
			change(c)
		}
	})
	eventually(t, "ready", func() bool { return r.connected() == r.config().Min })
	return r
}

var goingAway = errs.New(errs.Draining, "moving out")

// drains makes a gateway take no new tunnels.
func (g *gateway) drains(why error) {
	g.with(func() {
		g.greet = func(resume bool) error {
			if resume {
				return nil
			}
			return why
		}
	})
}

// resumes makes a gateway answer resumes so.
func (g *gateway) resumes(why func() error) {
	g.with(func() {
		g.greet = func(resume bool) error {
			if resume {
				return why()
			}
			return nil
		}
	})
}

// exchange sends bytes through an echo in pieces, each of which is read back, as long as more says so, and at least 2 MiB.
type exchange struct {
	s          *link.Stream
	stop       chan struct{}
	done       chan error
	sent, back [sha256.Size]byte
	n          int
}

func exchangeOver(s *link.Stream) *exchange {
	x := &exchange{s: s, stop: make(chan struct{}), done: make(chan error, 1)}
	go func() {
		defer close(x.done)
		seed := [32]byte{7}
		source, sent, back := rand.NewChaCha8(seed), sha256.New(), sha256.New()
		piece, got := make([]byte, 8<<10), make([]byte, 8<<10)
		for on := true; on || x.n < 2<<20; {
			select {
			case <-x.stop:
				on = false
			default:
			}
			source.Read(piece)
			if _, err := s.Write(piece); err != nil {
				x.done <- err
				return
			}
			if _, err := io.ReadFull(s, got); err != nil {
				x.done <- err
				return
			}
			sent.Write(piece)
			back.Write(got)
			x.n += len(piece)
		}
		sent.Sum(x.sent[:0])
		back.Sum(x.back[:0])
		if err := s.CloseWrite(); err != nil {
			x.done <- err
			return
		}
		if n, err := s.Read(got); n != 0 || err != io.EOF {
			x.done <- errs.New(errs.Internal, "%d bytes after the end, %v", n, err)
		}
	}()
	return x
}

func (x *exchange) end(t *testing.T) {
	t.Helper()
	close(x.stop)
	require.NoError(t, <-x.done)
	assert.Equal(t, x.sent, x.back)
	assert.GreaterOrEqual(t, x.n, 2<<20)
}

// opener opens streams one after another, sends a word through each, and counts those that failed.
type opener struct {
	stop    chan struct{}
	done    chan struct{}
	opened  int
	failed  []error
	tunnels map[string]int
	mu      sync.Mutex
}

func openAllTheTime(r *running) *opener {
	o := &opener{stop: make(chan struct{}), done: make(chan struct{}), tunnels: map[string]int{}}
	go func() {
		defer close(o.done)
		for {
			select {
			case <-o.stop:
				return
			default:
			}
			id, err := word(r)
			o.mu.Lock()
			if err != nil {
				o.failed = append(o.failed, err)
			} else {
				o.opened++
				o.tunnels[id]++
			}
			o.mu.Unlock()
		}
	}()
	return o
}

// word sends a word through a stream and reads it back.
func word(r *running) (tunnel string, err error) {
	s, err := r.Open(link.OpenRequest{Route: "git", Priority: link.Normal})
	if err != nil {
		return "", err
	}
	if _, err = s.Write([]byte("word")); err == nil {
		if err = s.CloseWrite(); err == nil {
			var got []byte
			if got, err = io.ReadAll(s); err == nil && !bytes.Equal(got, []byte("word")) {
				err = errs.New(errs.Internal, "got %q", got)
			}
		}
	}
	return s.Tunnel().Name(), err
}

func (o *opener) on(tunnel string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.tunnels[tunnel]
}

// slotOf is the status of the slot that has the stream's tunnel.
func (r *running) slotOf(s *link.Stream) TunnelStatus {
	for _, t := range r.Status().Tunnels {
		if t.ID == s.Tunnel().Name() {
			return t
		}
	}
	return TunnelStatus{}
}

func draining(delay time.Duration) link.GoAway {
	return link.GoAway{Reason: goingAway, Deadline: time.Minute, Delay: delay}
}

// A replica that drains is left without anybody noticing: new streams are carried at every moment, also while the load
// balancer leads to the same replica again and again; those that are open finish where they are.
//
// Verifies: R8.8
func TestADrainIsNotNoticed(t *testing.T) {
	t.Parallel()
	b := newReplicas(t, 2)
	a := b.all[0]
	r := b.pool(t, func(c *Config) { c.Backoff = Backoff{Base: time.Hour, Cap: time.Hour} })
	s := open(t, r, link.Normal)
	old := s.Tunnel().Name()
	x := exchangeOver(s)
	o := openAllTheTime(r)
	eventually(t, "streams are opened", func() bool { return o.on(old) > 0 })

	a.drains(goingAway)
	b.next(a, a, a, a, a, b.all[1])
	upgrades := a.count()
	for range 2 { // as after a resume
		a.all()[0].SendGoAway(draining(20 * time.Millisecond))
	}
	eventually(t, "the replacement is tried", func() bool { return a.count() > upgrades })
	before := o.on(old)
	assert.Equal(t, Connected, r.slotOf(s).State, "it is used until then")
	eventually(t, "and the old tunnel takes streams meanwhile", func() bool { return o.on(old) > before })
	eventually(t, "new streams go to the other replica", func() bool { return len(b.all[1].all()) == 1 && o.on(b.all[1].all()[0].Name()) > 3 })
	assert.Equal(t, 5, a.count()-upgrades, "it was turned away five times, and repeated without a long wait")
	st := r.slotOf(s)
	assert.Equal(t, Draining, st.State)
	assert.Equal(t, "gw-0", st.Replica)
	assert.Equal(t, Connected, r.Status().State)
	assert.NoError(t, s.Tunnel().Err())
	close(o.stop)
	<-o.done
	assert.Empty(t, o.failed)
	x.end(t)
	eventually(t, "the old tunnel ends with its last stream", func() bool { return len(a.all()) == 0 && len(r.Status().Tunnels) == 1 })
	assert.Equal(t, "gw-1", r.Status().Tunnels[0].Replica)
	assert.True(t, r.metric(`fairlead_sidecar_moves_total{reason="drain"} 1`)())
	assert.NotContains(t, r.log.String(), "state machine")
	var asked, drained int
	for _, e := range r.Status().Events {
		if e.Code == "FL-S412" && e.State == Connected {
			asked++
		}
		if e.State == Draining {
			drained++
			assert.Equal(t, "FL-S412", e.Code)
			assert.Equal(t, "new streams go to tunnel 2", e.Reason)
		}
	}
	assert.Equal(t, [2]int{1, 1}, [2]int{asked, drained}, "each is said once")
}

// What is left at the deadline ends with a code that says so; the replacement that could not be made before is made then.
//
// Verifies: R8.8
func TestTheDeadlineOfADrainPasses(t *testing.T) {
	t.Parallel()
	b := newReplicas(t, 1)
	a := b.all[0]
	r := b.pool(t, nil)
	s := open(t, r, link.Normal)
	a.drains(goingAway)
	a.all()[0].SendGoAway(draining(0))
	upgrades := a.count()
	eventually(t, "tried again and again", func() bool { return a.count() > upgrades+4 })
	assert.True(t, r.Ready())
	a.end(errs.New(errs.DrainEnded, "the time to finish is over"))
	err := s.Wait()
	assert.ErrorIs(t, err, errs.DrainEnded)
	assert.ErrorContains(t, err, "the time to finish is over")
	eventually(t, "the slot has gone", func() bool { return len(r.list()) == 1 && !r.Ready() })
	a.with(func() { a.greet = nil })
	eventually(t, "a new tunnel", r.Ready)
	assert.True(t, r.metric(`fairlead_sidecar_tunnels_lost_total{code="FL-S438"} 1`)())
	found := false
	for _, e := range r.Status().Events {
		found = found || e.Code == "FL-S438" && e.State == Disconnected
	}
	assert.True(t, found)
	_, err = word(r)
	assert.NoError(t, err)
}

// Tunnels that are asked at once move independently, each at its time, and beyond the greatest size of the pool meanwhile.
//
// Verifies: R8.8
func TestTunnelsMoveIndependently(t *testing.T) {
	t.Parallel()
	b := newReplicas(t, 2)
	a := b.all[0]
	r := b.pool(t, func(c *Config) { c.Min, c.Max = 2, 2 })
	var streams []*link.Stream
	for range 2 {
		streams = append(streams, open(t, r, link.Normal))
	}
	require.NotSame(t, streams[0].Tunnel(), streams[1].Tunnel())
	b.next(b.all[1])
	a.drains(goingAway)
	for _, tun := range a.all() {
		delay := time.Hour
		if tun.Name() == streams[1].Tunnel().Name() {
			delay = 0
		}
		tun.SendGoAway(link.GoAway{Reason: goingAway, Delay: delay})
	}
	eventually(t, "one has moved", func() bool { return r.slotOf(streams[1]).State == Draining })
	assert.Equal(t, Connected, r.slotOf(streams[0]).State, "the other one's time has not come")
	assert.Equal(t, 3, r.connected())
	for _, tun := range a.all() {
		tun.SendGoAway(link.GoAway{Reason: goingAway})
	}
	s := streams[0]
	eventually(t, "the other moves", func() bool { return r.slotOf(s).State == Draining })
	assert.Equal(t, 4, r.connected())
	assert.Len(t, b.all[1].all(), 2)
	for _, s := range streams {
		assert.NoError(t, s.Tunnel().Err())
		s.Reset(nil)
	}
	eventually(t, "the old ones end", func() bool { return len(a.all()) == 0 && len(r.list()) == 2 })
	assert.True(t, r.metric(`fairlead_sidecar_moves_total{reason="drain"} 2`)())
}
