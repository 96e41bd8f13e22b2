package auth

import (
	"fmt"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
)

// counts are the package's metrics.
type counts struct {
	set      *metrics.Set
	hits     *metrics.Counter
	ok       *metrics.Counter
	refused  map[errs.Code]*metrics.Counter
	anything *metrics.Counter // refusals by other codes
}

func newCounts(set *metrics.Set) *counts {
	if set == nil {
		set = metrics.NewSet()
	}
	checks := func(outcome string) *metrics.Counter {
		return set.GetOrCreateCounter(fmt.Sprintf("fairlead_gateway_token_checks_total{outcome=%q}", outcome))
	}
	return &counts{
		set:  set,
		hits: set.GetOrCreateCounter("fairlead_gateway_token_cache_hits_total"),
		ok:   checks("ok"),
		refused: map[errs.Code]*metrics.Counter{
			errs.TokenMissing:    checks("missing"),
			errs.TokenInvalid:    checks("invalid"),
			errs.TokenExpired:    checks("expired"),
			errs.TokenNotYet:     checks("not_yet"),
			errs.KeysUnavailable: checks("no_keys"),
		},
		anything: checks("other"),
	}
}

func (c *counts) outcome(err error) {
	if err == nil {
		c.ok.Inc()
		return
	}
	if counter, ok := c.refused[errs.CodeOf(err)]; ok {
		counter.Inc()
		return
	}
	c.anything.Inc()
}

// issuerCounts are the metrics of one key set behind a URL.
type issuerCounts struct {
	fetched, failed *metrics.Counter
	keys            *metrics.Gauge // keys in use
	at              *metrics.Gauge // when they were last fetched, in seconds since 1970
}

// forIssuer makes the metrics of an issuer whose name newIssuer has checked: printable ASCII, so that %q escapes it as
// the text format wants it.
func (c *counts) forIssuer(name string) *issuerCounts {
	return &issuerCounts{
		fetched: c.set.GetOrCreateCounter(fmt.Sprintf("fairlead_gateway_jwks_fetches_total{issuer=%q,outcome=\"ok\"}", name)),
		failed:  c.set.GetOrCreateCounter(fmt.Sprintf("fairlead_gateway_jwks_fetches_total{issuer=%q,outcome=\"failed\"}", name)),
		keys:    c.set.GetOrCreateGauge(fmt.Sprintf("fairlead_gateway_jwks_keys{issuer=%q}", name), nil),
		at:      c.set.GetOrCreateGauge(fmt.Sprintf("fairlead_gateway_jwks_fetched_timestamp_seconds{issuer=%q}", name), nil),
	}
}
