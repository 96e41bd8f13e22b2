package breaker

import (
	"time"

	"github.com/afex/hystrix-go/hystrix"

	"fairlead/shared/logging"
)

// How long tripLocked waits for hystrix to take notice, and how often it looks.
const (
	tripWithin = time.Second
	tripPoll   = 50 * time.Microsecond
)

// tripLocked opens the circuit: it reports one failure while the settings make any failure open it. hystrix counts on a
// goroutine of its own, hence the waiting, which takes some microseconds.
func (c *circuit) tripLocked() {
	h, _, err := hystrix.GetCircuit(c.name)
	if err != nil {
		c.log.Error("the circuit cannot be opened", logging.FieldError, err.Error())
		return
	}
	c.settings(true)
	defer c.settings(false)
	if err := h.ReportEvent([]string{"failure"}, time.Now(), 0); err != nil {
		c.log.Error("the circuit cannot be opened", logging.FieldError, err.Error())
		return
	}
	// IsOpen is also what opens it, once it sees the failure.
	for deadline := time.Now().Add(tripWithin); !h.IsOpen(); time.Sleep(tripPoll) {
		if time.Now().After(deadline) {
			c.log.Error("the circuit did not open; the next failure tries again")
			return
		}
	}
	c.open, c.again, c.since = true, false, time.Now()
	c.opened.Inc()
	c.log.Warn("the backend failed repeatedly and is left alone", logging.FieldState, string(Open),
		logging.FieldAttempt, c.consecutive, logging.FieldDelayMS, c.retryAfter.Milliseconds())
}

// closeLocked closes the circuit, at once also for hystrix.
func (c *circuit) closeLocked(reason string) {
	h, _, err := hystrix.GetCircuit(c.name)
	if err == nil {
		// An error means that the statistics were full; the circuit closes before they are looked at.
		_ = h.ReportEvent([]string{"success"}, time.Now(), 0)
	}
	c.open, c.probing, c.again, c.consecutive = false, false, false, 0
	c.log.Info("the backend is used again", logging.FieldState, string(Closed), logging.FieldReason, reason)
}

func (c *circuit) setMode(mode Mode) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mode == mode {
		return
	}
	c.mode = mode
	c.epoch++
	c.log.Warn("an operator changed what the breaker does", logging.FieldState, string(mode))
	if c.open {
		c.closeLocked("operator")
	}
	c.consecutive, c.probing, c.again = 0, false, false
}
