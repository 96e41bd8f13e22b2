package tunnel

import (
	"math/rand/v2"
	"time"
)

// Backoff is how reconnecting waits: full jitter over an exponentially growing bound (AWS Architecture Blog, "Exponential
// Backoff And Jitter").
type Backoff struct {
	Base        time.Duration
	Cap         time.Duration
	MaxAttempts int // failed attempts in a row after which it gives up; 0: never
}

// eagerCap bounds the wait while somebody waits for the tunnel: connections in the queue, or streams to be resumed. Waiting
// up to the full cap after the network has returned would be the outage that the user feels.
const eagerCap = 4 * time.Second

// mostTold bounds the delay that a server asks for: whoever answers in its place must not be able to switch a sidecar off.
const mostTold = 5 * time.Minute

// retry counts the failed attempts of one slot.
type retry struct {
	b        Backoff
	failures int           // steps of the backoff, of which eager attempts take several
	owed     time.Duration // rest of the current step
	float    func() float64
}

func newRetry(b Backoff) *retry { return &retry{b: b, float: rand.Float64} }

// next returns how long to wait after a failed attempt, and whether all attempts are used up. told is the delay that a server
// asked for; it wins. An eager wait takes only part of a step, so that eagerness does not use up the attempts.
func (r *retry) next(eager bool, told time.Duration) (wait time.Duration, spent bool) {
	if r.owed <= 0 {
		r.failures++
		r.owed = time.Duration(r.float() * float64(r.bound()))
	}
	spent = r.b.MaxAttempts > 0 && r.failures >= r.b.MaxAttempts
	wait = r.owed
	if eager && wait > eagerCap {
		wait = time.Duration(r.float() * float64(eagerCap))
	}
	r.owed -= wait
	if told > 0 {
		wait = min(told, mostTold)
	}
	return wait, spent
}

// first is how long to wait after the loss of a lane that had been stable, which is no failed attempt.
func (r *retry) first() time.Duration { return time.Duration(r.float() * float64(r.b.Base)) }

// bound is base × 2^(failures-1), up to the cap.
func (r *retry) bound() time.Duration {
	d := r.b.Base
	for i := 1; i < r.failures && d < r.b.Cap; i++ {
		d *= 2
	}
	return min(d, r.b.Cap)
}

func (r *retry) reset() { r.failures, r.owed = 0, 0 }
