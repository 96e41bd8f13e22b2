package tunnel

import (
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// move changes the state, and tells log and history.
func (s *slot) move(to State, e Event, err error) {
	s.moveIf(func() bool { return true }, to, e, err)
}

// moveIf is move if may, which is called with mu held, says so.
func (s *slot) moveIf(may func() bool, to State, e Event, err error) {
	now := time.Now()
	s.mu.Lock()
	if !may() {
		s.mu.Unlock()
		return
	}
	from, via, hushed := s.machine.state, s.via, s.hushed
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
	if t != nil && to == Connected {
		args = append(args, "replica", t.Replica(), "via", via)
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
	}
	switch {
	case hushed:
		s.log.Debug("tunnel "+string(to), append(args, logging.Error(err)...)...)
		s.p.changed()
		return
	case err != nil:
		s.log.Warn("tunnel "+string(to), append(args, logging.Error(err)...)...)
	default:
		s.log.Info("tunnel "+string(to), append(args, logging.FieldReason, e.Reason)...)
	}
	s.p.history.add(e)
	s.p.changed()
}

// at says which replica a tunnel is on, and by which other one its lane goes.
func at(replica, via string) string {
	switch {
	case replica == "" && via == "":
		return ""
	case via == "":
		return " on " + replica
	}
	return " on " + replica + " via " + via
}
