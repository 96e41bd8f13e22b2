package tunnel

import (
	"errors"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// Open begins a stream on the tunnel that suits it best. Without a tunnel the error is NoTunnel, or GaveUp when it would be
// of no use to wait for one.
func (p *Pool) Open(req link.OpenRequest) (*link.Stream, error) {
	for {
		s, t := p.pick(req.Priority)
		if t == nil && p.hopeless() {
			return nil, errs.New(errs.GaveUp, "the sidecar has given up reconnecting")
		}
		if t == nil {
			return nil, errs.New(errs.NoTunnel, "there is no tunnel to a gateway")
		}
		stream, err := t.Open(req)
		switch {
		case errors.Is(err, errs.StreamsExhausted):
			s.leave("its stream ids are used up")
		case err == nil || t.Err() == nil:
			if err == nil {
				s.opened(stream)
			}
			return stream, err
		} // else the tunnel has ended just now
	}
}

// pick chooses the tunnel for a stream; nil when there is none.
func (p *Pool) pick(prio link.Priority) (best *slot, tunnel *link.Tunnel) {
	var bestScore float64
	streams := 0
	p.settledLook(func(slots []*slot) bool {
		for i, s := range slots {
			s.watchOpens()
			t := s.usable()
			if t == nil {
				continue
			}
			n := t.Stats().Streams
			streams += n
			if score := s.score(prio, i, n); best == nil || score < bestScore {
				best, tunnel, bestScore = s, t, score
			}
		}
		return best != nil
	})
	if streams == 0 || streams%streamsPerTunnel == streamsPerTunnel-1 {
		p.nudge() // the pool may have to grow
	}
	return best, tunnel
}

// score says how badly a stream would fare on a tunnel with n streams: interactive ones go where no bulk is, to the first
// tunnel if in doubt; others keep off the first tunnel.
func (s *slot) score(prio link.Priority, index, n int) float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	load := float64(n)
	if s.asked.goesAway() { // what is opened there may be cut
		load += 8 * streamsPerTunnel
	}
	if prio == link.High {
		return load + s.busy.rate/bulkRate*streamsPerTunnel + float64(index)*streamsPerTunnel/2
	}
	if index == 0 && s.p.config().Mixed {
		load += 4 * streamsPerTunnel
	}
	return load
}
