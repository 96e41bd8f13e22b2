package admin_test

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"fairlead/gateway/admin"
	"fairlead/gateway/audit"
	"fairlead/shared/errs"
)

func limited(t *testing.T, requests, failures int) *api {
	tokens := withTokens(t)
	return serve(t, func(c *admin.Config) {
		tokens(c)
		c.RequestsPerMinute, c.FailuresPerMinute = requests, failures
	})
}

func TestRequestsOfACallerAreLimited(t *testing.T) {
	a := serve(t, func(c *admin.Config) { c.RequestsPerMinute = 60 })
	for i := range 60 {
		got := a.send(a.request("GET", "/api/tunnels", ""))
		assert.Equal(t, 200, got.StatusCode)
		assert.Equal(t, []string{"60", strconv.Itoa(59 - i)}, []string{got.Header.Get("X-RateLimit-Limit"), got.Header.Get("X-RateLimit-Remaining")})
	}
	got := a.send(a.request("POST", "/api/drain", ""))
	assert.Equal(t, http.StatusTooManyRequests, got.StatusCode)
	e := got.error(t)
	assert.Equal(t, errs.RequestLimit.String(), e.Code)
	assert.Equal(t, &errs.Quota{Limit: 60, Remaining: 0, ResetMS: 60_000}, e.Quota)
	assert.Equal(t, []string{"1", "60", "0", "60"}, []string{got.Header.Get("Retry-After"), got.Header.Get("X-RateLimit-Limit"), got.Header.Get("X-RateLimit-Remaining"), got.Header.Get("X-RateLimit-Reset")})
	assert.Equal(t, []string{"audit refused"}, a.effects(), "nothing drains")
	assert.Equal(t, 200, a.send(a.request("GET", "/healthz", "")).StatusCode, "probes are not limited")
	a.pass(time.Second)
	assert.Equal(t, 200, a.send(a.request("GET", "/api/tunnels", "")).StatusCode)
	assert.Equal(t, 429, a.send(a.request("GET", "/api/tunnels", "")).StatusCode)
}

// Two callers at one address share what the address may; each has a limit of its own besides.
func TestAddressesAreLimitedToo(t *testing.T) {
	a := limited(t, 10, 5)
	for i := range 10 {
		assert.Equal(t, 200, a.send(a.request("GET", "/api/tunnels", "", as([]string{operatorToken, viewerToken}[i%2])...)).StatusCode)
	}
	got := a.send(a.request("GET", "/api/tunnels", "", as(operatorToken)...))
	assert.Equal(t, 429, got.StatusCode)
	assert.Contains(t, got.message(t), "requests from 127.0.0.1/32")
	a.pass(time.Minute)
	assert.Equal(t, 200, a.send(a.request("GET", "/api/tunnels", "", as(operatorToken)...)).StatusCode)
}

// After some wrong tokens it is not even looked at whether the next one is right.
func TestGuessingIsLimited(t *testing.T) {
	a := limited(t, 1000, 5)
	wrong := as("wrong-wrong-wrong-wrong")
	for range 5 {
		assert.Equal(t, 401, a.send(a.request("GET", "/api/tunnels", "", wrong...)).StatusCode)
	}
	for range 3 {
		assert.Equal(t, 429, a.send(a.request("GET", "/api/tunnels", "", wrong...)).StatusCode)
		got := a.send(a.request("GET", "/api/tunnels", "", as(operatorToken)...))
		assert.Equal(t, 429, got.StatusCode)
		assert.Equal(t, "12", got.Header.Get("Retry-After"))
		assert.Contains(t, got.message(t), "wrong tokens")
	}
	a.pass(12 * time.Second)
	assert.Equal(t, 200, a.send(a.request("GET", "/api/tunnels", "", as(operatorToken)...)).StatusCode)
	assert.Equal(t, 401, a.send(a.request("GET", "/api/tunnels", "", wrong...)).StatusCode)
	assert.Equal(t, 429, a.send(a.request("GET", "/api/tunnels", "", wrong...)).StatusCode)
}

// Guesses that come at once are paid for afterwards.
func TestGuessesAtOnceArePaidFor(t *testing.T) {
	a := limited(t, 1000, 5)
	var guesses sync.WaitGroup
	var mu sync.Mutex
	looked := 0
	for range 40 {
		guesses.Go(func() {
			if got := a.send(a.request("GET", "/api/tunnels", "", as("wrong-wrong-wrong-wrong")...)); got.StatusCode == 401 {
				mu.Lock()
				defer mu.Unlock()
				looked++
			}
		})
	}
	guesses.Wait()
	for minutes := 1; ; minutes++ {
		a.pass(time.Minute)
		if a.send(a.request("GET", "/api/tunnels", "", as("wrong-wrong-wrong-wrong")...)).StatusCode == 401 {
			assert.LessOrEqual(t, looked, 5*(minutes+1), "never more than five in a minute, in the long run")
			return
		}
	}
}

func TestRequestsWithoutATokenAreNoGuesses(t *testing.T) {
	a := limited(t, 1000, 2)
	for range 10 {
		assert.Equal(t, 401, a.send(a.request("GET", "/api/tunnels", "")).StatusCode)
	}
	assert.Equal(t, 200, a.send(a.request("GET", "/api/tunnels", "", as(viewerToken)...)).StatusCode)
}

// A flood fills neither the log nor the audit log, and it shows how large it was.
func TestFloodsAreRecordedInShort(t *testing.T) {
	a := limited(t, 20, 5)
	for range 500 {
		a.send(a.request("GET", "/api/tunnels", ""))
	}
	assert.Len(t, a.taken(), 60)
	assert.Equal(t, 60, strings.Count(a.log.String(), "admin request refused"))
	a.pass(time.Minute)
	a.send(a.request("GET", "/api/tunnels", ""))
	events := a.taken()
	assert.Len(t, events, 1)
	assert.Equal(t, []any{audit.Refused, errs.AdminDenied}, []any{events[0].Result, events[0].Code})
	assert.Contains(t, events[0].Detail, "(440 refusals of this address before it were not recorded)")
	var text strings.Builder
	a.cfg.Registry.WritePrometheus(&text)
	assert.Contains(t, text.String(), `fairlead_gateway_admin_requests_total{role="anyone",status="429"} 480`)
	assert.Contains(t, text.String(), `fairlead_gateway_admin_requests_total{role="anyone",status="401"} 21`)
}
