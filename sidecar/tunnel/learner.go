package tunnel

import "time"

// learner finds the heartbeat that a path needs. A middlebox that cuts idle connections shows by lanes that are lost after
// the same time without traffic, and are resumed at once.
type learner struct {
	interval time.Duration // learned; 0: nothing is, the configured one holds
	cut      time.Duration // idle time at which the path cuts; with interval
	suspect  time.Duration // idle time of one cut, which a second one must confirm; 0: none
	trial    time.Duration // longer interval that is being tried; 0: none
	tried    time.Time     // when that began
	next     time.Time     // of the next trial
	rest     time.Duration // between the last trial and the next
}

const (
	leastHeartbeat = time.Second
	leastCut       = 1500 * time.Millisecond // less is no idle limit that anybody configures
	firstTrial     = 6 * time.Hour
	lastTrial      = 7 * 24 * time.Hour
	provingBeats   = 5 // heartbeats that a trial must outlive
)

// similar says whether two idle times can be of the same limit: timers of middleboxes are coarse.
func similar(a, b time.Duration) bool {
	return (a - b).Abs() <= max(a, b)/8+500*time.Millisecond
}

// lost takes a cut: a lane was lost after having been quiet for that long, and could be resumed at once. It says whether the
// interval has changed.
func (l *learner) lost(quiet time.Duration, now time.Time) bool {
	if quiet < leastCut {
		return false
	}
	if l.trial > 0 && quiet > l.interval { // the limit is still there
		l.trial, l.rest = 0, min(2*l.rest, lastTrial)
		l.next = now.Add(l.rest)
		return true
	}
	if l.suspect == 0 || !similar(l.suspect, quiet) {
		l.suspect = quiet
		return false
	}
	l.cut = min(l.suspect, quiet)
	l.suspect, l.trial = 0, 0
	l.interval = max(l.cut*3/4, leastHeartbeat).Round(10 * time.Millisecond)
	l.rest = firstTrial
	l.next = now.Add(l.rest)
	return true
}

// look begins or ends a trial. survived is how quiet a lane on the path has been without being cut, configured what would hold
// if nothing were learned. It says whether the interval has changed.
func (l *learner) look(survived, configured time.Duration, now time.Time) bool {
	switch {
	case l.interval == 0:
		return false
	case l.interval >= configured: // the configuration has become stricter than the path
		return false
	case l.trial == 0 && now.After(l.next):
		l.trial, l.tried = min(max(l.cut, l.interval)*3/2, configured), now
		return true
	case l.trial > 0 && now.Sub(l.tried) > provingBeats*l.trial && survived >= l.trial*9/10:
		l.interval, l.cut, l.trial = l.trial, 0, 0
		l.next = now.Add(time.Minute)
		if l.interval >= configured {
			*l = learner{}
		}
		return true
	}
	return false
}

// now is the interval in force; 0: nothing is learned.
func (l *learner) now() time.Duration {
	if l.trial > 0 {
		return l.trial
	}
	return l.interval
}

// Beat is what was learned about a path, as it is remembered. Durations are in milliseconds.
type Beat struct {
	IntervalMS int64     `json:"interval_ms"`
	CutMS      int64     `json:"cut_ms"`
	RestMS     int64     `json:"rest_ms"`
	Next       time.Time `json:"next"` // trial of a longer interval
}

func (l *learner) saved() *Beat {
	if l.interval == 0 {
		return nil
	}
	return &Beat{IntervalMS: l.interval.Milliseconds(), CutMS: l.cut.Milliseconds(), RestMS: l.rest.Milliseconds(), Next: l.next}
}

// restore takes what was remembered, as far as it makes sense.
func (l *learner) restore(b *Beat, now time.Time) {
	if b == nil {
		return
	}
	within := func(ms int64, least, most time.Duration) time.Duration {
		if ms < least.Milliseconds() || ms > most.Milliseconds() {
			return 0
		}
		return time.Duration(ms) * time.Millisecond
	}
	interval := within(b.IntervalMS, leastHeartbeat, time.Hour)
	if interval == 0 {
		return
	}
	*l = learner{interval: interval, cut: within(b.CutMS, leastCut, time.Hour), rest: firstTrial, next: b.Next}
	if rest := within(b.RestMS, firstTrial, lastTrial); rest > 0 {
		l.rest = rest
	}
	if l.next.After(now.Add(lastTrial)) || l.next.IsZero() {
		l.next = now.Add(l.rest)
	}
}
