package tunnel

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/ws"
)

// Config is what a Pool needs. Pool.Reconfigure takes a changed one, but for the fields that are marked as fixed.
type Config struct {
	Endpoints      []Endpoint    // at least one
	Failback       time.Duration // for how long an endpoint must be healthy before tunnels go back to it; 0: 60 s
	Probe          time.Duration // between probes of an endpoint that carries no tunnel, when there are several; 0: 15 s
	Dialer         *ws.Dialer
	ConnectTimeout time.Duration          // for dial, upgrade and handshake of an attempt
	Token          func() (string, error) // asked for each attempt
	Link           link.Config
	Min, Max       int
	Mixed          bool          // listeners of different priorities: bulk gets a tunnel of its own
	Idle           time.Duration // a tunnel that the pool does not want ends after so long without streams; 0: never
	Backoff        Backoff
	Reconnect      bool         // false: the first failure is final
	Memory         Memory       // of what was learned; nil: nothing is remembered. Fixed
	Waiting        func() bool  // somebody waits for a tunnel. Fixed
	Up             func()       // a tunnel came up, or works again; must not block. Fixed
	GaveUp         func(error)  // reconnecting was given up, once each time; must not block. Fixed
	Logger         *slog.Logger // fixed
	Metrics        *metrics.Set // fixed
}

const (
	defaultFailback = time.Minute
	defaultProbe    = 15 * time.Second
)

func (c Config) withDefaults() *Config {
	if c.Failback == 0 {
		c.Failback = defaultFailback
	}
	if c.Probe == 0 {
		c.Probe = defaultProbe
	}
	return &c
}

// Pool keeps between Min and Max tunnels.
type Pool struct {
	cfg     atomic.Pointer[Config]
	log     *slog.Logger
	ends    *endpoints
	meter   *meter
	history history
	look    chan struct{}  // lets the pool's goroutine look at its slots now
	tasks   sync.WaitGroup // attempts and probes

	overFrom time.Time // since when there are more tunnels than Max; zero: there are not. The pool's goroutine alone uses it

	mu       sync.Mutex
	slots    []*slot
	next     int // number of the next slot
	want     int // tunnels that the use asks for, as of the last look
	noSpare  time.Time
	noMove   time.Time     // before this no tunnel is moved to another endpoint
	lastTurn time.Time     // of the last attempt that is repeated soon
	watch    chan struct{} // closed at the next change of state
	halted   chan struct{} // closed when the pool has given up; another one when it tries again
	ctx      context.Context

	learning   sync.Mutex // guards the endpoints' learners
	remembered Learned

	moves map[moveReason]*metrics.Counter // never changed

	attempts, resumes, relayed, givenUp, sent, received, replayed, failovers, failbacks, idleCuts *metrics.Counter
}

// growAfterLimit is how long the pool does not try to grow after the gateway refused a tunnel over the tenant's limit.
const growAfterLimit = time.Minute

// streamsPerTunnel is from where another tunnel is opened, up to Max.
const streamsPerTunnel = 16

// New makes a pool; Run starts it.
func New(cfg Config) *Pool {
	set := cfg.Metrics
	p := &Pool{log: cfg.Logger, ends: newEndpoints(), meter: newMeter(set),
		look: make(chan struct{}, 1), watch: make(chan struct{}), halted: make(chan struct{}),
		attempts:  set.NewCounter("fairlead_sidecar_connect_attempts_total"),
		resumes:   set.NewCounter("fairlead_sidecar_resumes_total"),
		relayed:   set.NewCounter("fairlead_sidecar_resumes_relayed_total"),
		givenUp:   set.NewCounter("fairlead_sidecar_gave_up_total"),
		sent:      set.NewCounter("fairlead_sidecar_sent_bytes_total"),
		received:  set.NewCounter("fairlead_sidecar_received_bytes_total"),
		replayed:  set.NewCounter("fairlead_sidecar_replayed_bytes_total"),
		failovers: set.NewCounter("fairlead_sidecar_failovers_total"),
		failbacks: set.NewCounter("fairlead_sidecar_failbacks_total"),
		idleCuts:  set.NewCounter("fairlead_sidecar_idle_cuts_total"),
	}
	p.moves = map[moveReason]*metrics.Counter{}
	for _, why := range []moveReason{moveDrain, moveRebalance, moveFailback, moveEndpoint} {
		p.moves[why] = set.NewCounter(fmt.Sprintf("fairlead_sidecar_moves_total{reason=%q}", string(why)))
	}
	set.NewGauge("fairlead_sidecar_tunnels", func() float64 { return float64(p.connected()) })
	set.NewGauge("fairlead_sidecar_streams", func() float64 { return float64(p.streams()) })
	set.NewGauge("fairlead_sidecar_heartbeat_seconds", func() float64 { return p.interval(p.ends.activeNow()).Seconds() })
	set.NewGauge("fairlead_sidecar_endpoints_failing", func() float64 { return float64(p.ends.failing()) })
	c := cfg.withDefaults()
	p.cfg.Store(c)
	p.ends.set(c.Endpoints, c.Failback, time.Now())
	p.recall()
	return p
}

func (p *Pool) config() *Config { return p.cfg.Load() }

// Run keeps the pool until ctx ends, and returns when every tunnel has ended.
func (p *Pool) Run(ctx context.Context) error {
	p.mu.Lock()
	p.ctx = ctx
	p.want = p.config().Min
	for range p.want {
		p.addSlot(&slot{})
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
			p.tasks.Wait()
			p.remember()
			return nil
		case now := <-tick.C:
			p.measure(now, now.Sub(last))
			last = now
			p.adjust(now)
			p.probe(ctx, now)
			p.tendHeartbeats(now)
			p.remember()
		case <-p.look:
			p.adjust(time.Now())
		}
	}
}

// addSlot starts a slot, of which the caller has set what makes it special. Called with mu held.
func (p *Pool) addSlot(s *slot) {
	if p.ctx == nil || p.ctx.Err() != nil {
		return
	}
	ctx, stop := context.WithCancel(p.ctx)
	p.next++
	s.p, s.n, s.log, s.retry = p, p.next, p.log.With("slot", p.next), newRetry(p.config().Backoff)
	s.stop, s.done, s.again, s.hurry = stop, make(chan struct{}), make(chan struct{}, 1), make(chan struct{}, 1)
	s.machine = machine{state: Disconnected, since: time.Now()}
	p.slots = append(p.slots, s)
	go s.run(ctx)
}

func (p *Pool) list() []*slot {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.slots)
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
	return len(all) > p.config().Min && slices.ContainsFunc(all, func(other *slot) bool { return other != s && other.usable() != nil })
}

// enough says whether the pool has the tunnels that it wants without the slot, which has none.
func (p *Pool) enough(s *slot) bool {
	n := 0
	for _, other := range p.list() {
		if other != s && other.usable() != nil {
			n++
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return n >= max(p.want, 1)
}

// nudge lets the pool look at its slots now.
func (p *Pool) nudge() {
	select {
	case p.look <- struct{}{}:
	default:
	}
}

// up tells that a tunnel works: the way is open, so the others need not wait for their time.
func (p *Pool) up() {
	p.elect(time.Now())
	p.unhalt()
	for _, s := range p.list() {
		notify(s.hurry)
	}
	p.config().Up()
	p.nudge()
}

// notify leaves a token in a channel that holds one.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
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

// Reconfigure takes a changed configuration at run time. No tunnel is dropped for it: those at endpoints that are no longer
// configured are replaced first, and end when their streams have. What concerns attempts counts from the next one on, what
// concerns tunnels, but for their heartbeat, for new ones.
func (p *Pool) Reconfigure(cfg Config) error {
	if len(cfg.Endpoints) == 0 || cfg.Min < 1 || cfg.Max < cfg.Min {
		return errs.New(errs.ConfigInvalid, "a pool of %d to %d tunnels to %d endpoints", cfg.Min, cfg.Max, len(cfg.Endpoints))
	}
	old := p.config()
	cfg.Memory, cfg.Waiting, cfg.Up, cfg.GaveUp, cfg.Logger, cfg.Metrics = old.Memory, old.Waiting, old.Up, old.GaveUp, old.Logger, old.Metrics
	c := cfg.withDefaults()
	p.cfg.Store(c)
	p.ends.set(c.Endpoints, c.Failback, time.Now())
	p.mu.Lock()
	p.noMove, p.noSpare = time.Time{}, time.Time{}
	p.mu.Unlock()
	for _, s := range p.list() {
		notify(s.hurry) // an attempt that waits may have another aim now
	}
	p.applyHeartbeats()
	p.nudge()
	return nil
}
