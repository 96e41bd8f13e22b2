package tunnel

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"fairlead/shared/errs"
)

// Endpoint is the address of a gateway, or of a load balancer in front of several.
type Endpoint struct {
	URL    string // ws or wss, with the path of tunnels
	Weight int    // share of new tunnels. All 0: endpoints are used in order. Else those of 0 are used when no other works
}

// InOrder makes endpoints that are used in order.
func InOrder(urls []string) []Endpoint {
	all := make([]Endpoint, len(urls))
	for i, u := range urls {
		all[i].URL = u
	}
	return all
}

// Health of an endpoint, as attempts, tunnels and probes show it.
type Health string

// The states of health.
const (
	Unknown Health = "unknown" // nothing has been tried yet
	Healthy Health = "healthy"
	Failing Health = "failing"
)

// endpoint is what is known about one. Guarded by endpoints.mu; url and jar stay the same.
type endpoint struct {
	url       string
	jar       *jar // affinity cookies for new tunnels
	weight    int
	index     int // position in the configuration
	removed   bool
	health    Health
	since     time.Time // of the health
	err       error     // why it is failing
	out       time.Time // when it failed, until its share of tunnels has been given back; zero: it has its share
	suspect   bool      // all tunnels there are silent or cannot be resumed
	probing   bool
	nextProbe time.Time
	beat      learner // guarded by Pool.learning
}

// endpoints knows which endpoint new tunnels go to.
type endpoints struct {
	mu       sync.Mutex
	list     []*endpoint
	active   *endpoint // in order: where new tunnels go; never nil
	weighted bool
	failback time.Duration // for how long an endpoint must be healthy before tunnels go back to it
	float    func() float64
}

func newEndpoints() *endpoints { return &endpoints{float: rand.Float64} }

// set takes a configuration. What is known about endpoints that stay is kept.
func (es *endpoints) set(all []Endpoint, failback time.Duration, now time.Time) {
	es.mu.Lock()
	defer es.mu.Unlock()
	es.failback, es.weighted = failback, false
	before := es.list
	es.list = nil
	for i, c := range all {
		var e *endpoint
		if at := slices.IndexFunc(before, func(b *endpoint) bool { return b.url == c.URL }); at >= 0 {
			e = before[at]
		} else {
			e = &endpoint{url: c.URL, jar: newJar(), health: Unknown, since: now}
		}
		e.index, e.weight = i, c.Weight
		es.weighted = es.weighted || c.Weight > 0
		es.list = append(es.list, e)
	}
	for _, b := range before {
		b.removed = !slices.Contains(es.list, b)
	}
	if es.active == nil || es.active.removed {
		es.active = es.candidatesLocked(now)[0]
	}
}

// prefer makes the endpoint with this URL the one that new tunnels go to, if there is one: it was so before a restart.
func (es *endpoints) prefer(url string) {
	es.mu.Lock()
	defer es.mu.Unlock()
	for _, e := range es.list {
		if e.url == url {
			es.active = e
		}
	}
}

func (es *endpoints) all() []*endpoint {
	es.mu.Lock()
	defer es.mu.Unlock()
	return slices.Clone(es.list)
}

func (es *endpoints) isWeighted() bool {
	es.mu.Lock()
	defer es.mu.Unlock()
	return es.weighted
}

func (es *endpoints) activeNow() *endpoint {
	es.mu.Lock()
	defer es.mu.Unlock()
	return es.active
}

func (es *endpoints) several() bool {
	es.mu.Lock()
	defer es.mu.Unlock()
	return len(es.list) > 1
}

// candidates lists all endpoints, the one that a new tunnel should go to first.
func (es *endpoints) candidates(now time.Time) []*endpoint {
	es.mu.Lock()
	defer es.mu.Unlock()
	return es.candidatesLocked(now)
}

func (es *endpoints) candidatesLocked(now time.Time) []*endpoint {
	list := slices.Clone(es.list)
	if es.weighted {
		es.draw(list)
	}
	slices.SortStableFunc(list, func(a, b *endpoint) int { return es.class(a, now) - es.class(b, now) })
	return list
}

// class says how good a choice an endpoint is; less is better. Within a class the order of the configuration decides, or the
// draw.
func (es *endpoints) class(e *endpoint, now time.Time) int {
	switch {
	case e.health == Failing:
		return 4
	case e.suspect:
		return 3
	case es.weighted && e.weight == 0:
		return 2
	case es.weighted && !es.settled(e, now), !es.weighted && e != es.active:
		return 1
	}
	return 0
}

// settled says whether an endpoint has never failed, or has been healthy for long enough. Called with mu held.
func (es *endpoints) settled(e *endpoint, now time.Time) bool {
	return e.out.IsZero() || e.health == Healthy && now.Sub(e.since) >= es.failback
}

// draw orders by weighted chance. Called with mu held.
func (es *endpoints) draw(list []*endpoint) {
	for i := range list {
		total := 0
		for _, e := range list[i:] {
			total += e.weight
		}
		at := es.float() * float64(total)
		for j := i; j < len(list); j++ {
			if at -= float64(list[j].weight); at < 0 {
				list[i], list[j] = list[j], list[i]
				break
			}
		}
	}
}

// report takes how an attempt or a probe went, and says whether the health has changed.
func (es *endpoints) report(e *endpoint, err error, now time.Time) (changed bool) {
	health := verdict(err)
	es.mu.Lock()
	defer es.mu.Unlock()
	if health == Unknown {
		return false
	}
	if health == Failing {
		e.err = err
		if e.out.IsZero() {
			e.out = now
		}
	} else {
		e.err = nil
	}
	if changed = e.health != health; changed {
		e.health, e.since = health, now
	}
	return changed
}

// verdict is what the outcome of an attempt says about its endpoint; Unknown: nothing.
func verdict(err error) Health {
	code := errs.CodeOf(err)
	switch code {
	case 0:
		return Healthy
	case errs.Canceled, errs.TokenMissing, errs.TokenUnreadable, errs.ConfigInvalid, errs.KeyUnreadable, errs.Internal, // ours
		errs.TunnelUnknown, errs.TunnelLost, errs.OwnerGone, errs.OwnerUnreachable, errs.OwnerUnknown, errs.LeaseLost, errs.DrainEnded,
		errs.Displaced, errs.TunnelLimit, errs.HandshakeLimit: // it is there, and said no
		return Unknown
	}
	return Failing
}

// suspects marks the endpoints whose tunnels are all in trouble.
func (es *endpoints) suspects(bad map[*endpoint]bool) {
	es.mu.Lock()
	defer es.mu.Unlock()
	for _, e := range es.list {
		e.suspect = bad[e]
	}
}

// elect lets new tunnels go to an endpoint that works, one of those in working, when the one that they went to does not.
// It returns both when that has changed.
func (es *endpoints) elect(working map[*endpoint]bool) (from, to *endpoint) {
	es.mu.Lock()
	defer es.mu.Unlock()
	if es.weighted || es.active.health != Failing && !es.active.suspect && !es.active.removed {
		return nil, nil
	}
	for _, e := range es.list {
		if e != es.active && working[e] && !e.suspect {
			from, es.active = es.active, e
			return from, e
		}
	}
	return nil, nil
}

// activate is the end of a failback.
func (es *endpoints) activate(e *endpoint) {
	es.mu.Lock()
	defer es.mu.Unlock()
	es.active = e
}

// recovered returns an endpoint that should have tunnels again, since it has been healthy for long enough: in order, one
// before the active one; by weight, one that has been out, since when. nil: none.
func (es *endpoints) recovered(now time.Time) (e *endpoint, out time.Time) {
	es.mu.Lock()
	defer es.mu.Unlock()
	for _, e := range es.list {
		if e.health != Healthy || e.suspect || now.Sub(e.since) < es.failback {
			continue
		}
		if es.weighted && !e.out.IsZero() {
			out, e.out = e.out, time.Time{}
			return e, out
		}
		if !es.weighted && e.index < es.active.index {
			return e, time.Time{}
		}
	}
	return nil, time.Time{}
}

// share is the part of the tunnels that is an endpoint's by weight, of those that work.
func (es *endpoints) share(e *endpoint, now time.Time) float64 {
	es.mu.Lock()
	defer es.mu.Unlock()
	total := 0
	for _, other := range es.list {
		if es.class(other, now) == 0 {
			total += other.weight
		}
	}
	return float64(e.weight) / float64(max(total, 1))
}

// home says how a tunnel's endpoint stands: whether it is configured, and whether new tunnels would go there too.
func (es *endpoints) home(e *endpoint) (stays, right bool) {
	es.mu.Lock()
	defer es.mu.Unlock()
	if es.weighted {
		return !e.removed, !e.removed
	}
	broken := es.active.health == Failing || es.active.suspect
	return !e.removed, !e.removed && (e == es.active || broken)
}

// due lists the endpoints to probe now and marks them: those that carry no tunnel, when there is a choice.
func (es *endpoints) due(now time.Time, every time.Duration, carrying map[*endpoint]bool) (due []*endpoint) {
	es.mu.Lock()
	defer es.mu.Unlock()
	if len(es.list) < 2 {
		return nil
	}
	for _, e := range es.list {
		if e.probing || carrying[e] || now.Before(e.nextProbe) {
			continue
		}
		e.probing = true
		e.nextProbe = now.Add(time.Duration(float64(every) * (0.8 + 0.4*es.float()))) // sidecars must not probe in step
		due = append(due, e)
	}
	return due
}

func (es *endpoints) probed(e *endpoint) {
	es.mu.Lock()
	defer es.mu.Unlock()
	e.probing = false
}
