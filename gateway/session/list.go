package session

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fairlead/shared/link"
)

// Info describes a tunnel.
type Info struct {
	ID           string
	Identity     Identity
	Peer         string // network address of the sidecar
	Via          string // name of the replica through which its lane comes; empty: directly
	Attached     bool   // a lane carries it now
	Since        time.Time
	Stats        link.Stats
	SentRate     float64 // bytes per second, lately
	ReceivedRate float64
}

// List describes the tunnels, oldest first.
func (r *Registry) List() []Info {
	list := []Info{}
	for _, s := range r.snapshot() {
		st := s.tunnel.Stats()
		s.mu.Lock()
		f, from := s.flow, s.from.Load()
		s.mu.Unlock()
		list = append(list, Info{ID: s.id(), Identity: s.who.Identity(), Peer: from.client, Via: from.via, Attached: st.Attached, Since: s.since, Stats: st,
			SentRate: f.sentRate, ReceivedRate: f.receivedRate})
	}
	slices.SortFunc(list, func(a, b Info) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID)) })
	return list
}

func (r *Registry) snapshot() []*session {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*session, 0, len(r.sessions))
	for _, s := range r.sessions {
		all = append(all, s)
	}
	return all
}

// Counts of a registry.
type Counts struct{ Tunnels, Detached, Streams int }

func (r *Registry) count() (c Counts) {
	for _, s := range r.snapshot() {
		st := s.tunnel.Stats()
		c.Tunnels++
		c.Streams += st.Streams
		if !st.Attached {
			c.Detached++
		}
	}
	return c
}

// Counts counts tunnels and streams.
func (r *Registry) Counts() Counts { return r.count() }

// End ends one tunnel with err, and says whether it was there.
func (r *Registry) End(id string, err error) bool {
	for _, s := range r.snapshot() {
		if s.id() == id {
			s.tunnel.Close(err)
			return true
		}
	}
	return false
}

// Totals is what has come of everything since the start, as of the last Sample. They only grow.
type Totals struct {
	Opened, Refused, Failed uint64 // opens
	Sent, Received          uint64 // bytes of streams, towards clients and from them
	Resumes, Lost           uint64 // tunnels that came back, and did not
}

// Totals adds up.
func (r *Registry) Totals() Totals {
	o := r.cfg.Opener
	t := Totals{Sent: o.streams.sent.Get(), Received: o.streams.received.Get(), Resumes: r.resumed.Get() + r.relayed.Get(), Lost: r.lost.Get()}
	for _, one := range o.TenantTotals() {
		t.Opened, t.Refused, t.Failed = t.Opened+one.Opened, t.Refused+one.Refused, t.Failed+one.Failed
	}
	return t
}

// Resumes counts the resumes that came to this registry, by what came of them: of tunnels of this replica, of those that were
// relayed to their owners, of those that were refused while the tunnel lives or may live, and of tunnels that are gone.
func (r *Registry) Resumes() (same, relayed, refused, lost uint64) {
	return r.resumed.Get(), r.forwarded.Get(), r.refused.Get(), r.gone.Get()
}

// LeasesLost counts the tunnels that other replicas have given up.
func (r *Registry) LeasesLost() uint64 {
	if r.leases == nil {
		return 0
	}
	return r.leases.losses.Get()
}

// Enforce ends every tunnel whose identity check refuses, and every stream, those outside tunnels included, whose identity
// it refuses, with its error. It returns how many of both those were. check is called for several at once: it may ask
// somebody who takes long to answer. Streams come first, so that those of a tunnel that ends are counted too.
func (r *Registry) Enforce(check func(Identity) error) (tunnels, streams int) {
	streams = recheck(r.cfg.Opener.streams.snapshot(), func(who Identity, _ string) error { return check(who) })
	tunnels = count(r.snapshot(), func(s *session) bool {
		err := check(s.who.Identity())
		if err != nil {
			s.tunnel.Close(err)
		}
		return err != nil
	})
	return tunnels, streams
}

// together is how many are checked at once.
const together = 32

// count says for how many of list f holds.
func count[T any](list []T, f func(T) bool) int {
	var next, n atomic.Int64
	var all sync.WaitGroup
	for range min(together, len(list)) {
		all.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(list)); i = next.Add(1) - 1 {
				if f(list[i]) {
					n.Add(1)
				}
			}
		})
	}
	all.Wait()
	return int(n.Load())
}

// Sample brings counters and rates of tunnels and streams up to date; every is the time since it was called last.
func (r *Registry) Sample(every time.Duration) {
	for _, s := range r.snapshot() {
		st := s.tunnel.Stats()
		s.mu.Lock()
		s.flow.advance(st.BytesSent, st.BytesReceived, every)
		s.mu.Unlock()
		if st.Attached && st.RTT > 0 {
			r.rtt.Update(st.RTT.Seconds())
		}
	}
	r.cfg.Opener.sample(every)
}
