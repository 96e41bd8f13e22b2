package session

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
)

// Balance is when tunnels are asked to move. Nothing is cut: the sidecar opens another tunnel, wherever that comes to, and
// streams that are open finish on the old one.
type Balance struct {
	MaxAge    time.Duration // of a tunnel, or up to a fifth less; 0: any
	Tolerance int           // per cent by which this replica may have more tunnels than the average; 0: any
	PerMinute int           // tunnels that are asked to move, at most
}

const (
	balanceEvery = 10 * time.Second
	// leastExcess is how many tunnels above the tolerance are worth moving one: with few tunnels chance decides who has more.
	leastExcess = 3
	ageSpread   = 5 // the part of the age by which tunnels differ
)

// Balance asks tunnels to move, until ctx ends: those that are old, and some when this replica has more than others.
func (r *Registry) Balance(ctx context.Context, b Balance) error {
	tick := time.NewTicker(balanceEvery)
	defer tick.Stop()
	allowed := 0.0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		most := float64(b.PerMinute) * balanceEvery.Minutes()
		allowed = min(allowed+most, max(most, 1))
		if r.Draining() {
			continue
		}
		allowed -= float64(r.rebalance(b, int(allowed)))
	}
}

// rebalance asks up to most tunnels to move and returns how many it has asked. Those that are asked already do not count as this replica's
// any more, however long their streams last.
func (r *Registry) rebalance(b Balance, most int) int {
	now := r.cfg.Now()
	alive := slices.DeleteFunc(r.snapshot(), func(s *session) bool { return s.tunnel.Err() != nil })
	stay := slices.DeleteFunc(slices.Clone(alive), func(s *session) bool { return s.moving.Load() })
	slices.SortFunc(stay, func(x, y *session) int { return cmp.Compare(x.since.UnixNano(), y.since.UnixNano()) })
	asked := 0
	for asked < len(stay) && asked < most && b.MaxAge > 0 && now.Sub(stay[asked].since) >= b.MaxAge-stay[asked].younger(b.MaxAge) {
		stay[asked].askToMove("it has reached the age of "+b.MaxAge.String(), "age")
		asked++
	}
	stay = stay[asked:]
	rand.Shuffle(len(stay), func(i, j int) { stay[i], stay[j] = stay[j], stay[i] })
	for i := range min(most-asked, r.excess(len(stay), len(alive), b.Tolerance)) {
		stay[i].askToMove("this replica has more tunnels than others", "spread")
		asked++
	}
	return asked
}

// younger is by how much the tunnel is asked before its age: always the same for one tunnel, so that tunnels that were made
// together do not move together.
func (s *session) younger(age time.Duration) time.Duration {
	id := s.tunnel.ID()
	return age / ageSpread * time.Duration(id[0]) / 256
}

// excess is how many of the tunnels that stay are more than the tolerance above the average of the replicas that take new ones;
// here are those that are to move, too, wherever they will be.
func (r *Registry) excess(stay, here, tolerance int) int {
	if tolerance == 0 || r.leases == nil {
		return 0
	}
	all, replicas := here, 1
	for _, other := range r.leases.directory().listed {
		if other.ID != r.leases.self.ID && !other.Draining {
			all += other.Tunnels
			replicas++
		}
	}
	if replicas == 1 {
		return 0
	}
	allowed := float64(all)/float64(replicas)*(1+float64(tolerance)/100) + leastExcess
	if float64(stay) < allowed {
		return 0
	}
	return int(float64(stay)-allowed) + 1
}

func (s *session) askToMove(why, reason string) {
	s.moving.Store(true)
	s.r.cfg.Metrics.GetOrCreateCounter(`fairlead_gateway_tunnels_moved_total{reason="` + reason + `"}`).Inc()
	s.log.Info("tunnel asked to move", logging.FieldCode, errs.Rebalanced.String(), logging.FieldReason, why)
	s.tunnel.SendGoAway(link.GoAway{Reason: errs.New(errs.Rebalanced, "the tunnel is to move: %s", why), Delay: rand.N(balanceEvery)})
}
