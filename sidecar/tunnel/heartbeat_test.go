package tunnel

import (
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"fairlead/shared/link"
)

// idleCutter is a middlebox that ends connections which carry nothing for a while.
type idleCutter struct {
	l      net.Listener
	target string
	idle   time.Duration
	wg     sync.WaitGroup
	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	cuts   int
}

func newIdleCutter(t *testing.T, g *gateway, idle time.Duration) (*idleCutter, Endpoint) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	c := &idleCutter{l: l, target: g.l.Addr().String(), idle: idle, conns: map[net.Conn]struct{}{}}
	c.wg.Go(c.accept)
	t.Cleanup(func() {
		l.Close()
		c.mu.Lock()
		for conn := range c.conns {
			conn.Close()
		}
		c.mu.Unlock()
		c.wg.Wait()
	})
	return c, Endpoint{URL: "ws://" + l.Addr().String() + "/v1/tunnel"}
}

func (c *idleCutter) accept() {
	for {
		near, err := c.l.Accept()
		if err != nil {
			return
		}
		c.wg.Go(func() { c.carry(near) })
	}
}

func (c *idleCutter) carry(near net.Conn) {
	far, err := net.Dial("tcp", c.target)
	if err != nil {
		near.Close()
		return
	}
	c.mu.Lock()
	c.conns[near], c.conns[far] = struct{}{}, struct{}{}
	c.mu.Unlock()
	cut := time.AfterFunc(c.idle, func() {
		c.mu.Lock()
		c.cuts++
		c.mu.Unlock()
		near.Close()
		far.Close()
	})
	var both sync.WaitGroup
	pump := func(to, from net.Conn) {
		defer to.Close()
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			cut.Reset(c.idle)
			if n > 0 {
				if _, err := to.Write(buf[:n]); err != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}
	both.Go(func() { pump(far, near) })
	pump(near, far)
	both.Wait()
	cut.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, near)
	delete(c.conns, far)
}

func (c *idleCutter) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cuts
}

// A path that cuts idle connections is noticed; heartbeats come more often than it cuts, on the tunnels there are and after a
// restart; and all of it is said.
//
// Verifies: R6.1, R8.7
func TestHeartbeatsLearnWhatThePathCuts(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	cutter, e := newIdleCutter(t, g, 2200*time.Millisecond)
	state := filepath.Join(t.TempDir(), "state.json")
	memory := openMemory(t, state)
	use := func(c *Config) { c.Endpoints, c.Memory = []Endpoint{e}, memory }
	r := startPool(t, use)
	eventually(t, "ready", r.Ready)
	s := open(t, r, link.Normal) // idle all the time
	assert.Equal(t, HeartbeatStatus{Interval: "30s", Reason: "configured"}, r.Status().Heartbeat)
	eventually(t, "learned", func() bool { return r.Status().Heartbeat.Learned })
	cuts := cutter.count()
	assert.Equal(t, 2, cuts, "two similar cuts are enough")
	interval := s.Tunnel().Stats().Heartbeat
	assert.Less(t, interval, 2200*time.Millisecond)
	assert.GreaterOrEqual(t, interval, leastHeartbeat)
	assert.Contains(t, r.Status().Heartbeat.Reason, "are cut after")
	assert.Equal(t, interval.String(), r.Status().Heartbeat.Interval)
	assert.Equal(t, 1, strings.Count(r.log.String(), `msg="heartbeat changed"`))
	assert.True(t, r.metric("fairlead_sidecar_idle_cuts_total 2")())
	events := 0
	for _, ev := range r.Status().Events {
		if strings.HasPrefix(ev.Reason, "heartbeat every") {
			events++
		}
	}
	assert.Equal(t, 1, events)

	sent := s.Tunnel().Stats().PingsSent
	eventually(t, "the lane lives on", func() bool { return s.Tunnel().Stats().PingsSent >= sent+3 })
	assert.Equal(t, cuts, cutter.count())
	assert.Equal(t, uint64(2), s.Tunnel().Stats().Resumes)
	r.stop()

	memory.Flush()
	memory = openMemory(t, state)
	r = startPool(t, use)
	eventually(t, "ready after a restart", r.Ready)
	s = open(t, r, link.Normal)
	assert.Equal(t, interval, s.Tunnel().Stats().Heartbeat)
	assert.True(t, r.Status().Heartbeat.Learned)
	assert.Contains(t, r.log.String(), "heartbeat remembered")
}

func minutes(n float64) time.Duration { return time.Duration(n * float64(time.Minute)) }

func TestTheLearner(t *testing.T) {
	now := time.Now()
	var l learner
	assert.False(t, l.lost(time.Second, now), "nobody has such a limit")
	assert.False(t, l.lost(20*time.Second, now))
	assert.False(t, l.lost(9*time.Second, now), "another time: something else than an idle limit, or another limit")
	assert.Zero(t, l.now())
	assert.True(t, l.lost(9400*time.Millisecond, now))
	assert.Equal(t, 6750*time.Millisecond, l.now(), "three quarters of the lesser")

	assert.False(t, l.look(0, 30*time.Second, now.Add(firstTrial/2)))
	at := now.Add(firstTrial + time.Second)
	assert.True(t, l.look(0, 30*time.Second, at), "a longer one is tried")
	assert.Equal(t, 13500*time.Millisecond, l.now())
	assert.False(t, l.look(time.Second, 30*time.Second, at.Add(minutes(60))), "nothing was idle for so long: that proves nothing")
	assert.True(t, l.lost(9*time.Second, at.Add(minutes(61))), "the limit is still there")
	assert.Equal(t, 6750*time.Millisecond, l.now())
	assert.False(t, l.look(0, 30*time.Second, at.Add(firstTrial+2*minutes(60))), "the next trial comes later")

	at = at.Add(3 * firstTrial)
	assert.True(t, l.look(0, 30*time.Second, at))
	at = at.Add(minutes(5))
	assert.True(t, l.look(13400*time.Millisecond, 30*time.Second, at), "the limit has gone")
	assert.Equal(t, 13500*time.Millisecond, l.now())
	at = at.Add(minutes(2))
	assert.True(t, l.look(0, 30*time.Second, at), "then it goes on soon")
	at = at.Add(minutes(5))
	assert.True(t, l.look(20*time.Second, 30*time.Second, at))
	at = at.Add(minutes(2))
	assert.True(t, l.look(0, 30*time.Second, at))
	assert.Equal(t, 30*time.Second, l.now())
	at = at.Add(minutes(5))
	assert.True(t, l.look(29*time.Second, 30*time.Second, at))
	assert.Equal(t, learner{}, l, "up to where nothing needs to be learned")
}

// A firewall that drops silently shows as heartbeats without an answer: the interval goes down until they have one.
func TestTheLearnerGoesDownUntilTheLinkLives(t *testing.T) {
	const limit = 12 * time.Second
	var l learner
	interval := 30 * time.Second
	deaths := 0
	for interval > limit {
		deaths++
		if l.lost(interval, time.Now()) {
			interval = l.now()
		}
		require.Less(t, deaths, 20)
	}
	assert.Equal(t, 8, deaths)
	assert.Greater(t, interval, limit/2)
}

func TestWhatWasLearnedIsChecked(t *testing.T) {
	now := time.Now().Round(0)
	l := learner{interval: 15 * time.Second, cut: 20 * time.Second, rest: 2 * firstTrial, next: now.Add(time.Hour)}
	var back learner
	back.restore(l.saved(), now)
	assert.Equal(t, l, back)
	for _, bad := range []*Beat{nil, {}, {IntervalMS: -5}, {IntervalMS: 10}, {IntervalMS: 1 << 60}} {
		back = learner{}
		back.restore(bad, now)
		assert.Equal(t, learner{}, back)
	}
	back.restore(&Beat{IntervalMS: 5000, CutMS: -1, RestMS: 1 << 62, Next: now.AddDate(100, 0, 0)}, now)
	assert.Equal(t, learner{interval: 5 * time.Second, rest: firstTrial, next: now.Add(firstTrial)}, back)
}

// With a choice of endpoints a gateway that goes silent while nothing is under way is noticed within one probe's time.
func TestHeartbeatsFollowTheProbesOfAChoice(t *testing.T) {
	g, other := newGateway(t), newGateway(t)
	r := startPool(t, func(c *Config) { c.Probe = 3 * time.Second }, g, other)
	eventually(t, "ready", r.Ready)
	s := open(t, r, link.Normal)
	assert.Equal(t, 3*time.Second, s.Tunnel().Stats().Heartbeat)
	assert.Equal(t, HeartbeatStatus{Interval: "3s", Reason: "as often as endpoints are probed, since there are several"}, r.Status().Heartbeat)
}
