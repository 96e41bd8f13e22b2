package spool

import (
	"context"
	"errors"
	"os"

	"fairlead/shared/errs"
)

// syncWait is a connection whose end is acknowledged once the next pass is over.
type syncWait struct {
	e    *entry
	done chan error
}

// awaitSync waits for the next pass to make the entry durable.
func (s *Spool) awaitSync(ctx context.Context, e *entry) error {
	w := &syncWait{e: e, done: make(chan error, 1)}
	s.mu.Lock()
	s.syncWaits = append(s.syncWaits, w)
	s.mu.Unlock()
	select {
	case err := <-w.done:
		if err == nil {
			err = context.Cause(ctx) // an earlier pass may have failed for it
		}
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// syncPass makes durable what was written since the last one.
func (s *Spool) syncPass() {
	s.mu.Lock()
	dirty, names, waits := s.dirty, s.dirtyNames, s.syncWaits
	s.dirty, s.dirtyNames, s.syncWaits = map[*entry]*os.File{}, false, nil
	s.mu.Unlock()
	var dirErr error
	if names {
		dirErr = s.store.syncDir()
	}
	failed := map[*entry]error{}
	for e, f := range dirty {
		err := f.Sync()
		if errors.Is(err, os.ErrClosed) { // its writer has ended the segment, and synced it
			err = nil
		}
		if err = errors.Join(err, dirErr); err != nil {
			failed[e] = errs.New(errs.SpoolFailed, "making connection %v durable: %v", e.id, err)
			s.count.syncErrors.Inc()
		}
	}
	for _, w := range waits {
		w.done <- failed[w.e]
	}
	s.cutUnsynced(failed)
}

// cutUnsynced resets the applications whose bytes could not be made durable: what the kernel dropped is not to be trusted
// to come back.
func (s *Spool) cutUnsynced(failed map[*entry]error) {
	if len(failed) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for e, err := range failed {
		if e.cut != nil {
			e.cut(err)
		}
	}
}
