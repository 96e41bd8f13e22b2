package tunnel

import (
	"slices"
	"time"

	"fairlead/shared/errs"
)

// TunnelStatus describes one slot of the pool.
type TunnelStatus struct {
	Slot     int       `json:"slot"`
	ID       string    `json:"id"`
	Endpoint string    `json:"endpoint"`
	Replica  string    `json:"replica"` // that owns the tunnel
	Via      string    `json:"via"`     // that its lane goes by; empty: by the same, or it was not told
	State    State     `json:"state"`
	Since    time.Time `json:"since"`
	RTT      float64   `json:"rtt_ms"`
	Loss     float64   `json:"loss"`    // part of the tunnel's heartbeats that were not answered in time, 0 to 1
	Quality  Grade     `json:"quality"` // by round trip and loss; none when it is not connected
	Streams  int       `json:"streams"`
	Resumes  uint64    `json:"resumes"`
	Sent     uint64    `json:"bytes_sent"`
	Received uint64    `json:"bytes_received"`
	Replayed uint64    `json:"bytes_replayed"`
	Error    string    `json:"error,omitempty"` // of the last attempt, or why the lane was lost
}

// Status describes the pool.
type Status struct {
	State   State          `json:"state"`
	Since   time.Time      `json:"since"`
	Tunnels []TunnelStatus `json:"tunnels"`
	Events  []Event        `json:"events"`
	Link
	Heartbeat HeartbeatStatus  `json:"heartbeat"`
	Endpoints []EndpointStatus `json:"endpoints"`
}

// rank orders states by how well connections fare; the pool is as well as its best tunnel.
var rank = map[State]int{Connected: 6, Draining: 5, Resuming: 4, Connecting: 3, Disconnected: 2, Failed: 1}

// Status returns a snapshot.
func (p *Pool) Status() Status {
	st := Status{State: Disconnected, Tunnels: []TunnelStatus{}, Events: p.history.list(), Link: p.meter.read(),
		Heartbeat: p.heartbeat(), Endpoints: p.ends.status(time.Now())}
	best := 0
	for _, s := range p.list() {
		t := s.status()
		st.Tunnels = append(st.Tunnels, t)
		if rank[t.State] > best {
			best, st.State, st.Since = rank[t.State], t.State, t.Since
		}
	}
	return st
}

func (s *slot) status() TunnelStatus {
	s.mu.Lock()
	st := TunnelStatus{Slot: s.n, Endpoint: s.endpoint, State: s.machine.state, Since: s.machine.since, Quality: None}
	if s.lastErr != nil && !st.State.up() {
		st.Error = s.lastErr.Error()
	}
	tunnel, via, rtt, connected := s.tunnel, s.via, s.busy.rtt, s.machine.state.up()
	s.mu.Unlock()
	if tunnel == nil {
		return st
	}
	t := tunnel.Stats()
	st.ID, st.Replica, st.Via = tunnel.Name(), tunnel.Replica(), via
	if n := t.PingsAnswered + t.PingsLost; t.PingsLost > 0 {
		st.Loss = float64(t.PingsLost) / float64(n)
	}
	if connected {
		st.Quality = GradeOf(max(rtt, t.RTT), st.Loss)
	}
	if connected && t.Silent > doubtAfter && st.Error == "" {
		st.Error = "the gateway has been silent for " + t.Silent.Round(time.Second).String()
	}
	st.RTT, st.Streams, st.Resumes = float64(t.RTT.Microseconds())/1000, t.Streams, t.Resumes
	st.Sent, st.Received, st.Replayed = t.BytesSent, t.BytesReceived, t.BytesReplayed
	return st
}

// measure looks at all tunnels, and grades the link by the best of them.
func (p *Pool) measure(now time.Time, elapsed time.Duration) {
	var best time.Duration
	for _, s := range p.list() {
		s.look(elapsed)
		s.mu.Lock()
		rtt, ok := s.busy.rtt, s.machine.state.up()
		s.mu.Unlock()
		if ok && rtt > 0 && (best == 0 || rtt < best) {
			best = rtt
		}
	}
	p.meter.look(now, elapsed, best)
}

func (p *Pool) connected() (n int) {
	for _, s := range p.list() {
		if s.state().up() {
			n++
		}
	}
	return n
}

func (p *Pool) streams() (n int) {
	for _, s := range p.list() {
		if t := s.current(); t != nil {
			n += t.Stats().Streams
		}
	}
	return n
}

// Ready says whether a connection would be carried now.
func (p *Pool) Ready() bool {
	return p.settledLook(func(slots []*slot) bool {
		return slices.ContainsFunc(slots, func(s *slot) bool { return s.usable() != nil })
	})
}

// settledLook lets look search the slots. When it finds nothing while slots were added it looks again: a tunnel is retired
// only after the one that takes its place works, but that may be younger than the list.
func (p *Pool) settledLook(look func([]*slot) bool) bool {
	for slots := p.list(); ; {
		if look(slots) {
			return true
		}
		now := p.list()
		if slices.Equal(slots, now) {
			return false
		}
		slots = now
	}
}

// Usable returns nil when a connection would be carried now, and else why not: NoTunnel, or GaveUp when it would be of no use
// to wait.
func (p *Pool) Usable() error {
	switch last := p.LastError(); {
	case p.Ready():
		return nil
	case p.hopeless() && last != nil:
		return errs.Wrap(errs.GaveUp, last, "the sidecar has given up reconnecting")
	case last != nil:
		return errs.Wrap(errs.NoTunnel, last, "there is no tunnel to a gateway")
	}
	return errs.New(errs.NoTunnel, "there is no tunnel to a gateway")
}

// Changed returns a channel that is closed at the next change of a state.
func (p *Pool) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.watch
}

func (p *Pool) changed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.watch)
	p.watch = make(chan struct{})
}

// LastError is why the last attempt failed, of the first tunnel that is down; nil when none is.
func (p *Pool) LastError() error {
	for _, s := range p.list() {
		s.mu.Lock()
		err := s.lastErr
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}
