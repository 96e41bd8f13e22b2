package peer

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
	"fairlead/shared/lifecycle"
)

// Relay says what is relayed.
type Relay struct {
	Tunnel string // ID
	Owner  string // name of the replica that holds it
	Client string // the sidecar's address
}

// RelayInfo is a relay that runs. Bytes are counted as a gateway counts those of its streams: sent is to the sidecar.
type RelayInfo struct {
	Relay
	Since          time.Time
	Sent, Received uint64
}

// lingerTime is how long the other direction may go on when one has ended: what is on its way may be why.
const lingerTime = time.Second

// relay carries the bytes of one connection to another and back.
type relay struct {
	Relay
	since          time.Time
	client, owner  net.Conn
	sent, received flow
	done           chan struct{}

	once  sync.Once
	first error // why it ended; guarded by once
	kind  result
	late  atomic.Pointer[time.Timer]
}

// result is how a relay ended.
type result int

const (
	ended  result = iota // one end closed in order
	broken               // a connection broke
	cut                  // by this replica, or the context
	results
)

// Carry copies between a sidecar and the owner of its tunnel until one of them ends, or ctx does, and closes both connections in any
// case. It returns when nothing runs any more, with the bytes sent to the sidecar and received from it, and nil if one of the ends has
// closed its connection in order, else a LaneLost, ShuttingDown or Canceled. Connections that can CloseWrite are ended in order too.
func (p *Peer) Carry(ctx context.Context, what Relay, client, owner net.Conn) (sent, received uint64, err error) {
	r := &relay{Relay: what, since: time.Now(), client: client, owner: owner, done: make(chan struct{})}
	r.sent.total, r.received.total = p.relays.sent, p.relays.received
	if !p.relays.add(r) {
		r.close()
		return 0, 0, errs.New(errs.ShuttingDown, "this replica carries no tunnels of others any more")
	}
	defer func() {
		p.relays.remove(r)
		close(r.done)
	}()
	stop := context.AfterFunc(ctx, func() { r.finish(cut, errs.Wrap(errs.Canceled, context.Cause(ctx), "the relay was given up")) })
	defer stop()
	var up sync.WaitGroup
	up.Go(func() {
		p.guard(r, func() { r.copy(owner, client, &r.received, "the sidecar", "the owner") })
	})
	p.guard(r, func() { r.copy(client, owner, &r.sent, "the owner", "the sidecar") })
	up.Wait()
	r.close()
	if t := r.late.Load(); t != nil {
		t.Stop()
	}
	r.finish(ended, nil) // so that what follows may read it
	return r.sent.written.Load(), r.received.written.Load(), r.first
}

// guard runs one direction. A fault in it costs the relay, not the process.
func (p *Peer) guard(r *relay, f func()) {
	if err := lifecycle.Guard(p.cfg.Logger, "relay", func() error { f(); return nil }); err != nil {
		r.finish(broken, err)
	}
}

// copy carries one direction. When it has ended in order, the other one gets a moment, else it is cut too.
func (r *relay) copy(dst, src net.Conn, f *flow, from, to string) {
	readErr, writeErr := f.pump(dst, src)
	switch {
	case readErr != nil:
		r.finish(broken, errs.Wrap(errs.LaneLost, readErr, "reading from %s", from))
	case writeErr != nil:
		r.finish(broken, errs.Wrap(errs.LaneLost, writeErr, "writing to %s", to))
	default:
		r.once.Do(func() { r.kind = ended })
		r.linger()
		if half, ok := dst.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
			r.close()
		}
	}
}

// linger closes both ends in a moment.
func (r *relay) linger() {
	t := time.AfterFunc(lingerTime, r.close)
	if !r.late.CompareAndSwap(nil, t) { // the other direction has ended already: both have
		t.Stop()
	}
}

// finish ends the relay at once, and remembers why, if it is the first to know.
func (r *relay) finish(kind result, err error) {
	r.once.Do(func() { r.kind, r.first = kind, err })
	r.close()
}

func (r *relay) close() {
	_ = r.client.Close()
	_ = r.owner.Close()
}

func (r *relay) info() RelayInfo {
	return RelayInfo{Relay: r.Relay, Since: r.since, Sent: r.sent.written.Load(), Received: r.received.written.Load()}
}

// quietTime is for how long nothing must have come for a relay to count as quiet.
const quietTime = 5 * time.Millisecond

// quiet waits for a moment in which nothing is on the way through here, for as long as limit, or until ctx or the relay ends.
func (r *relay) quiet(ctx context.Context, limit time.Duration) {
	over := time.Now().Add(limit)
	before, still := r.passed()
	for {
		t := time.NewTimer(quietTime)
		select {
		case <-t.C:
		case <-r.done:
			t.Stop()
			return
		case <-ctx.Done():
			t.Stop()
			return
		}
		now, idle := r.passed()
		if still && idle && now == before || time.Now().After(over) {
			return
		}
		before, still = now, idle
	}
}

// passed is how many bytes have come, and whether all of them have left.
func (r *relay) passed() (bytes uint64, idle bool) {
	out := r.sent.written.Load() + r.received.written.Load()
	in := r.sent.read.Load() + r.received.read.Load()
	return in, in == out
}

// relays are those that run.
type relays struct {
	sent, received *metrics.Counter
	over           [results]*metrics.Counter

	mu      sync.Mutex
	active  map[*relay]struct{}
	closed  bool
	running sync.WaitGroup
}

func newRelays(set *metrics.Set) *relays {
	r := &relays{active: map[*relay]struct{}{},
		sent:     set.NewCounter(`fairlead_gateway_relay_bytes_total{direction="sent"}`),
		received: set.NewCounter(`fairlead_gateway_relay_bytes_total{direction="received"}`)}
	for kind, name := range map[result]string{ended: "ended", broken: "broken", cut: "cut"} {
		r.over[kind] = set.NewCounter(`fairlead_gateway_relays_total{result="` + name + `"}`)
	}
	set.NewGauge("fairlead_gateway_relays", func() float64 {
		r.mu.Lock()
		defer r.mu.Unlock()
		return float64(len(r.active))
	})
	return r
}

func (r *relays) add(one *relay) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.active[one] = struct{}{}
	r.running.Add(1)
	return true
}

func (r *relays) remove(one *relay) {
	r.over[one.kind].Inc()
	r.mu.Lock()
	delete(r.active, one)
	r.mu.Unlock()
	r.running.Done()
}

func (r *relays) list() []*relay {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*relay, 0, len(r.active))
	for one := range r.active {
		all = append(all, one)
	}
	return all
}

// close refuses new ones, and cuts those that there are.
func (r *relays) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	for _, one := range r.list() {
		one.drop()
	}
}

func (r *relays) wait() { r.running.Wait() }

func (r *relay) drop() {
	r.finish(cut, errs.New(errs.ShuttingDown, "this replica is shutting down: the tunnel is carried on by another way"))
}

// Relays lists the relays that run, the oldest first.
func (p *Peer) Relays() []RelayInfo {
	all := p.relays.list()
	infos := make([]RelayInfo, 0, len(all))
	for _, r := range all {
		infos = append(infos, r.info())
	}
	slices.SortFunc(infos, func(a, b RelayInfo) int { return a.Since.Compare(b.Since) })
	return infos
}

// End ends the relays that run now, each at a moment of its own within spread, and returns when all have ended or ctx has; then the rest is
// cut. Their sidecars come back by another way, and lose nothing: a relay is cut where nothing is on its way, if that comes
// about within a tenth of spread.
func (p *Peer) End(ctx context.Context, spread time.Duration) {
	var ending sync.WaitGroup
	for _, r := range p.relays.list() {
		delay := time.Duration(rand.Int64N(int64(max(spread, 1)))) * 9 / 10
		ending.Go(func() {
			t := time.NewTimer(delay)
			defer t.Stop()
			select {
			case <-t.C:
				r.quiet(ctx, spread/10)
			case <-ctx.Done():
			case <-r.done:
				return
			}
			r.drop()
			<-r.done
		})
	}
	ending.Wait()
}

// CutAll ends the relays that run now.
func (p *Peer) CutAll() {
	for _, r := range p.relays.list() {
		r.drop()
	}
}
