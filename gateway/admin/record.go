package admin

import (
	"encoding/json"
	"fmt"
	"time"

	"fairlead/gateway/audit"
	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// event is what the audit log gets of a request.
func (c *call) event(result audit.Result) audit.Event {
	return audit.Event{Action: audit.Administer, Result: result, Actor: c.caller.name, Client: c.addr.String(), Target: c.target(), Trace: c.id}
}

// recordChange records a change before it takes effect. What cannot be recorded does not happen, unless it only takes
// something away: a full disk must not keep an operator from locking somebody out.
func (a *api) recordChange(c *call, in input) error {
	e := c.event(audit.Allowed)
	if c.route.body != nil {
		raw, _ := json.Marshal(in.body) // cannot fail: texts and times
		e.Detail = string(raw)
	}
	if err := a.record(e); err != nil {
		if !c.route.closes {
			return err
		}
		a.cfg.Logger.Error("a change is made that could not be recorded", append(logging.Error(err), "actor", c.caller.name, "request", c.target())...)
	}
	c.acted = true
	return nil
}

// recordRefusal records that something was not done.
func (a *api) recordRefusal(c *call, muted int) {
	e := c.event(audit.Refused)
	if c.acted {
		e.Result = audit.Failed
	}
	e.Code, e.Detail, e.Duration = errs.CodeOf(c.err), errs.From(c.err).Message, time.Since(c.start)
	if muted > 0 {
		e.Detail += fmt.Sprintf(" (%d refusals of this address before it were not recorded)", muted)
	}
	if err := a.record(e); err != nil {
		a.cfg.Logger.Error("a refusal could not be recorded", logging.Error(err)...) // it is refused all the same
	}
}

func (a *api) record(e audit.Event) error {
	if a.cfg.Audit == nil {
		return nil
	}
	return a.cfg.Audit.Record(e)
}
