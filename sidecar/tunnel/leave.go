package tunnel

import (
	"context"
	"errors"
	"slices"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/link"
)

// notice is a gateway's wish that a tunnel goes elsewhere. Until another tunnel takes its place it goes on as before.
type notice struct {
	at     time.Time   // when to make that
	reason *errs.Error // Draining, or Rebalanced: then the gateway stays, and nothing will be cut
}

func (n *notice) goesAway() bool { return n != nil && n.reason.Code != errs.Rebalanced }

// goAway takes the gateway's notice, which is told again on each lane.
func (s *slot) goAway(g link.GoAway) {
	n := &notice{at: time.Now().Add(g.Delay), reason: g.Reason}
	s.mu.Lock()
	was, home, state := s.asked, s.home, s.machine.state
	if was != nil && was.at.Before(n.at) {
		n.at = was.at
	}
	s.asked = n
	if s.due == nil { // one timer, however often the gateway says it
		s.due = time.AfterFunc(time.Until(n.at), s.p.nudge)
	} else {
		s.due.Reset(time.Until(n.at))
	}
	s.mu.Unlock()
	if was != nil && was.reason.Code == n.reason.Code {
		return
	}
	if home != nil {
		home.jar.replace(home.url, nil) // new tunnels are not to be led back to it
	}
	said := "the gateway goes away"
	if !n.goesAway() {
		said = "the gateway asks for the tunnel to be moved"
	}
	s.log.Info(said, "deadline", g.Deadline.String(), "delay", g.Delay.String(), "code", g.Reason.Code.String(), "reason", g.Reason.Message)
	s.p.history.add(Event{Time: time.Now(), Tunnel: s.n, State: state, Code: g.Reason.Code.String(), Reason: "asked to move: " + g.Reason.Message})
	s.p.changed()
}

// leave lets the slot end once its streams have; it takes no new ones.
func (s *slot) leave(why string) {
	e := Event{Reason: why}
	if n := s.notice(); n != nil {
		e.Code = n.reason.Code.String()
	}
	s.moveIf(func() bool {
		s.leaving = true
		return s.machine.state == Connected
	}, Draining, e, nil)
	s.p.bequeath(s)
	s.p.nudge()
}

func (s *slot) notice() *notice {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// closeIfIdle ends the tunnel unless it has streams, and says whether it is over.
func (s *slot) closeIfIdle(t *link.Tunnel) bool {
	s.ownEnd.Store(true)
	over := t.CloseIfIdle()
	if !over {
		s.ownEnd.Store(false)
	}
	return over
}

// mostOpens bounds what is remembered of opens on a tunnel that is to be moved.
const mostOpens = 64

// opened takes note of a stream that was begun on a tunnel of the slot.
func (s *slot) opened(stream *link.Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked.goesAway() && len(s.opens) < mostOpens {
		s.opens = append(s.opens, stream)
	}
}

// watchOpens looks whether a gateway that goes away still takes streams. One that does not is left at once.
func (s *slot) watchOpens() {
	s.mu.Lock()
	opens := s.opens
	s.opens = nil
	s.mu.Unlock()
	if len(opens) == 0 {
		return
	}
	now, cancel := context.WithCancel(context.Background())
	cancel()
	refused := false
	opens = slices.DeleteFunc(opens, func(stream *link.Stream) bool {
		err := stream.WaitOpened(now)
		refused = refused || errors.Is(err, errs.Draining)
		return !errors.Is(err, context.Canceled)
	})
	s.mu.Lock()
	s.opens = append(opens, s.opens...)
	if refused && !s.refusing && s.asked != nil {
		s.refusing, s.asked = true, &notice{at: time.Now(), reason: s.asked.reason}
	} else {
		refused = false
	}
	s.mu.Unlock()
	if refused {
		s.log.Warn("the gateway takes no more streams on this tunnel")
		s.p.changed()
		s.p.nudge()
	}
}
