package view

import (
	"fmt"
	"strings"
	"time"

	"fairlead/sidecar/status"
)

// changeLog turns answers into lines, where something has changed.
type changeLog struct {
	last  string
	event time.Time // of the newest event that was written
}

func (c *changeLog) lines(a answer) []string {
	stamp := a.at.Format(time.RFC3339) + " "
	if a.err != nil {
		return c.changed(stamp, status.Clean("no answer: "+a.err.Error()))
	}
	var out []string
	first := c.event.IsZero() // what was before the watch began is not told
	for _, e := range a.st.Events {
		if !e.Time.After(c.event) {
			continue
		}
		c.event = e.Time
		if !first {
			out = append(out, e.Time.Format(time.RFC3339)+" "+status.Clean(fmt.Sprintf("tunnel %d %s: %s", e.Tunnel, e.State, what(e))))
		}
	}
	if first && c.event.IsZero() {
		c.event = a.st.Started
	}
	return append(out, c.changed(stamp, state(a.st, a.at))...)
}

func (c *changeLog) changed(stamp, line string) []string {
	if line == c.last {
		return nil
	}
	c.last = line
	return []string{stamp + line}
}

// state is what of a status is worth a line when it changes: not the figures that always do.
func state(st *status.Status, now time.Time) string {
	up := 0
	for _, t := range st.Tunnels {
		if t.State == "connected" {
			up++
		}
	}
	parts := []string{st.State, "ready", fmt.Sprintf("tunnels %d of %d", up, len(st.Tunnels)), "quality " + orDash(st.Quality)}
	if !st.Ready {
		parts[1] = "not ready: " + st.Why()
	}
	if st.Queue.Length > 0 {
		parts = append(parts, fmt.Sprintf("queue %d of %d", st.Queue.Length, st.Queue.Size))
	}
	if s := st.Spool; s != nil && s.Error != "" {
		parts = append(parts, "spool: "+s.Error)
	}
	if st.Shutdown != nil {
		parts = append(parts, Progress(st, now))
	}
	return status.Clean(strings.Join(parts, ", "))
}
