package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"fairlead/bench/proc"
	"fairlead/shared/errs"
)

const (
	mostReturn = 10 * time.Second // in which all tunnels of a killed replica are back
	mostErrors = 0.01             // of the opens of others meanwhile
)

// storm kills one of three replicas, whose tunnels all come back to the other two at once, while others go on opening.
func storm(ctx context.Context, o Options, r *Result) error {
	n := pick(o, 1000, 200)
	if _, err := proc.RaiseFiles(uint64(8*n + 1000)); err != nil {
		return err
	}
	return on(ctx, o, r, "storm", Config{}, func(s *Site) error {
		c, err := s.Client(Tenant)
		if err != nil {
			return err
		}
		rs := ridersOf(ctx, c, s.Balancer.Addr(), n)
		defer rs.end()
		if err := Until(ctx, 2*time.Minute, "all tunnels are up", func() bool { return rs.up() == n }, s.Err); err != nil {
			return r.stop("%v", err)
		}
		if err := s.awaitLeases(ctx, n); err != nil {
			return r.stop("%v", err)
		}
		victim := s.Replicas[0]
		hit, others := rs.split(victim.Name)
		r.least("tunnels of the killed replica", float64(len(hit)), 1, "")
		r.least("tunnels of others", float64(len(others)), 1, "")
		if r.failed() {
			return errStopped
		}
		opens, failed, stop := openOn(ctx, o, others, pick(o, 16, 4))
		defer stop()
		if err := pause(ctx, pick(o, 2*time.Second, 300*time.Millisecond)); err != nil {
			return err
		}
		o.Note("%s is killed, with %d of %d tunnels", victim.Name, len(hit), n)
		killed := time.Now()
		victim.Kill()
		err = Until(ctx, 3*time.Minute, "all tunnels are back", func() bool { return back(hit, killed) }, s.Err)
		if err != nil {
			return r.stop("%v: %d of %d; the others were refused: %v", err, rs.up(), n, refusals(hit, killed))
		}
		if took := lastBack(hit).Sub(killed).Seconds(); o.Short {
			r.figure("all are back within", took, "s")
		} else {
			r.most("all are back within", took, mostReturn.Seconds(), "s")
		}
		stop()
		stormFigures(ctx, s, r, hit, others, opens.Load(), failed.Load())
		return nil
	})
}

// awaitLeases waits until the store knows whose each tunnel is. On a machine that is busy it may learn that late.
func (s *Site) awaitLeases(ctx context.Context, tunnels int) error {
	return Until(ctx, readyTimeout, "the store knows all tunnels", func() bool {
		held := 0
		for _, one := range s.Replicas {
			var said struct {
				Leases struct {
					Held int `json:"held"`
				} `json:"leases"`
			}
			if one.Get(ctx, "/api/replicas", &said) != nil {
				return false
			}
			held += said.Leases.Held
		}
		return held == tunnels
	}, s.Err)
}

// split sorts the riders by whether their tunnel is a replica's.
func (rs *riders) split(replica string) (its, others []*rider) {
	for _, one := range rs.all {
		if _, _, name := one.state(); name == replica {
			its = append(its, one)
		} else {
			others = append(others, one)
		}
	}
	return its, others
}

func back(list []*rider, killed time.Time) bool {
	for _, one := range list {
		if up, since, _ := one.state(); !up || since.Before(killed) {
			return false
		}
	}
	return true
}

// refusals says how the attempts of those that are not back have ended, and the last of them.
func refusals(list []*rider, killed time.Time) map[string]int {
	all := map[string]int{}
	for _, one := range list {
		if back([]*rider{one}, killed) {
			continue
		}
		one.mu.Lock()
		for code, n := range one.refused {
			all[code.String()] += n
		}
		all[fmt.Sprintf("last: %v", one.last)]++
		one.mu.Unlock()
	}
	return all
}

func lastBack(list []*rider) (last time.Time) {
	for _, one := range list {
		if _, since, _ := one.state(); since.After(last) {
			last = since
		}
	}
	return last
}

// openOn opens streams on tunnels, from so many workers, until stop is called.
func openOn(ctx context.Context, o Options, list []*rider, workers int) (opens, failed *atomic.Int64, stop func()) {
	opens, failed = new(atomic.Int64), new(atomic.Int64)
	t := newTraffic(ctx, &Result{}, o.Seed) // its failures are a part of the opens, and counted
	for n := range workers {
		t.worker(n, small, func(ctx context.Context, e exchange, rng *rand.Rand) (time.Duration, error) {
			took, err := list[rng.IntN(len(list))].exchange(ctx, e)
			if ctx.Err() == nil {
				opens.Add(1)
				if err != nil {
					failed.Add(1)
					o.Note("an open of others: %v", err)
				}
			}
			return took, err
		}, 20*time.Millisecond)
	}
	return opens, failed, t.finish
}

func stormFigures(ctx context.Context, s *Site, r *Result, hit, others []*rider, opens, failed int64) {
	spread, told := map[string]int{}, map[errs.Code]int{}
	for _, one := range hit {
		_, _, name := one.state()
		spread[name]++
		for code, n := range one.refused {
			told[code] += n
		}
	}
	for _, one := range s.Replicas[1:] {
		r.least("of them at "+one.Name, float64(spread[one.Name]), 1, "")
	}
	for code, n := range told {
		r.figure("attempts that ended with "+code.String(), float64(n), "")
	}
	again := 0
	for _, one := range others {
		one.mu.Lock()
		again += one.made + one.resumed - 1
		one.mu.Unlock()
	}
	r.most("other tunnels that were cut", float64(again), 0, "")
	r.least("opens of others meanwhile", float64(opens), 1, "")
	r.most("failed of them", 100*float64(failed)/float64(max(opens, 1)), 100*mostErrors, "%")
	if ctx.Err() != nil {
		r.fail("%v", context.Cause(ctx))
	}
}
