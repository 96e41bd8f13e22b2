package queue

import "time"

// pacer spaces what is released: a burst, then one per interval. It is the generic cell rate algorithm (ITU-T I.371), which
// needs no timer: full is when the burst would be complete again, had nobody else come.
type pacer struct {
	interval time.Duration // 0: none
	burst    time.Duration // by how much full may lie ahead
	full     time.Time
	learned  time.Duration // interval that a gateway asked for, without a burst; 0: none did
	hush     time.Time     // nothing before
}

// maxHold bounds how long a gateway can hold the queue with one refusal.
const maxHold = time.Minute

// limit sets the configured pace.
func (p *pacer) limit(rate, burst int) {
	p.interval, p.burst = 0, 0
	if rate > 0 {
		p.interval = time.Second / time.Duration(rate)
		p.burst = time.Duration(max(burst, 1)-1) * p.interval
	}
}

// delay is how long the next one has to wait.
func (p *pacer) delay(now time.Time) time.Duration {
	burst := p.burst
	if p.learned > 0 {
		burst = 0
	}
	return max(p.full.Add(-burst).Sub(now), p.hush.Sub(now), 0)
}

// take accounts for one that goes now.
func (p *pacer) take(now time.Time) {
	if p.full.Before(now) {
		p.full = now
	}
	p.full = p.full.Add(max(p.interval, p.learned))
}

// hold lets nobody go for d.
func (p *pacer) hold(now time.Time, d time.Duration) {
	if until := now.Add(min(d, maxHold)); until.After(p.hush) {
		p.hush = until
	}
}

// slow lets nobody go for d, and then one per every, until forget.
func (p *pacer) slow(now time.Time, d, every time.Duration) {
	p.hold(now, d)
	p.learned = max(p.learned, min(every, maxHold))
	p.full = p.hush
}

// forget drops what a gateway asked for. The burst has to be gained anew.
func (p *pacer) forget(now time.Time) {
	if p.learned > 0 {
		p.full = now.Add(p.burst)
	}
	p.learned, p.hush = 0, time.Time{}
}
