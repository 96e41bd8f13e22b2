package view

import (
	"math"
	"time"

	"fairlead/sidecar/status"
)

// summaryEvents is how many events a summary has.
const summaryEvents = 5

// Summary is a sidecar's status in full: what `status` prints. Nothing is cut.
func Summary(st *status.Status, now time.Time) []Line {
	const uncut = math.MaxInt32
	lines := []Line{title(st, now), health(st, now)}
	lines = addIf(lines, whyNot(st), shutdown(st, now))
	lines = append(append(lines, rates(st), heartbeat(st)), queue(st, 0)...)
	lines = append(lines, spool(st, 0, now)...)
	for _, s := range []section{tunnels(st, now), endpoints(st, now), listeners(st), events(st, summaryEvents, now)} {
		if len(s.rows) > 0 {
			lines = append(append(lines, nil), s.lines(uncut, uncut)...)
		}
	}
	return lines
}

func rates(st *status.Status) Line {
	return text(label("rates") + "sent " + Bytes(st.Rates.Sent) + "/s, received " + Bytes(st.Rates.Received) + "/s")
}

func addIf(lines []Line, more ...Line) []Line {
	for _, l := range more {
		if len(l) > 0 {
			lines = append(lines, l)
		}
	}
	return lines
}
