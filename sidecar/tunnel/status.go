package tunnel

import "time"

// TunnelStatus describes one slot of the pool.
type TunnelStatus struct {
	Slot     int       `json:"slot"`
	ID       string    `json:"id"`
	Endpoint string    `json:"endpoint"`
	Replica  string    `json:"replica"`
	State    State     `json:"state"`
	Since    time.Time `json:"since"`
	RTT      float64   `json:"rtt_ms"`
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
}

// rank orders states by how well connections fare; the pool is as well as its best tunnel.
var rank = map[State]int{Connected: 6, Draining: 5, Resuming: 4, Connecting: 3, Disconnected: 2, Failed: 1}

// Status returns a snapshot.
func (p *Pool) Status() Status {
	st := Status{State: Disconnected, Tunnels: []TunnelStatus{}, Events: p.history.list()}
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
	st := TunnelStatus{Slot: s.n, Endpoint: s.endpoint, State: s.machine.state, Since: s.machine.since}
	if !s.moveAt.IsZero() && st.State == Connected {
		st.State = Draining
	}
	if s.lastErr != nil && st.State != Connected {
		st.Error = s.lastErr.Error()
	}
	tunnel := s.tunnel
	s.mu.Unlock()
	if tunnel == nil {
		return st
	}
	t := tunnel.Stats()
	st.ID, st.Replica = tunnel.Name(), tunnel.Replica()
	st.RTT, st.Streams, st.Resumes = float64(t.RTT.Microseconds())/1000, t.Streams, t.Resumes
	st.Sent, st.Received, st.Replayed = t.BytesSent, t.BytesReceived, t.BytesReplayed
	return st
}

func (p *Pool) connected() (n int) {
	for _, s := range p.list() {
		if s.state() == Connected {
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
	for _, s := range p.list() {
		if s.usable() != nil {
			return true
		}
	}
	return false
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
