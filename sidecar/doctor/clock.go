package doctor

import (
	"context"
	"time"
)

// mostSkew is from when on two clocks count as apart. The Date header has whole seconds.
const mostSkew = 30 * time.Second

// clock compares our clock with that of whoever answers. Where its certificate is not accepted its word is taken all the
// same, since our clock may be why; nothing secret is sent.
func (p *path) clock() {
	insecure := p.attempt.tlsErr != nil
	if insecure && !p.attempt.tlsDone {
		p.r.skip(HopClock, p.target, HopTLS)
		return
	}
	p.r.probe(HopClock, p.target, func(ctx context.Context, res *Result) error {
		a := p.ask(ctx, question{path: "healthz", insecure: insecure})
		switch {
		case a.err != nil && p.r.over():
			return a.err
		case a.err != nil:
			res.Status = Skipped
			res.say("not known: %s", clip(a.err.Error(), 160))
			return nil
		case a.date.IsZero():
			res.Status = Skipped
			res.say("not known: the answer %q has no Date", a.text)
			return nil
		}
		skew := a.at.Sub(a.date).Truncate(time.Second)
		res.Data["skew_s"], res.Data["date"] = skew.Seconds(), a.date.UTC().Format(time.RFC3339)
		direction := "ahead of"
		if skew < 0 {
			direction = "behind"
		}
		if skew.Abs() > mostSkew {
			res.warn("Set this machine's clock by NTP, or the other one: certificates and tokens are judged by it.", "this machine's clock is %s %s that of who answers", rough(skew), direction)
		} else {
			res.say("less than %s apart", rough(skew.Abs()+time.Second))
		}
		if insecure {
			res.say("who answers is not verified")
		}
		return nil
	})
}
