package tunnel

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
)

// Config is what a Pool needs.
type Config struct {
	Endpoints      []string
	Dialer         *ws.Dialer
	ConnectTimeout time.Duration          // for dial, upgrade and handshake of an attempt
	Token          func() (string, error) // asked for each attempt
	Link           link.Config
	Min, Max       int
	Mixed          bool          // listeners of different priorities: bulk gets a tunnel of its own
	Idle           time.Duration // a tunnel that the pool does not want ends after so long without streams; 0: never
	Backoff        Backoff
	Reconnect      bool        // false: the first failure is final
	Waiting        func() bool // somebody waits for a tunnel
	Up             func()      // a tunnel came up; must not block
	GaveUp         func(error) // no tunnel is left that is not given up; must not block
	Logger         *slog.Logger
	Metrics        *metrics.Set
}

// Pool keeps between Min and Max tunnels.
type Pool struct {
	cfg     Config
	history history
	look    chan struct{} // lets the pool's goroutine look at its slots now

	mu      sync.Mutex
	slots   []*slot
	next    int // number of the next slot
	noSpare time.Time
	watch   chan struct{} // closed at the next change of state
	ctx     context.Context

	attempts, resumes, givenUp, sent, received, replayed *metrics.Counter
}

// growAfterLimit is how long the pool does not try to grow after the gateway refused a tunnel over the tenant's limit.
const growAfterLimit = time.Minute

// streamsPerTunnel is from where another tunnel is opened, up to Max.
const streamsPerTunnel = 16

// New makes a pool; Run starts it.
func New(cfg Config) *Pool {
	p := &Pool{cfg: cfg, look: make(chan struct{}, 1), watch: make(chan struct{}),
		attempts: cfg.Metrics.NewCounter("fairlead_sidecar_connect_attempts_total"),
		resumes:  cfg.Metrics.NewCounter("fairlead_sidecar_resumes_total"),
		givenUp:  cfg.Metrics.NewCounter("fairlead_sidecar_gave_up_total"),
		sent:     cfg.Metrics.NewCounter("fairlead_sidecar_sent_bytes_total"),
		received: cfg.Metrics.NewCounter("fairlead_sidecar_received_bytes_total"),
		replayed: cfg.Metrics.NewCounter("fairlead_sidecar_replayed_bytes_total"),
	}
	cfg.Metrics.NewGauge("fairlead_sidecar_tunnels", func() float64 { return float64(p.connected()) })
	cfg.Metrics.NewGauge("fairlead_sidecar_streams", func() float64 { return float64(p.streams()) })
	return p
}

// Run keeps the pool until ctx ends, and returns when every tunnel has ended.
func (p *Pool) Run(ctx context.Context) error {
	p.mu.Lock()
	p.ctx = ctx
	for range p.cfg.Min {
		p.addSlot()
	}
	p.mu.Unlock()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			for _, s := range p.list() {
				<-s.done
			}
			return nil
		case now := <-tick.C:
			for _, s := range p.list() {
				s.look(now.Sub(last))
			}
			last = now
			p.adjust()
		case <-p.look:
			p.adjust()
		}
	}
}

// addSlot starts a slot. Called with mu held.
func (p *Pool) addSlot() {
	ctx, stop := context.WithCancel(p.ctx)
	p.next++
	s := &slot{p: p, n: p.next, log: p.cfg.Logger.With("slot", p.next), retry: newRetry(p.cfg.Backoff), stop: stop,
		done: make(chan struct{}), again: make(chan struct{}, 1), machine: machine{state: Disconnected, since: time.Now()}}
	p.slots = append(p.slots, s)
	go s.run(ctx)
}

func (p *Pool) list() []*slot {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.slots)
}

// use is what the slots carry that are there to stay.
type use struct {
	active, streams int
	any, bulk       bool
}

// adjust removes slots that have ended, ends drained ones, and grows or shrinks the pool as its use asks.
func (p *Pool) adjust() {
	var u use
	for _, s := range p.list() {
		select {
		case <-s.done:
			p.remove(s)
		default:
			p.survey(s, &u)
		}
	}
	want := max(p.cfg.Min, (u.streams+streamsPerTunnel-1)/streamsPerTunnel)
	if u.any && (u.bulk || p.cfg.Mixed) {
		want = max(want, 2)
	}
	want = min(want, p.cfg.Max)
	p.growTo(want, u.active)
	if u.active > want {
		p.shrink()
	}
}

// survey adds what a slot carries to u. A slot whose place another one takes ends with its last stream.
func (p *Pool) survey(s *slot, u *use) {
	s.mu.Lock()
	t, away, state, rate := s.tunnel, !s.moveAt.IsZero() && !time.Now().Before(s.moveAt), s.machine.state, s.busy.rate
	s.mu.Unlock()
	n := 0
	if t != nil {
		n = t.Stats().Streams
	}
	if away {
		if t == nil || t.CloseIfIdle() {
			s.stop()
		}
		return
	}
	u.active++
	switch {
	case n > 0:
		s.idleSince = time.Time{}
	case s.idleSince.IsZero():
		s.idleSince = time.Now()
	}
	if state == Connected {
		u.streams += n
		u.any = u.any || n > 0
		u.bulk = u.bulk || rate > bulkRate
	}
}

// shrink ends one tunnel that has been idle for as long as this side or its gateway allows, the youngest first.
func (p *Pool) shrink() {
	for _, s := range slices.Backward(p.list()) {
		t := s.usable()
		if t == nil || s.idleSince.IsZero() {
			continue
		}
		if allowed := shorter(p.cfg.Idle, t.Idle()); allowed > 0 && time.Since(s.idleSince) >= allowed {
			s.log.Info("idle tunnel ends", "idle", time.Since(s.idleSince).Round(time.Second).String())
			s.retire()
			return
		}
	}
}

// shorter is the shorter of two times, of which 0 has no end.
func shorter(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// growTo adds slots until there are want; the first ones are always kept, further ones only once a tunnel works.
func (p *Pool) growTo(want, active int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		return
	}
	if active >= p.cfg.Min && time.Now().Before(p.noSpare) {
		return
	}
	for ; active < want; active++ {
		p.addSlot()
	}
}

func (p *Pool) remove(s *slot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slots = slices.DeleteFunc(p.slots, func(x *slot) bool { return x == s })
}

// spare says whether the pool can do without the slot, whose tunnel was refused for the tenant's limit. It does not grow
// again for a while.
func (p *Pool) spare(s *slot) bool {
	p.mu.Lock()
	p.noSpare = time.Now().Add(growAfterLimit)
	p.mu.Unlock()
	all := p.list()
	return len(all) > p.cfg.Min && slices.ContainsFunc(all, func(other *slot) bool { return other != s && other.usable() != nil })
}

// gaveUp tells that reconnecting was given up, once the last slot has.
func (p *Pool) gaveUp(err error) {
	if p.hopeless() {
		p.givenUp.Inc()
		p.cfg.GaveUp(err)
	}
}

// hopeless says whether every slot has given up: no tunnel comes up before somebody asks for it.
func (p *Pool) hopeless() bool {
	given := 0
	for _, s := range p.list() {
		select {
		case <-s.done:
			continue
		default:
		}
		if s.state() != Failed {
			return false
		}
		given++
	}
	return given > 0
}

// drained makes room for a tunnel elsewhere when the gateway goes away, after the delay that it asked for.
func (p *Pool) drained(s *slot, g link.GoAway) {
	s.log.Info("the gateway goes away", "deadline", g.Deadline.String(), "delay", g.Delay.String())
	p.history.add(Event{Time: time.Now(), Tunnel: s.n, State: Draining, Code: g.Reason.Code.String(), Reason: g.Reason.Message})
	p.changed()
	time.AfterFunc(g.Delay, p.nudge)
}

// nudge lets the pool look at its slots now.
func (p *Pool) nudge() {
	select {
	case p.look <- struct{}{}:
	default:
	}
}

func (p *Pool) endpoint(attempt int) string { return p.cfg.Endpoints[attempt%len(p.cfg.Endpoints)] }

func (p *Pool) dial(ctx context.Context, endpoint string) (*ws.Conn, error) {
	p.attempts.Inc()
	token, err := p.cfg.Token()
	if err != nil {
		return nil, err
	}
	return p.cfg.Dialer.Dial(ctx, endpoint, header(token), link.Subprotocol)
}

// up tells that a tunnel works.
func (p *Pool) up() {
	p.cfg.Up()
	p.nudge()
}

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
			s.retire()
		case err == nil || t.Err() == nil:
			return stream, err
		} // else the tunnel has ended just now
	}
}

// pick chooses the tunnel for a stream; nil when there is none.
func (p *Pool) pick(prio link.Priority) (best *slot, tunnel *link.Tunnel) {
	var bestScore float64
	streams := 0
	for i, s := range p.list() {
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
	if prio == link.High {
		return load + s.busy.rate/bulkRate*streamsPerTunnel + float64(index)*streamsPerTunnel/2
	}
	if index == 0 && s.p.cfg.Mixed {
		load += 4 * streamsPerTunnel
	}
	return load
}

// Reconnect tries again at once, also after having given up.
func (p *Pool) Reconnect() {
	for _, s := range p.list() {
		s.reconnect()
	}
}

// Renew hands a renewed token to every gateway that a tunnel leads to, in-band.
func (p *Pool) Renew(token string) {
	for _, s := range p.list() {
		if t := s.current(); t != nil {
			if err := t.Renew(token); err != nil {
				s.renewed(err)
			}
		}
	}
	p.Reconnect() // attempts that failed for the old token need not wait
}
