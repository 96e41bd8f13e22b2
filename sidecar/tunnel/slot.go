package tunnel

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
)

// slot is one place in the pool: it keeps one tunnel at a time. Its goroutine alone moves its state.
type slot struct {
	p     *Pool
	n     int // from 1
	log   *slog.Logger
	retry *retry
	stop  context.CancelFunc
	done  chan struct{}
	again chan struct{} // try now, also after having given up
	hurry chan struct{} // try now, if a wait of one's own choice is all that holds it back

	// The slot's goroutine alone uses these.
	lost    time.Time     // when the last lane ended
	quiet   time.Duration // how quiet that was before, if the path may have cut it for that
	resumed bool          // the lane there is is not the tunnel's first
	foreign []*endpoint   // that have said, since then, that they do not know the tunnel
	endings int           // how often, since then, the tunnel was said to be over by a gateway that may have meant itself
	over    error         // what the last round was told of the tunnel, if that is its end
	turned  int           // how often in a row it was turned away for now, see soonFor

	why      moveReason  // why it replaces another one; fixed
	ownEnd   atomic.Bool // this side ends the tunnel, or tries to
	replaces *slot       // whose place it takes once it has a tunnel; guarded by the pool's mu, as is pinned
	pinned   *endpoint   // the only one where it may make that

	// mu guards what others read. No method of a tunnel is called while it is held.
	mu       sync.Mutex
	machine  machine
	tunnel   *link.Tunnel
	jar      *jar           // affinity cookies of the tunnel
	home     *endpoint      // where the tunnel was made
	made     time.Time      // when
	endpoint string         // of the current or last attempt
	via      string         // the replica that the lane ends at, if it is another one than the owner's
	asked    *notice        // its gateway wants it elsewhere
	due      *time.Timer    // until the pool is to look at that; nil: it never did
	opens    []*link.Stream // begun since then, of which it is not known whether the gateway took them
	refusing bool           // it did not: it takes no new streams any more
	cramped  bool           // there is no room for its replacement beside it
	nextMove time.Time      // before this no replacement is made
	leaving  bool           // it takes no new streams, and ends with the last one
	hushed   bool           // only the log of debugging is told of changes
	doubt    bool           // its gateway is silent: no new streams, as long as others can take them
	rounds   int            // at resuming, that have failed since the lane was lost
	sought   bool           // gateways answer, but cannot find out who owns the tunnel
	attempt  int
	waited   time.Duration // before the next attempt
	lastErr  error
	busy     activity

	idleSince time.Time // without streams; the pool's goroutine alone uses it
}

// activity is a tunnel's traffic, as of the last look.
type activity struct {
	sent, received, replayed uint64
	answered, lost           uint64        // heartbeats
	rate                     float64       // bytes per second in both directions
	rtt                      time.Duration // follows the round trips that are measured faster than the link's own estimate
}

// bulkRate is from where a tunnel counts as busy with bulk, in bytes per second.
const bulkRate = 1 << 20

// soon is within what a lane that was merely cut is resumed.
const soon = 5 * time.Second

// stable is how long a lane must have lived for the attempts before it to be forgotten.
const stable = time.Second

func (s *slot) state() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.machine.state
}

// follow goes with the pool, which has given up and said so.
func (s *slot) follow(err error) {
	s.mu.Lock()
	_ = s.machine.move(Failed, time.Now()) // possible from every state of a slot without a lane
	s.lastErr = err
	s.mu.Unlock()
	s.log.Debug("tunnel failed", logging.Error(err)...)
	s.p.changed()
}

// run keeps a tunnel until ctx ends.
func (s *slot) run(ctx context.Context) {
	defer s.p.nudge() // to take note of the end
	defer close(s.done)
	defer s.stop()
	for ctx.Err() == nil {
		lane, err := s.connect(ctx)
		served := err == nil
		if served {
			err = s.serve(ctx, lane)
		}
		if ctx.Err() != nil || !s.recover(ctx, err, served) {
			break
		}
	}
	if s.replacement() {
		s.p.moved(s, errs.New(errs.Canceled, "the slot ended"))
	}
	s.drop(errs.New(errs.ShuttingDown, "the sidecar is stopping"))
	s.p.bequeath(s)
}

// replacement says whether the slot is to take the place of another one.
func (s *slot) replacement() bool {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	return s.replaces != nil
}

// drop ends the tunnel that the slot has, if any.
func (s *slot) drop(err error) {
	s.mu.Lock()
	t := s.tunnel
	s.tunnel, s.asked = nil, nil // what was asked was of this tunnel
	s.mu.Unlock()
	if t == nil {
		return
	}
	t.Close(err)
	t.Wait()
	st := t.Stats()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.account(st)
	s.busy = activity{}
}

// serve runs a lane. It returns why the lane ended.
func (s *slot) serve(ctx context.Context, lane *link.Lane) error {
	s.mu.Lock()
	t, home, endpoint, via, attempt, first := s.tunnel, s.home, s.endpoint, s.via, s.attempt, s.rounds == 0
	s.attempt, s.rounds, s.sought, s.doubt, s.hushed = 0, 0, false, false, false
	s.mu.Unlock()
	s.move(Connected, Event{Attempt: attempt, Endpoint: endpoint, Reason: "tunnel " + t.Name() + at(t.Replica(), via)}, nil)
	s.moveIf(func() bool { return s.leaving && s.machine.state == Connected }, Draining, Event{Reason: "it takes no new streams"}, nil)
	if s.resumed {
		s.p.resumes.Inc()
		if via != "" {
			s.p.relayed.Inc()
		}
		if first && time.Since(s.lost) < soon { // else it was an outage
			s.p.learn(s, home, s.quiet)
		}
	}
	s.foreign, s.endings, s.turned = nil, 0, 0
	if s.replacement() {
		s.p.moved(s, nil)
	}
	s.p.up()
	drain(s.again) // a wish to reconnect that came while there was nothing to do
	start, before := time.Now(), t.Stats()
	stop := context.AfterFunc(ctx, func() { t.Close(nil) })
	defer stop()
	err := lane.Run()
	s.lost, s.quiet = time.Now(), cutQuiet(lane, err)
	if via != "" { // the replica in between may have ended it, which says nothing about the path
		s.quiet = 0
	}
	drain(s.again)
	after := t.Stats()
	if time.Since(start) >= stable || after.BytesReceived > before.BytesReceived {
		s.retry.reset()
	}
	return err
}

func drain(c chan struct{}) {
	select {
	case <-c:
	default:
	}
}

func (s *slot) renewed(err error) {
	if err != nil {
		s.log.Warn("the gateway refused the renewed token", logging.Error(err)...)
		return
	}
	s.log.Info("token renewed")
}

// usable returns the tunnel if new streams may go to it.
func (s *slot) usable() *link.Tunnel {
	s.mu.Lock()
	t, ok := s.tunnel, s.machine.state == Connected && !s.leaving && !s.refusing && !s.doubt
	s.mu.Unlock()
	if !ok || t == nil || t.Err() != nil {
		return nil
	}
	return t
}

func (s *slot) current() *link.Tunnel {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tunnel
}

func (s *slot) homeNow() *endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.home
}

func (s *slot) madeAfter(t time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.made.After(t)
}

// look measures the tunnel's rate and round trip since the last look.
func (s *slot) look(elapsed time.Duration) {
	t := s.current()
	if t == nil {
		return
	}
	st := t.Stats()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tunnel != t {
		return
	}
	carried := st.BytesSent + st.BytesReceived - s.busy.sent - s.busy.received
	if s.busy.rtt == 0 {
		s.busy.rtt = st.RTT
	}
	if st.PingsAnswered > s.busy.answered && st.LastRTT > 0 {
		s.busy.rtt += (st.LastRTT - s.busy.rtt) / 2
		s.p.meter.rtts.Update(st.LastRTT.Seconds())
	}
	s.account(st)
	if elapsed > 0 {
		s.busy.rate = float64(carried) / elapsed.Seconds()
	}
}

// account adds what the tunnel has carried since the last time to the pool's counters. Called with mu held.
func (s *slot) account(st link.Stats) {
	sent, received := st.BytesSent-s.busy.sent, st.BytesReceived-s.busy.received
	s.p.sent.Add(int(sent))
	s.p.received.Add(int(received))
	s.p.replayed.Add(int(st.BytesReplayed - s.busy.replayed))
	s.p.meter.count(st.PingsAnswered-s.busy.answered, st.PingsLost-s.busy.lost, sent, received)
	s.busy.sent, s.busy.received, s.busy.replayed = st.BytesSent, st.BytesReceived, st.BytesReplayed
	s.busy.answered, s.busy.lost = st.PingsAnswered, st.PingsLost
}
