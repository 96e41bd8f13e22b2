package tunnel

import (
	"context"
	"log/slog"
	"sync"
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

	// Guarded by the pool's mu, but set before the slot starts.
	replaces *slot     // whose place it takes once it has a tunnel
	pinned   *endpoint // the only one where it may make that

	// mu guards what others read. No method of a tunnel is called while it is held.
	mu       sync.Mutex
	machine  machine
	tunnel   *link.Tunnel
	jar      *jar      // affinity cookies of the tunnel
	home     *endpoint // where the tunnel was made
	made     time.Time // when
	endpoint string    // of the current or last attempt
	moveAt   time.Time // when another slot takes this one's place, because its gateway goes away; zero: it does not
	doubt    bool      // its gateway is silent: no new streams, as long as others can take them
	rounds   int       // at resuming, that have failed since the lane was lost
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

// move changes the state, and tells log and history.
func (s *slot) move(to State, e Event, err error) {
	now := time.Now()
	s.mu.Lock()
	from := s.machine.state
	illegal := s.machine.move(to, now)
	s.lastErr = err
	t := s.tunnel
	s.mu.Unlock()
	if illegal != nil {
		s.log.Error("state machine", logging.Error(illegal)...)
		return
	}
	e.Time, e.Tunnel, e.State = now, s.n, to
	args := []any{logging.FieldState, to, "from", from}
	if t != nil {
		args = append(args, logging.FieldTunnel, t.Name())
	}
	if e.Attempt > 0 {
		args = append(args, logging.FieldAttempt, e.Attempt, logging.FieldDelayMS, e.DelayMS)
	}
	if e.Endpoint != "" {
		args = append(args, logging.FieldEndpoint, e.Endpoint)
	}
	if err != nil {
		e.Code = errs.CodeOf(err).String()
		if e.Reason == "" {
			e.Reason = errs.From(err).Text()
		}
		s.log.Warn("tunnel "+string(to), append(args, logging.Error(err)...)...)
	} else {
		s.log.Info("tunnel "+string(to), append(args, logging.FieldReason, e.Reason)...)
	}
	s.p.history.add(e)
	s.p.changed()
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
	s.tunnel = nil
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
	t, home, endpoint, attempt, first := s.tunnel, s.home, s.endpoint, s.attempt, s.rounds == 0
	s.attempt, s.rounds, s.doubt = 0, 0, false
	s.mu.Unlock()
	s.move(Connected, Event{Attempt: attempt, Endpoint: endpoint, Reason: "tunnel " + t.Name()}, nil)
	if s.resumed {
		s.p.resumes.Inc()
		if first && time.Since(s.lost) < soon { // else it was an outage
			s.p.learn(s, home, s.quiet)
		}
	}
	s.foreign = nil
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

// goAway takes the gateway's notice: no new streams go to this tunnel, and the pool makes another one.
func (s *slot) goAway(g link.GoAway) {
	s.mu.Lock()
	first, home := s.moveAt.IsZero(), s.home
	if first {
		s.moveAt = time.Now().Add(g.Delay)
	}
	s.mu.Unlock()
	if first && home != nil {
		home.jar.replace(home.url, nil) // new tunnels are not to be led back to it
	}
	if first {
		s.p.drained(s, g)
	}
}

func (s *slot) renewed(err error) {
	if err != nil {
		s.log.Warn("the gateway refused the renewed token", logging.Error(err)...)
		return
	}
	s.log.Info("token renewed")
}

// retire lets the slot end once its streams have; it takes no new ones.
func (s *slot) retire() {
	s.mu.Lock()
	if s.moveAt.IsZero() {
		s.moveAt = time.Now()
	}
	s.mu.Unlock()
	s.p.nudge()
}

// usable returns the tunnel if new streams may go to it.
func (s *slot) usable() *link.Tunnel {
	s.mu.Lock()
	t, ok := s.tunnel, s.machine.state == Connected && s.moveAt.IsZero() && !s.doubt
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
