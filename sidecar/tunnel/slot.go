package tunnel

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
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
	lost  time.Time     // when the last lane ended; the slot's goroutine alone uses it
	again chan struct{} // try now, also after having given up

	// mu guards what others read. No method of a tunnel is called while it is held.
	mu        sync.Mutex
	machine   machine
	tunnel    *link.Tunnel
	home      string    // endpoint where the tunnel was made
	elsewhere bool      // since the lane was lost, another endpoint has answered, and does not know the tunnel
	endpoint  string    // of the current or last attempt
	moveAt    time.Time // when another slot takes this one's place, because its gateway goes away; zero: it does not
	attempt   int
	lastErr   error
	busy      activity
	idleSince time.Time // without streams; the pool's goroutine alone uses it
}

// activity is a tunnel's traffic, as of the last look.
type activity struct {
	sent, received, replayed uint64
	rate                     float64 // bytes per second in both directions
}

// bulkRate is from where a tunnel counts as busy with bulk, in bytes per second.
const bulkRate = 1 << 20

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
			e.Reason = err.Error()
		}
		s.log.Warn("tunnel "+string(to), append(args, logging.Error(err)...)...)
	} else {
		s.log.Info("tunnel "+string(to), append(args, logging.FieldReason, e.Reason)...)
	}
	s.p.history.add(e)
	s.p.changed()
}

// run keeps a tunnel until ctx ends.
func (s *slot) run(ctx context.Context) {
	defer close(s.done)
	for ctx.Err() == nil {
		lane, err := s.connect(ctx)
		if err == nil {
			err = s.serve(ctx, lane)
		}
		if ctx.Err() != nil || !s.recover(ctx, err) {
			break
		}
	}
	s.drop(errs.New(errs.ShuttingDown, "the sidecar is stopping"))
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

// connect makes one attempt: to resume the tunnel there is, or at a new one.
func (s *slot) connect(ctx context.Context) (*link.Lane, error) {
	s.mu.Lock()
	s.attempt++
	t, attempt := s.tunnel, s.attempt
	s.endpoint = s.target()
	endpoint := s.endpoint
	s.mu.Unlock()
	if t == nil {
		s.move(Connecting, Event{Attempt: attempt, Endpoint: endpoint, Reason: "attempt"}, nil)
	} else {
		s.log.Info("resuming", logging.FieldTunnel, t.Name(), logging.FieldAttempt, attempt, logging.FieldDelayMS, 0, logging.FieldEndpoint, endpoint,
			logging.FieldReason, "attempt")
	}
	ctx, cancel := context.WithTimeout(ctx, s.p.cfg.ConnectTimeout)
	defer cancel()
	conn, err := s.p.dial(ctx, endpoint)
	if err != nil {
		return nil, err
	}
	lane, err := s.handshake(ctx, conn, t)
	if err != nil {
		conn.Close(errs.CloseFrame(err))
		conn.Abort()
		conn.Wait()
	}
	return lane, err
}

// target is where the current attempt goes: a new tunnel to the endpoints in turn. A tunnel that is to be resumed lives at
// one of them; every other attempt at that looks whether another endpoint answers, which tells the end of that gateway from
// an outage of the network. Called with mu held.
func (s *slot) target() string {
	switch {
	case s.tunnel == nil:
		return s.p.endpoint(s.attempt - 1)
	case s.attempt%2 == 1:
		return s.home
	}
	return s.p.endpoint(s.attempt/2 - 1)
}

func (s *slot) handshake(ctx context.Context, conn link.Conn, t *link.Tunnel) (*link.Lane, error) {
	if t != nil {
		lane, err := t.Resume(ctx, conn)
		if err == nil {
			s.p.resumes.Inc()
		}
		return lane, err
	}
	cfg := s.p.cfg.Link
	cfg.Logger = s.log
	cfg.GoAway = s.goAway
	cfg.Renewed = s.renewed
	t, lane, err := link.Connect(ctx, conn, cfg)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.tunnel, s.home = t, s.endpoint
	s.mu.Unlock()
	return lane, nil
}

// serve runs a lane. It returns why the lane ended.
func (s *slot) serve(ctx context.Context, lane *link.Lane) error {
	s.mu.Lock()
	t, endpoint, attempt := s.tunnel, s.endpoint, s.attempt
	s.attempt, s.elsewhere = 0, false
	s.mu.Unlock()
	s.move(Connected, Event{Attempt: attempt, Endpoint: endpoint, Reason: "tunnel " + t.Name()}, nil)
	s.p.up()
	start, before := time.Now(), t.Stats()
	stop := context.AfterFunc(ctx, func() { t.Close(nil) })
	defer stop()
	err := lane.Run()
	s.lost = time.Now()
	select { // a wish to reconnect that came while there was nothing to do
	case <-s.again:
	default:
	}
	after := t.Stats()
	if time.Since(start) >= stable || after.BytesReceived > before.BytesReceived {
		s.retry.reset()
	}
	return err
}

// recover decides what follows a failed attempt or a lost lane, waits, and says whether to go on.
func (s *slot) recover(ctx context.Context, err error) bool {
	s.mu.Lock()
	t, attempt, endpoint, leaving := s.tunnel, s.attempt, s.endpoint, !s.moveAt.IsZero()
	s.mu.Unlock()
	if t != nil && (s.gone(t, err) || outlived(t, s.lost)) {
		s.drop(errs.Wrap(errs.TunnelLost, err, "the gateway has given the tunnel up"))
		t = nil
	}
	if leaving && t == nil || errors.Is(err, errs.TunnelLimit) && s.p.spare(s) {
		s.move(Disconnected, Event{Endpoint: endpoint}, err)
		s.p.nudge()
		return false
	}
	eager := t != nil && t.Stats().Streams > 0 || s.p.cfg.Waiting()
	wait, giveUp := s.retry.next(eager, errs.From(err).RetryAfter)
	if !s.p.cfg.Reconnect {
		giveUp = true
	}
	if giveUp {
		return s.giveUp(ctx, err)
	}
	to := Disconnected
	if t != nil {
		to = Resuming
	}
	s.move(to, Event{Attempt: max(attempt, 1), DelayMS: wait.Milliseconds(), Endpoint: endpoint}, err)
	return s.pause(ctx, wait)
}

// outlived says whether no gateway can hold a tunnel any more whose lane was lost then. Its applications need not wait for
// one to say so.
func outlived(t *link.Tunnel, lost time.Time) bool {
	held := t.HeldFor()
	return held > 0 && time.Since(lost) > held
}

// gone says whether a tunnel cannot be resumed any more: it is over, its gateway does not know it, or its gateway cannot be
// reached while another one can.
func (s *slot) gone(t *link.Tunnel, err error) bool {
	if t.Err() != nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	unknown := errors.Is(err, errs.TunnelUnknown)
	if s.endpoint == s.home {
		return unknown || s.elsewhere
	}
	s.elsewhere = s.elsewhere || unknown
	return false
}

// giveUp says so once, and waits until somebody asks to try again.
func (s *slot) giveUp(ctx context.Context, err error) bool {
	s.drop(errs.Wrap(errs.GaveUp, err, "reconnecting was given up"))
	s.move(Failed, Event{Attempt: s.retry.failures}, errs.Wrap(errs.GaveUp, err, "gave up after %d failed attempts", s.retry.failures))
	s.p.gaveUp(err)
	select {
	case <-ctx.Done():
		return false
	case <-s.again:
	}
	s.retry.reset()
	return true
}

func (s *slot) pause(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-s.again:
		s.retry.reset()
	}
	return true
}

// reconnect ends a wait.
func (s *slot) reconnect() {
	select {
	case s.again <- struct{}{}:
	default:
	}
}

// goAway takes the gateway's notice: no new streams go to this tunnel, and the pool makes another one.
func (s *slot) goAway(g link.GoAway) {
	s.mu.Lock()
	first := s.moveAt.IsZero()
	if first {
		s.moveAt = time.Now().Add(g.Delay)
	}
	s.mu.Unlock()
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
	t, ok := s.tunnel, s.machine.state == Connected && s.moveAt.IsZero()
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

// look measures the tunnel's rate since the last look.
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
	s.account(st)
	if elapsed > 0 {
		s.busy.rate = float64(carried) / elapsed.Seconds()
	}
}

// account adds what the tunnel has carried since the last time to the pool's counters. Called with mu held.
func (s *slot) account(st link.Stats) {
	s.p.sent.Add(int(st.BytesSent - s.busy.sent))
	s.p.received.Add(int(st.BytesReceived - s.busy.received))
	s.p.replayed.Add(int(st.BytesReplayed - s.busy.replayed))
	s.busy.sent, s.busy.received, s.busy.replayed = st.BytesSent, st.BytesReceived, st.BytesReplayed
}

// header carries the token of an attempt.
func header(token string) http.Header {
	return http.Header{"Authorization": {"Bearer " + token}}
}
