package spool

import (
	"errors"
	"time"

	"fairlead/shared/errs"
)

// Retry lets a connection be delivered now, whatever it waits for. One in quarantine goes back, and is delivered as far as it
// is valid: that is for a person to decide.
func (s *Spool) Retry(id ID) error {
	s.mu.Lock()
	e := s.byID[id]
	if e == nil {
		s.mu.Unlock()
		return unknownID(id)
	}
	e.after, e.attempts = time.Time{}, 0
	s.tunnel, *s.route(e.from.Route) = gate{}, gate{}
	if e.aside {
		return s.release(e)
	}
	s.mu.Unlock()
	s.wakeUp()
	return nil
}

// release takes an entry back from quarantine. Called with mu held, which it gives up.
func (s *Spool) release(e *entry) error {
	if e.from.Route == "" || errors.Is(e.err, errs.SpoolKey) || e.live {
		defer s.mu.Unlock()
		return errs.Wrap(errs.SpoolCorrupt, e.err, "connection %v cannot be delivered", e.id)
	}
	s.unlist(e)
	e.salved, e.aside, e.ours, e.err = true, false, false, nil
	e.saved.flags |= flagSalved
	p := e.saved
	e.saved.turn++
	e.state = idle // until its files are back
	s.enlist(e)
	s.mu.Unlock()
	err := errors.Join(p.write(s.store.quarantine(), e.id), s.store.move(s.store.quarantine(), s.cfg.Dir, e.id, e.segs))
	if err != nil {
		s.failed("taking a connection out of quarantine", errs.Wrap(errs.SpoolFailed, err, "connection %v", e.id))
		return err
	}
	s.log.Warn("spooled connection taken out of quarantine by request", e.attrs()...)
	s.mu.Lock()
	if e.state == idle {
		e.state = ready
	}
	s.mu.Unlock()
	s.wakeUp()
	return nil
}
