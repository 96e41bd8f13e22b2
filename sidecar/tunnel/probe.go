package tunnel

import (
	"context"
	"time"

	"fairlead/shared/logging"
)

// report takes how an attempt or a probe went, and tells of a change of health.
func (p *Pool) report(e *endpoint, err error, now time.Time) {
	if !p.ends.report(e, err, now) {
		return
	}
	if err == nil {
		p.log.Info("endpoint is healthy", logging.FieldEndpoint, e.url)
	} else {
		p.log.Warn("endpoint is failing", append([]any{logging.FieldEndpoint, e.url}, logging.Error(err)...)...)
	}
	p.changed()
}

// probe asks the endpoints that carry no tunnel whether they are there, when it is time to.
func (p *Pool) probe(ctx context.Context, now time.Time) {
	cfg := p.config()
	carrying := map[*endpoint]bool{}
	for _, s := range p.list() {
		if s.usable() != nil {
			carrying[s.homeNow()] = true
		}
	}
	for _, e := range p.ends.due(now, cfg.Probe, carrying) {
		p.tasks.Go(func() {
			defer p.ends.probed(e)
			ctx, cancel := context.WithTimeout(ctx, min(probeTimeout, max(cfg.ConnectTimeout, time.Second)))
			defer cancel()
			err := cfg.Dialer.Probe(ctx, e.url)
			if p.ctx.Err() == nil {
				p.report(e, err, time.Now())
			}
		})
	}
}
