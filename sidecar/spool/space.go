package spool

import (
	"context"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/link"
	"fairlead/shared/logging"
)

// What is done when the spool is full.
const (
	FullRefuse     = "refuse"      // new connections are refused, open ones are not read from
	FullDropOldest = "drop-oldest" // the oldest connection of the lowest priority is dropped, whole
)

// diskPause is how often a full disk is tried again: others may have freed space on it.
const diskPause = time.Second

// tellEvery bounds how often it is logged that the disk is full: close to that, it is again and again.
const tellEvery = time.Minute

// reserve takes space for some bytes, at most `most` of them, and says for how many: 0 when there is too little. What is not
// used is given back by settle.
func (s *Spool) reserve(e *entry, most int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	free := s.cfg.Size - s.used - s.reserved
	if free < leastFree || time.Since(s.diskFull) <= diskPause {
		return 0
	}
	n := min(most, max(leastFree, free/4)) // something is left for others
	s.reserved += n
	e.blocked = false
	return n
}

// makeRoom removes what may be removed, or waits until something was.
func (s *Spool) makeRoom(ctx context.Context, e *entry) error {
	s.mu.Lock()
	freed := s.freed
	var squeezed []removal
	if s.isFull() {
		squeezed = s.squeeze()
	}
	var victim *entry
	if len(squeezed) == 0 && s.cfg.Full == FullDropOldest && s.isFull() {
		victim = s.victim(e)
	}
	e.blocked = len(squeezed) == 0 && victim == nil
	s.mu.Unlock()
	s.discard(squeezed)
	switch {
	case len(squeezed) > 0:
		return nil
	case victim != nil:
		s.dropFull(victim)
		return nil
	}
	s.waiting.Add(1) // so that what frees space is noticed sooner
	defer s.waiting.Add(-1)
	return pause(ctx, freed)
}

// isFull says whether what is on disk leaves no space: not just what is reserved and may not be used. Called with mu held.
func (s *Spool) isFull() bool {
	return s.cfg.Size-s.used < leastFree || time.Since(s.diskFull) <= diskPause
}

// pause waits until something was removed, or for a while.
func pause(ctx context.Context, freed <-chan struct{}) error {
	timer := time.NewTimer(diskPause)
	defer timer.Stop()
	select {
	case <-freed:
	case <-timer.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// settle gives back what was reserved. What was written of it is counted by publish.
func (s *Spool) settle(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved -= n
	s.free()
}

// free tells those who wait for space to look again. Called with mu held.
func (s *Spool) free() {
	close(s.freed)
	s.freed = make(chan struct{})
}

// awaitDisk makes room, or waits a while, after a write failed because the disk is full.
func (s *Spool) awaitDisk(ctx context.Context, e *entry, cause error) error {
	s.mu.Lock()
	s.err = errs.Wrap(errs.SpoolFull, cause, "writing to %s", s.cfg.Dir)
	if time.Since(s.diskTold) > tellEvery {
		s.diskTold, s.diskSaid = time.Now(), true
		s.log.Error("the disk is full: the spool takes nothing until there is space", logging.Error(s.err)...)
		s.count.writeErrors.Inc()
	}
	s.diskFull = time.Now()
	s.mu.Unlock()
	return s.makeRoom(ctx, e)
}

// beginWrite says that the entry's writer is going to change files, so that nobody else does; publish says that it has.
func (s *Spool) beginWrite(e *entry) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.state == gone || e.aside {
		return errs.New(errs.SpoolDropped, "connection %v is in the spool no more", e.id)
	}
	e.writing = true
	return nil
}

// publish makes what the writer has appended known to delivery. If the entry was dropped meanwhile, what was written is
// removed.
func (s *Spool) publish(w *writer, wrote bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := w.e
	e.writing = false
	if e.state == gone || e.aside {
		if w.f != nil {
			_ = s.store.remove(s.cfg.Dir, e.id, []segment{w.seg})
		}
		return errs.New(errs.SpoolDropped, "connection %v is in the spool no more", e.id)
	}
	if wrote {
		if !s.diskFull.IsZero() {
			s.diskFull = time.Time{}
			if s.diskSaid {
				s.log.Info("the disk has space again")
			}
			s.diskSaid = false
		}
		s.err = nil
		before := e.size()
		if i := e.tail(); i >= 0 && e.segs[i].base == w.seg.base {
			e.segs[i] = w.seg
		} else {
			e.segs = append(e.segs, w.seg)
		}
		s.used += e.size() - before
		s.count.received.Add(int(w.end - e.end))
		e.end, e.blocked = w.end, false
		if s.cfg.Fsync == FsyncInterval {
			s.dirty[e] = w.f
			s.dirtyNames = s.dirtyNames || !w.named
			w.named = true
		}
		s.poke(e)
	}
	return nil
}

// removal is files that are no longer part of an entry, to be unlinked without holding the mutex.
type removal struct {
	id   ID
	segs []segment
}

// squeeze lets go of bytes that were delivered and are kept only to be sent again should the backend lose them: with the
// spool full of such, nothing would ever move again. It takes those of the connection that was accepted first. Called with
// mu held; discard does the rest.
func (s *Spool) squeeze() []removal {
	for prio := len(s.order) - 1; prio >= 0; prio-- {
		for _, e := range s.order[prio] {
			if n := e.deliveredSegments(); n > 0 {
				r := removal{e.id, append([]segment(nil), e.segs[:n]...)}
				s.detach(e, n)
				for _, seg := range r.segs {
					s.count.released.Add(int(seg.size))
				}
				return []removal{r}
			}
		}
	}
	return nil
}

// deliveredSegments is how many segments, from the first, hold nothing but what the peer has consumed. The last counts only
// while more may follow it: a reader that is between two looks for the next one.
func (e *entry) deliveredSegments() (n int) {
	if e.stream == nil || e.writing {
		return 0
	}
	consumed := e.start + e.stream.Acked() // acked may be more: what an earlier stream had brought is being sent again
	for i := range e.segs {
		until := e.end
		if i < e.tail() {
			until = e.segs[i+1].base
		} else if !e.live {
			break
		}
		if consumed < until {
			break
		}
		n++
	}
	return n
}

// detach takes the first n segments out of an entry. Called with mu held.
func (s *Spool) detach(e *entry, n int) {
	if n > 0 && n == len(e.segs) && e.live {
		e.sealed = true
		delete(s.dirty, e)
	}
	for _, seg := range e.segs[:n] {
		s.used -= seg.size
	}
	e.segs = append([]segment(nil), e.segs[n:]...)
}

// discard unlinks what was detached, and tells those who wait for space.
func (s *Spool) discard(all []removal) {
	if len(all) == 0 {
		return
	}
	for _, r := range all {
		if err := s.store.remove(s.cfg.Dir, r.id, r.segs); err != nil {
			s.failed("removing delivered bytes", errs.Wrap(errs.SpoolFailed, err, "connection %v", r.id))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free()
}

// victim is the oldest connection of the lowest priority, none above that of e; damaged ones go first. nil: there is none.
// Called with mu held.
func (s *Spool) victim(e *entry) *entry {
	if len(s.bad) > 0 {
		return s.bad[0]
	}
	for prio := len(s.order) - 1; prio >= int(e.from.Priority); prio-- {
		var oldest *entry
		for _, o := range s.order[prio] {
			if o != e && len(o.segs) > 0 && (oldest == nil || o.at.Before(oldest.at)) {
				oldest = o
			}
		}
		if oldest != nil {
			return oldest
		}
	}
	return nil
}

func (s *Spool) dropFull(e *entry) {
	err := errs.New(errs.SpoolDropped, "the spool is full: the oldest connection of the lowest priority was dropped")
	if n, ok := s.drop(e, err); ok {
		s.log.Warn("spooled connection dropped", append(logging.Error(err), append(e.attrs(), "bytes", n)...)...)
	}
}

// Drop removes a connection, whatever its state: one that is being received is reset, one that is being delivered too.
func (s *Spool) Drop(id ID) error {
	e := s.find(id)
	if e == nil {
		return unknownID(id)
	}
	if n, ok := s.drop(e, errs.New(errs.SpoolDropped, "dropped by a person")); ok {
		s.log.Warn("spooled connection dropped by request", append(e.attrs(), "bytes", n)...)
	}
	return nil
}

func (s *Spool) drop(e *entry, why error) (bytes int64, ok bool) {
	dir, done := s.retire(e, why)
	if !done {
		return 0, false
	}
	s.count.dropped.Inc()
	bytes = e.size()
	s.count.droppedBytes.Add(int(bytes))
	s.erase(dir, e)
	return bytes, true
}

// retire takes an entry out of the spool's books: nobody finds it any more, and its stream and application are reset. Its
// files are the caller's to remove.
func (s *Spool) retire(e *entry, why error) (dir string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.state == gone {
		return "", false
	}
	dir = s.cfg.Dir
	if s.unlist(e) {
		dir = s.store.quarantine()
	}
	e.state = gone
	delete(s.dirty, e)
	if e.stream != nil {
		e.stream.Reset(why)
		e.stream = nil
	}
	if e.cut != nil && why != nil { // one that is delivered before its end is acknowledged still gets that
		e.cut(why)
	}
	s.changed()
	return dir, true
}

// erase removes the files of a retired entry.
func (s *Spool) erase(dir string, e *entry) {
	if err := s.store.removeAll(dir, e.id, e.segs, e.saved); err != nil {
		s.failed("removing a connection", errs.Wrap(errs.SpoolFailed, err, "connection %v", e.id))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used -= e.size()
	s.free()
	s.wakeUp()
}

func (s *Spool) failed(doing string, err error) {
	s.count.storeErrors.Inc()
	s.log.Error("the spool failed", append(logging.Error(err), "doing", doing)...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// full says whether a new connection is refused. Called with mu held.
func (s *Spool) full(prio link.Priority) error {
	switch {
	case s.closed:
		return errs.New(errs.ShuttingDown, "the sidecar is stopping")
	case s.live >= s.cfg.Open:
		return errs.New(errs.SpoolFull, "%d connections are being spooled, which is the limit", s.cfg.Open)
	case s.total() >= s.cfg.Connections && (s.cfg.Full != FullDropOldest || s.victim(&entry{from: Origin{Priority: prio}}) == nil):
		return errs.New(errs.SpoolFull, "%d connections are spooled, which is the limit", s.cfg.Connections)
	case s.cfg.Full == FullDropOldest:
		return nil
	case !s.diskFull.IsZero() && time.Since(s.diskFull) < 2*diskPause:
		return errs.New(errs.SpoolFull, "the disk under %s is full", s.cfg.Dir)
	case s.cfg.Size-s.used < leastFree && !s.squeezable():
		return errs.New(errs.SpoolFull, "%d of %d bytes are used", s.used, s.cfg.Size)
	}
	return nil
}

func (s *Spool) squeezable() bool {
	for _, list := range s.order {
		for _, e := range list {
			if e.deliveredSegments() > 0 {
				return true
			}
		}
	}
	return false
}
