package history

import (
	"strings"
	"time"
)

// Kind is what happened.
type Kind string

// The kinds of events.
const (
	Connect    Kind = "connect"    // a tunnel was made
	Resume     Kind = "resume"     // a tunnel came back on a new WebSocket
	Detach     Kind = "detach"     // a tunnel's WebSocket broke; it waits to be resumed
	Lost       Kind = "lost"       // a tunnel did not come back in time
	Disconnect Kind = "disconnect" // a tunnel ended in order
	Refused    Kind = "refused"    // an upgrade or an open was refused
	Failed     Kind = "failed"     // an open was permitted and did not work
	Breaker    Kind = "breaker"    // a circuit changed its state
	Revoked    Kind = "revoked"    // a revocation ended something
	Reload     Kind = "reload"     // the configuration was loaded anew
	Drain      Kind = "drain"      // the gateway drains
)

// Event is one thing that happened. Fields that do not apply are empty.
type Event struct {
	ID      uint64    `json:"id" doc:"increasing by one"`
	Time    time.Time `json:"time"` // zero: now
	Kind    Kind      `json:"kind" doc:"what happened: connect, resume, detach, lost, disconnect, refused, failed, breaker, revoked, reload, drain"`
	Tenant  string    `json:"tenant,omitempty"`
	Tunnel  string    `json:"tunnel,omitempty"`
	Route   string    `json:"route,omitempty"`
	Backend string    `json:"backend,omitempty"`
	Code    string    `json:"code,omitempty"` // as FL-A202
	Text    string    `json:"text,omitempty" doc:"one sentence"`
	Pod     string    `json:"pod,omitempty"`
}

// Events is what GET /api/events answers.
type Events struct {
	Last   uint64  `json:"last" doc:"the newest id; below what was asked for: the gateway was restarted"`
	Events []Event `json:"events" doc:"oldest first"`
}

// Limits of the texts in an event, in bytes: some of them a stranger chose.
const (
	nameLimit = 128
	textLimit = 512
)

// Event appends an event. It keeps copies of the texts, clipped, and never blocks for long.
func (h *History) Event(e Event) {
	for _, name := range []*string{&e.Tenant, &e.Tunnel, &e.Route, &e.Backend, &e.Code, &e.Pod} {
		*name = clip(*name, nameLimit)
	}
	e.Kind, e.Text = Kind(clip(string(e.Kind), nameLimit)), clip(e.Text, textLimit)
	if e.Time.IsZero() {
		e.Time = h.cfg.Now()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lastID++
	e.ID = h.lastID
	h.events.add(e)
}

// Events tells the events with ids above one; 0: all that it remembers.
func (h *History) Events(after uint64) Events {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := Events{Last: h.lastID, Events: []Event{}}
	for e := range h.events.all() {
		if e.ID > after {
			list.Events = append(list.Events, e)
		}
	}
	return list
}

// clip copies a text, so that a long one that it was part of can be freed, and bounds it to n bytes of valid UTF-8.
func clip(s string, n int) string {
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n-len("…")], "") + "…"
	}
	return strings.Clone(s)
}
