package spool

import (
	"context"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// drainEvery is how often the progress of a drain is logged.
const drainEvery = 2 * time.Second

// Drain waits until everything is delivered and no application sends any more, or ctx ends. What is left stays on disk and is
// delivered after the next start; it is returned. progress is called now and then, and may be nil. Connections that cannot be
// delivered without a person are not waited for.
func (s *Spool) Drain(ctx context.Context, progress func(Status)) (left Status) {
	tick := time.NewTicker(drainEvery)
	defer tick.Stop()
	for {
		s.mu.Lock()
		empty, changed := s.drained(), s.empty
		s.mu.Unlock()
		if empty || ctx.Err() != nil {
			break
		}
		select {
		case <-ctx.Done():
		case <-changed:
			continue
		case <-tick.C:
		}
		st := s.Status()
		s.log.Info("delivering what is spooled", "connections", st.Connections, "bytes", st.Bytes, "receiving", st.Receiving, logging.FieldError, st.Error)
		if progress != nil {
			progress(st)
		}
	}
	left = s.Status()
	if left.Connections > 0 || left.Quarantined > 0 {
		s.log.Warn("connections stay in the spool, and are delivered after the next start", "connections", left.Connections, "bytes", left.Bytes,
			"quarantined", left.Quarantined, logging.FieldError, left.Error)
	}
	return left
}

// drained says whether there is nothing to wait for. Called with mu held.
func (s *Spool) drained() bool {
	if s.live > 0 {
		return false
	}
	for _, list := range s.order {
		for _, e := range list {
			if e.state != held {
				return false
			}
		}
	}
	return true
}

// Close cuts the connections that are being received, and stops delivering. Everything that was kept stays on disk. It waits
// for whoever works on the files: the callers of Accept, whose connections are reset, too. The lock is given up last.
func (s *Spool) Close(context.Context) error {
	why := errs.New(errs.ShuttingDown, "the sidecar is stopping")
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	var save []*entry
	for _, list := range s.order {
		for _, e := range list {
			if e.cut != nil {
				e.cut(why)
			}
			if e.stream != nil {
				s.advance(e, e.stream)
				save = append(save, e)
			}
		}
	}
	s.mu.Unlock()
	for _, e := range save {
		s.save(e)
	}
	s.mu.Lock()
	for _, e := range save {
		if st := e.stream; st != nil {
			e.stream = nil
			st.Reset(why)
		}
	}
	s.mu.Unlock()
	s.wakeUp()
	s.wg.Wait()
	s.received.Wait()
	s.store.close()
	return nil
}
