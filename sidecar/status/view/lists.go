package view

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"fairlead/sidecar/status"
)

// section is a table with a title, which may lose rows where there is no room.
type section struct {
	name    string
	columns []column
	rows    [][]Span
	open    bool // there is always more, of which nothing is said
}

func tunnels(st *status.Status, now time.Time) section {
	s := section{name: "tunnels", columns: []column{{title: "tunnel"}, {title: "state"}, {title: "for", right: true}, {title: "endpoint", flexible: true, least: 18},
		{title: "replica", flexible: true, least: 12, optional: 4}, {title: "rtt", right: true}, {title: "loss", right: true, optional: 3},
		{title: "quality", optional: 6}, {title: "streams", right: true}, {title: "resumes", right: true, optional: 2},
		{title: "sent", right: true, optional: 7}, {title: "received", right: true, optional: 7}, {title: "error", loose: true, least: 12, optional: 1}}}
	for _, t := range st.Tunnels {
		s.rows = append(s.rows, []Span{span(plain, strconv.Itoa(t.Slot)), span(stateStyle(t.State), t.State), span(plain, Age(t.Since, now)),
			span(plain, host(t.Endpoint)), span(plain, place(t)), span(plain, millis(t.RTT)), span(plain, percent(t.Loss)),
			span(stateStyle(t.Quality), orDash(t.Quality)), span(plain, strconv.Itoa(t.Streams)), span(plain, strconv.FormatUint(t.Resumes, 10)),
			span(plain, Bytes(float64(t.Sent))), span(plain, Bytes(float64(t.Received))), span(bad, t.Error)})
	}
	return s.withoutEmpty("error")
}

// place is which replica has a tunnel, and by which other one it goes.
func place(t status.Tunnel) string {
	if t.Via == "" {
		return orDash(t.Replica)
	}
	return orDash(t.Replica) + " via " + t.Via
}

func endpoints(st *status.Status, now time.Time) section {
	s := section{name: "endpoints", columns: []column{{title: "endpoint", flexible: true, least: 18}, {title: "state"}, {title: "for", right: true},
		{title: "active"}, {title: "weight", right: true, optional: 2}, {title: "error", loose: true, least: 12, optional: 1}}}
	for _, e := range st.Endpoints {
		active := ""
		if e.Active {
			active = "yes"
		}
		s.rows = append(s.rows, []Span{span(plain, e.URL), span(stateStyle(e.State), orDash(e.State)), span(plain, Age(e.Since, now)), span(good, active),
			span(plain, strconv.Itoa(e.Weight)), span(bad, e.Error)})
	}
	return s.withoutEmpty("error")
}

func listeners(st *status.Status) section {
	s := section{name: "listeners", columns: []column{{title: "listener", flexible: true, least: 8}, {title: "address", flexible: true, least: 21},
		{title: "route", flexible: true, least: 6}, {title: "priority", optional: 3}, {title: "delivery", optional: 4}, {title: "active", right: true},
		{title: "waiting", right: true}, {title: "total", right: true, optional: 1}, {title: "failed", right: true, optional: 2},
		{title: "sent", right: true, optional: 5}, {title: "received", right: true, optional: 5}}}
	for _, l := range st.Listeners {
		failed := plain
		if l.Failed > 0 {
			failed = warn
		}
		s.rows = append(s.rows, []Span{span(plain, l.Name), span(plain, l.Listen), span(plain, l.Route), span(plain, l.Priority), span(plain, orDash(l.Delivery)),
			span(plain, strconv.Itoa(l.Active)), span(plain, strconv.Itoa(l.Waiting)), span(plain, strconv.FormatUint(l.Total, 10)),
			span(failed, strconv.FormatUint(l.Failed, 10)), span(plain, Bytes(float64(l.Sent))), span(plain, Bytes(float64(l.Received)))})
	}
	return s
}

// events are the last most events, the newest first.
func events(st *status.Status, most int, now time.Time) section {
	s := section{name: "events", open: true, columns: []column{{title: "ago", right: true}, {title: "tunnel", optional: 2}, {title: "state"}, {title: "event", loose: true, least: 12}}}
	for i := len(st.Events) - 1; i >= 0 && len(s.rows) < most; i-- {
		e := st.Events[i]
		s.rows = append(s.rows, []Span{span(plain, Age(e.Time, now)), span(plain, strconv.Itoa(e.Tunnel)), span(stateStyle(e.State), orDash(e.State)), span(plain, what(e))})
	}
	return s
}

// what an event says, besides its state.
func what(e status.Event) string {
	s := e.Reason
	if e.Code != "" {
		s = e.Code + " " + s
	}
	if e.Attempt > 0 {
		s += fmt.Sprintf(", attempt %d", e.Attempt)
	}
	if e.DelayMS > 0 {
		when := ", next in "
		if e.State == "connecting" { // the delay was the one before
			when = ", after "
		}
		s += when + shortly(time.Duration(min(e.DelayMS, 1<<40))*time.Millisecond)
	}
	if e.Endpoint != "" {
		s += " (" + host(e.Endpoint) + ")"
	}
	return s
}

// host is an endpoint without what nearly all have in common.
func host(endpoint string) string {
	return strings.TrimSuffix(strings.TrimPrefix(endpoint, "wss://"), "/")
}

func shortly(d time.Duration) string {
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return Duration(d)
}

// withoutEmpty drops a column in which nothing stands.
func (s section) withoutEmpty(title string) section {
	for i, c := range s.columns {
		if c.title != title {
			continue
		}
		for _, row := range s.rows {
			if row[i].Text != "" {
				return s
			}
		}
		s.columns = append(s.columns[:i:i], s.columns[i+1:]...)
		for r, row := range s.rows {
			s.rows[r] = append(row[:i:i], row[i+1:]...)
		}
		return s
	}
	return s
}

// lines lays the section out with at most most rows; what is left out is counted.
func (s section) lines(columns, most int) []Line {
	rows, left := s.rows, len(s.rows)-most
	switch {
	case left <= 0:
	case s.open || most < 2: // no row to spare for the count
		rows = rows[:max(0, most)]
		left = 0
	default:
		left++
		rows = rows[:most-1]
	}
	lines := table(s.columns, rows, columns)
	if left > 0 {
		lines = append(lines, Line{span(dim, fmt.Sprintf("… %d more", left))}.within(columns))
	}
	return lines
}
