package breaker

import (
	"fmt"
	"time"

	"github.com/afex/hystrix-go/hystrix"

	"fairlead/shared/logging"
)

// How long tripLocked waits for hystrix to take notice, and how often it looks.
const (
	tripWithin = time.Second
	tripPoll   = 50 * time.Microsecond
)

// hystrixCalls is how many calls hystrix allows at a time. Only one at a time asks it, but its ticket comes back a moment
// after the call has ended.
const hystrixCalls = 16

// settings of the hystrix circuit: ones that never open it, or ones that open it as soon as hystrix looks. A rate of
// errors is never over 100 % and never under -1 %; a plain small percentage would not do, since it is measured over ten
// seconds that may hold thousands of successes.
func (c *circuit) settings(opening bool) {
	percent := 101
	if opening {
		percent = -1
	}
	hystrix.ConfigureCommand(c.name, hystrix.CommandConfig{
		Timeout:                int((24 * time.Hour).Milliseconds()), // fn bounds itself; hystrix would leave it running
		MaxConcurrentRequests:  hystrixCalls,
		RequestVolumeThreshold: 1,
		SleepWindow:            int(c.retryAfter.Milliseconds()),
		ErrorPercentThreshold:  percent,
	})
}

// tripLocked opens the circuit. While it is open this package refuses calls by itself, and asks hystrix only who may be the
// probe; so it is open also if hystrix has not followed, which then lets the first one that asks be the probe.
func (c *circuit) tripLocked() {
	if err := c.tripHystrixLocked(); err != nil {
		c.log.Error("the breaker opens without hystrix", logging.FieldError, err.Error())
	}
	c.open, c.again, c.since = true, false, time.Now()
	c.openedAt = c.since
	c.opened.Inc()
	c.counts.Opened++
	c.log.Warn("the backend failed repeatedly and is left alone", logging.FieldState, string(Open), logging.FieldAttempt, c.consecutive,
		logging.FieldCode, c.lastFailure.Code.String(), logging.FieldDelayMS, c.retryAfter.Milliseconds())
}

// tripHystrixLocked opens hystrix's circuit: it reports one failure while the settings make any failure open it. hystrix
// counts on a goroutine of its own, hence the waiting, which takes some microseconds.
func (c *circuit) tripHystrixLocked() error {
	h, _, err := hystrix.GetCircuit(c.name)
	if err != nil {
		return err
	}
	c.settings(true)
	defer c.settings(false)
	if err := h.ReportEvent([]string{"failure"}, time.Now(), 0); err != nil {
		return err
	}
	// IsOpen is also what opens it, once it sees the failure.
	for deadline := time.Now().Add(tripWithin); !h.IsOpen(); time.Sleep(tripPoll) {
		if time.Now().After(deadline) {
			return fmt.Errorf("it has not opened its circuit after %s", tripWithin)
		}
	}
	return nil
}

// closeLocked closes the circuit, at once also for hystrix.
func (c *circuit) closeLocked() {
	h, _, err := hystrix.GetCircuit(c.name)
	if err == nil {
		// An error means that the statistics were full; the circuit closes before they are looked at.
		_ = h.ReportEvent([]string{"success"}, time.Now(), 0)
	}
	c.open, c.asking, c.probing, c.again, c.consecutive = false, false, false, false, 0
	c.openedAt = time.Time{}
}

func (c *circuit) setMode(mode Mode, by string) {
	c.mu.Lock()
	if c.mode == mode {
		c.mu.Unlock()
		return
	}
	before := c.stateLocked(time.Now())
	c.mode = mode
	c.epoch++
	if c.open {
		c.closeLocked()
	}
	c.consecutive, c.asking, c.probing, c.again = 0, false, false, false
	c.shareLocked(by)
	c.changedLocked(before, c.stateLocked(time.Now()), ReasonOperator, by)
	c.mu.Unlock()
	c.breaker.watchers.Tell(c.backend)
}

// forget makes whatever still runs here count for nothing, and leaves hystrix's circuit, which cannot be removed, closed
// for a later circuit of the same name.
func (c *circuit) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forgotten = true
	c.epoch++
	if c.open {
		c.closeLocked()
	}
}
