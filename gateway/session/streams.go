package session

import (
	"cmp"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/gateway/audit"
	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
	"fairlead/shared/relay"
)

// Opened is a stream that is open: its backend connection, the slot that it holds, and what is known about it.
type Opened struct {
	Ask
	Conn    relay.Conn
	Latency time.Duration // of the open; guarded by mu, but for who has opened it

	o       *Opener
	log     *slog.Logger
	to      Destination
	since   time.Time
	dial    time.Duration
	waits   func() []any // what the dial waited for; nil: not known
	release func()
	over    sync.Once

	mu     sync.Mutex
	totals func() (sent, received uint64)
	end    func(error)
	ended  error // asked for before end was known
	flow   flow
}

// Carry tells how the stream is asked for its bytes so far (towards the client, and from it), and how it is ended before
// its time. Both must not block.
func (s *Opened) Carry(totals func() (sent, received uint64), end func(error)) {
	s.mu.Lock()
	s.totals, s.end = totals, end
	err := s.ended
	s.mu.Unlock()
	if err != nil {
		end(err)
	}
}

// Compresses says whether the stream may be compressed, for an opener that wishes nothing in particular.
func (s *Opened) Compresses() bool { return s.to.compresses(link.CompressAuto) }

// End ends the stream with err, at once or as soon as it is carried.
func (s *Opened) End(err error) {
	s.mu.Lock()
	if s.ended == nil {
		s.ended = err
	}
	end := s.end
	s.mu.Unlock()
	if end != nil {
		end(err)
	}
}

// Over settles a stream that has ended, in order if err is nil: its slot is given back, and how it ended is logged, counted
// and recorded, once. The connection is the caller's to close.
func (s *Opened) Over(err error) {
	s.over.Do(func() {
		s.o.streams.remove(s)
		s.release()
		sent, received := s.settle()
		took := time.Since(s.since)
		attrs := []any{logging.FieldRoute, s.Route, logging.FieldBackend, s.to.Backend, "sent", sent, "received", received, "duration_ms", took.Milliseconds()}
		if err != nil {
			s.log.Warn("stream ended", append(attrs, logging.Error(err)...)...)
		} else {
			s.log.Info("stream ended", attrs...)
		}
		event := s.event(audit.Close, resultOf(err))
		event.Code, event.Detail, event.Duration, event.Sent, event.Received = errs.CodeOf(err), detail(err), took, sent, received
		_ = s.o.cfg.Audit.Record(event) // the stream is over, recorded or not; the audit log says itself that it fails
	})
}

// settle counts the last bytes and returns all.
func (s *Opened) settle() (sent, received uint64) {
	s.sample(0)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flow.sent, s.flow.received
}

// sample counts what was carried since the last time. every is how long ago that was; 0 leaves the rates as they are.
func (s *Opened) sample(every time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.totals == nil {
		return
	}
	sent, received := s.totals()
	up, down := s.flow.advance(sent, received, every)
	if s.probing() {
		s.o.probes.sent.AddInt64(int64(up))
		s.o.probes.received.AddInt64(int64(down))
		return
	}
	s.o.tenants.carried(s.Who.Identity().Tenant, up, down)
	s.o.streams.sent.AddInt64(int64(up))
	s.o.streams.received.AddInt64(int64(down))
}

func (s *Opened) event(action audit.Action, result audit.Result) audit.Event {
	return about(s.Who.Identity(), audit.Event{Action: action, Result: result, Client: s.Client, Route: s.Route, Backend: s.to.Backend,
		Tunnel: s.Tunnel, Stream: s.Stream, Trace: s.Trace})
}

// about fills in who acts.
func about(who Identity, e audit.Event) audit.Event {
	e.Actor, e.Issuer, e.TokenID, e.Tenant, e.Pod = who.Subject, who.Issuer, who.TokenID, who.Tenant, who.Pod
	return e
}

func detail(err error) string {
	if err == nil {
		return ""
	}
	return errs.From(err).Text()
}

// resultOf tells a refusal of the gateway from something that did not work.
func resultOf(err error) audit.Result {
	switch {
	case err == nil:
		return audit.Allowed
	case failure(err):
		return audit.Failed
	}
	return audit.Refused
}

// failure says whether err is a backend's or our own fault, rather than an answer to who asks.
func failure(err error) bool {
	switch errs.CodeOf(err) {
	case errs.BackendUnreachable, errs.BackendTimeout, errs.HostKeyRefused, errs.BackendAuth, errs.SSHHandshake, errs.TargetRefused, errs.BackendBroken, errs.DrainEnded, errs.OwnerGone, errs.OwnerUnreachable, errs.LeaseLost,
		errs.PoolExhausted, errs.OpenTimeout, errs.CircuitOpen, errs.DialQueueFull, errs.ConnectionBroken, errs.LaneLost, errs.TunnelLost, errs.ShuttingDown,
		errs.KeyUnreadable, errs.Internal, errs.Panicked, errs.Canceled:
		return true
	}
	return false
}

// flow is how many bytes were carried, and how fast lately.
type flow struct {
	sent, received         uint64
	sentRate, receivedRate float64 // bytes per second over the last interval
}

// advance moves the totals on and returns by how much; totals never go back.
func (f *flow) advance(sent, received uint64, every time.Duration) (up, down uint64) {
	up, down = max(sent, f.sent)-f.sent, max(received, f.received)-f.received
	f.sent, f.received = f.sent+up, f.received+down
	if every > 0 {
		f.sentRate, f.receivedRate = float64(up)/every.Seconds(), float64(down)/every.Seconds()
	}
	return up, down
}

// streamTable knows the streams that are open.
type streamTable struct {
	sent, received *metrics.Counter

	mu   sync.Mutex
	open map[*Opened]struct{}
}

func newStreamTable(set *metrics.Set) streamTable {
	return streamTable{open: map[*Opened]struct{}{},
		sent:     set.NewCounter(`fairlead_gateway_bytes_total{direction="sent"}`),
		received: set.NewCounter(`fairlead_gateway_bytes_total{direction="received"}`),
	}
}

func (t *streamTable) add(s *Opened) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open[s] = struct{}{}
}

func (t *streamTable) remove(s *Opened) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, s)
}

func (t *streamTable) snapshot() []*Opened {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*Opened, 0, len(t.open))
	for s := range t.open {
		all = append(all, s)
	}
	return all
}

// Recheck ends every open stream that check, the policy, refuses, with its error, and returns how many those were. check is
// called for several at once, and not for probes, which everybody may open.
func (o *Opener) Recheck(check func(who Identity, route string) error) (ended int) {
	routed := slices.DeleteFunc(o.streams.snapshot(), func(s *Opened) bool { return s.probing() })
	return recheck(routed, check)
}

func recheck(streams []*Opened, check func(who Identity, route string) error) (ended int) {
	return count(streams, func(s *Opened) bool {
		err := check(s.Who.Identity(), s.Route)
		if err != nil {
			s.End(err)
		}
		return err != nil
	})
}

// sample brings counters and rates up to date.
func (o *Opener) sample(every time.Duration) {
	for _, s := range o.streams.snapshot() {
		s.sample(every)
	}
}

// StreamInfo describes an open stream.
type StreamInfo struct {
	Ask
	Identity     Identity
	To           Destination
	Since        time.Time
	Open         time.Duration // what the open took
	Sent         uint64        // bytes towards the client
	Received     uint64        // bytes from the client
	SentRate     float64       // bytes per second, lately
	ReceivedRate float64
}

// Streams describes the open streams, oldest first.
func (o *Opener) Streams() []StreamInfo {
	all := o.streams.snapshot()
	list := make([]StreamInfo, 0, len(all))
	for _, s := range all {
		s.sample(0)
		s.mu.Lock()
		list = append(list, StreamInfo{Ask: s.Ask, Identity: s.Who.Identity(), To: s.to, Since: s.since, Open: s.Latency,
			Sent: s.flow.sent, Received: s.flow.received, SentRate: s.flow.sentRate, ReceivedRate: s.flow.receivedRate})
		s.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b StreamInfo) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Tunnel, b.Tunnel), cmp.Compare(a.Stream, b.Stream))
	})
	return list
}

// EndStream ends one stream with err, and says whether it was there. A plain stream has no tunnel.
func (o *Opener) EndStream(tunnel, id string, err error) bool {
	for _, s := range o.streams.snapshot() {
		if s.Tunnel == tunnel && s.Stream == id {
			s.End(err)
			return true
		}
	}
	return false
}
