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

			errs.TokenRevoked:      checks("revoked"),
			errs.ClientCertRefused: checks("certificate"),
			errs.ReviewUnavailable: checks("no_review"),
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

// issuerCounts are the metrics of one key set that is fetched.
type issuerCounts struct {
	fetched, failed *metrics.Counter
	keys            *metrics.Gauge // keys in use
	at              *metrics.Gauge // when they were last fetched, in seconds since 1970
}

// Names of the metrics that an issuer has; issuers' names are checked by newIssuer: printable ASCII, so that %q escapes
// them as the text format wants it.
const (
	fetchesName  = "fairlead_gateway_jwks_fetches_total{issuer=%q,outcome=%q}"
	keysName     = "fairlead_gateway_jwks_keys{issuer=%q}"
	keysTimeName = "fairlead_gateway_jwks_fetched_timestamp_seconds{issuer=%q}"
	reviewsName  = "fairlead_gateway_token_reviews_total{issuer=%q,outcome=%q}"
)

func (c *counts) forIssuer(name string) *issuerCounts {
	return &issuerCounts{
		fetched: c.set.GetOrCreateCounter(fmt.Sprintf(fetchesName, name, "ok")),
		failed:  c.set.GetOrCreateCounter(fmt.Sprintf(fetchesName, name, "failed")),
		keys:    c.set.GetOrCreateGauge(fmt.Sprintf(keysName, name), nil),
		at:      c.set.GetOrCreateGauge(fmt.Sprintf(keysTimeName, name), nil),
	}
}

// reviewCounts are the metrics of the reviews of one issuer's tokens, by their outcome.
type reviewCounts struct {
	good, refused *metrics.Counter
	failed        *metrics.Counter // the cluster could not be asked
	grace         *metrics.Counter // tokens that lived on meanwhile
}

func (c *counts) forReviews(name string) *reviewCounts {
	outcome := func(o string) *metrics.Counter { return c.set.GetOrCreateCounter(fmt.Sprintf(reviewsName, name, o)) }
	return &reviewCounts{good: outcome("ok"), refused: outcome("refused"), failed: outcome("failed"), grace: outcome("grace")}
}

// forget drops the gauges of an issuer that is gone. Its counters stay: they say what happened.
func (c *counts) forget(name string) {
	c.set.UnregisterMetric(fmt.Sprintf(keysName, name))
	c.set.UnregisterMetric(fmt.Sprintf(keysTimeName, name))
}
