package tunnel

import (
	"maps"
	"slices"
	"time"

	"fairlead/shared/logging"
)

// Memory keeps what was learned across restarts; package learned implements it over a file.
type Memory interface {
	// Load reads a section into v and says whether there is a usable one.
	Load(section string, v any) bool
	// Save keeps v, which is not changed any more. It does not block on a disk.
	Save(section string, v any)
}

// memorySection names what a pool remembers.
const memorySection = "tunnels"

// Learned is what a pool remembers. The cookies are as sensitive as a load balancer makes them.
type Learned struct {
	Active    string                     `json:"active,omitempty"` // URL of the endpoint that new tunnels went to
	Endpoints map[string]LearnedEndpoint `json:"endpoints,omitempty"`
}

// LearnedEndpoint is what is remembered about one endpoint.
type LearnedEndpoint struct {
	Cookies   []Cookie `json:"cookies,omitempty"`
	Heartbeat *Beat    `json:"heartbeat,omitempty"`
}

// recall takes what was remembered about the endpoints that are configured.
func (p *Pool) recall() {
	m := p.config().Memory
	var l Learned
	if m == nil || !m.Load(memorySection, &l) {
		return
	}
	now := time.Now()
	for _, e := range p.ends.all() {
		r, ok := l.Endpoints[e.url]
		if !ok {
			continue
		}
		e.jar.replace(e.url, r.Cookies)
		p.learning.Lock()
		e.beat.restore(r.Heartbeat, now)
		interval := e.beat.interval
		p.learning.Unlock()
		if interval > 0 {
			p.log.Info("heartbeat remembered", logging.FieldEndpoint, e.url, "interval", interval.String())
		}
	}
	if !p.ends.isWeighted() {
		p.ends.prefer(l.Active)
	}
}

// remember hands what is known to the memory, if it differs from what the memory has.
func (p *Pool) remember() {
	m := p.config().Memory
	if m == nil {
		return
	}
	l := Learned{Active: p.ends.activeNow().url, Endpoints: map[string]LearnedEndpoint{}}
	p.learning.Lock()
	defer p.learning.Unlock()
	for _, e := range p.ends.all() {
		r := LearnedEndpoint{Cookies: e.jar.list(), Heartbeat: e.beat.saved()}
		if len(r.Cookies) > 0 || r.Heartbeat != nil {
			l.Endpoints[e.url] = r
		}
	}
	if !p.remembered.equal(l) {
		p.remembered = l
		m.Save(memorySection, l)
	}
}

func (l Learned) equal(o Learned) bool {
	return l.Active == o.Active && maps.EqualFunc(l.Endpoints, o.Endpoints, func(a, b LearnedEndpoint) bool {
		same := slices.Equal(a.Cookies, b.Cookies) && (a.Heartbeat == nil) == (b.Heartbeat == nil)
		return same && (a.Heartbeat == nil || *a.Heartbeat == *b.Heartbeat)
	})
}
