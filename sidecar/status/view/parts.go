package view

import (
	"fmt"
	"time"

	"fairlead/sidecar/status"
)

// stateStyle colours a state of a tunnel or an endpoint, or a quality.
func stateStyle(s string) Style {
	switch s {
	case "connected", "healthy", "excellent", "good":
		return good
	case "failed", "failing", "poor":
		return bad
	case "unknown", "none", "":
		return dim
	}
	return warn
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// title says which sidecar it is.
func title(st *status.Status, now time.Time) Line {
	line := Line{span(bold, "fairlead"), span(plain, " "+orDash(st.Instance))}
	rest := "  " + orDash(st.Version) + "  up " + Age(st.Started, now)
	if st.Profile != "" {
		rest += "  profile " + st.Profile
	}
	return append(line, span(dim, rest))
}

// health is the state and how good the link is.
func health(st *status.Status, now time.Time) Line {
	state := Line{span(stateStyle(st.State)+";1", "● "+st.State), span(plain, " for "+Age(st.Since, now))}
	if st.State == "" || stateStyle(st.State) == dim {
		state[0].Style = dim
	}
	ready := Line{span(good, "ready")}
	if !st.Ready {
		ready = Line{span(bad, "not ready")}
	}
	if st.Quality == "" || st.Quality == "none" {
		return join(state, ready)
	}
	return join(state, ready, Line{span(plain, "quality "), span(stateStyle(st.Quality), st.Quality),
		span(plain, fmt.Sprintf(", round trip %s, loss %s", millis(st.RTT), percent(st.Loss)))})
}

// whyNot says why no connection would be carried; empty when one would.
func whyNot(st *status.Status) Line {
	why := st.Why()
	if st.Ready || why == st.State {
		return nil
	}
	return Line{span(plain, label("because")), span(warn, why)}
}

func label(s string) string { return pad(s, 11, false) }

func heartbeat(st *status.Status) Line {
	h := st.Heartbeat
	line := label("heartbeat") + orDash(h.Interval)
	if h.Learned {
		line += ", learned"
	}
	if h.Reason != "" {
		line += ": " + h.Reason
	}
	return text(line)
}

// bar is a bar with its colour: full is bad.
func bar(value, size float64, n int) Line {
	style := blue
	switch {
	case size > 0 && value >= size:
		style = bad
	case size > 0 && value >= 0.8*size:
		style = warn
	}
	filled, empty := Bar(value, size, n)
	return Line{{filled, style}, {empty, dim}}
}

// bars is how wide a bar is; 0: none is wanted.
func queue(st *status.Status, bars int) []Line {
	q := st.Queue
	line := Line{span(plain, label("queue"))}
	if bars > 0 {
		line = append(append(line, bar(float64(q.Length), float64(q.Size), bars)...), span(plain, "  "))
	}
	line = append(line, span(plain, fmt.Sprintf("%d of %d", q.Length, q.Size)))
	if q.Pressure {
		line = append(line, span(warn, ", under pressure"))
	}
	var more Line
	if w := q.Waiting; w.High+w.Normal+w.Low > 0 {
		more = Line{span(plain, fmt.Sprintf("high %d, normal %d, low %d", w.High, w.Normal, w.Low))}
	}
	if q.Refused+q.Expired > 0 {
		more = join(more, Line{span(warn, fmt.Sprintf("refused %d, expired %d", q.Refused, q.Expired))})
	}
	if len(more) == 0 {
		return []Line{line}
	}
	return []Line{line, append(Line{span(plain, label(""))}, more...)}
}

func spool(st *status.Status, bars int, now time.Time) []Line {
	s := st.Spool
	if s == nil {
		return nil
	}
	line := Line{span(plain, label("spool"))}
	if bars > 0 {
		line = append(append(line, bar(float64(s.Bytes), float64(s.Size), bars)...), span(plain, "  "))
	}
	line = append(line, span(plain, Bytes(float64(s.Bytes))+" of "+Bytes(float64(s.Size))))
	if s.Connections > 0 {
		line = append(line, span(plain, ", "+count(s.Connections, "connection")))
	}
	if s.Oldest != nil {
		line = append(line, span(plain, ", oldest "+Age(*s.Oldest, now)))
	}
	if s.Delivering > 0 {
		line = append(line, span(plain, fmt.Sprintf(", delivering %d", s.Delivering)))
	}
	line = append(line, span(plain, fmt.Sprintf(", delivered %d", s.Delivered)))
	if s.Dropped+s.Quarantined > 0 {
		line = append(line, span(warn, fmt.Sprintf(", dropped %d, quarantined %d", s.Dropped, s.Quarantined)))
	}
	lines := []Line{line}
	if s.Error != "" {
		lines = append(lines, Line{span(plain, label("")), span(bad, s.Error)})
	}
	return lines
}

// Progress says how far a stop is.
func Progress(st *status.Status, now time.Time) string {
	s := st.Shutdown
	if s == nil {
		return status.Clean(st.State) + ", not stopping yet"
	}
	line := fmt.Sprintf("%s: connections %d, spool %s", s.Phase, s.Connections, Bytes(float64(s.SpoolBytes)))
	if !s.Deadline.IsZero() {
		line += ", " + Duration(s.Deadline.Sub(now)+time.Second-1) + " left" // rounded up: 0 s is over
	}
	return status.Clean(line)
}

func shutdown(st *status.Status, now time.Time) Line {
	if st.Shutdown == nil {
		return nil
	}
	line := Line{span(plain, label("stopping")), span(warn, Progress(st, now))}
	if st.Shutdown.Reason != "" {
		line = append(line, span(dim, "  ("+st.Shutdown.Reason+")"))
	}
	return line
}
