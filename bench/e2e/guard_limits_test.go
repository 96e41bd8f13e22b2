package e2e

import (
	"crypto/sha256"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fasthttp/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

func withTiers(tiers map[string]gatewayconfig.Tier) option {
	return withGateway(func(c *gatewayconfig.Config) { c.Tiers = tiers })
}

// quotaOf reads the headers about a limit.
func quotaOf(t *testing.T, h http.Header) (limit, remaining, reset int) {
	t.Helper()
	numbers := make([]int, 3)
	for i, name := range []string{"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"} {
		var err error
		numbers[i], err = strconv.Atoi(h.Get(name))
		require.NoError(t, err, "%s in %v", name, h)
	}
	return numbers[0], numbers[1], numbers[2]
}

// Verifies: R4.3
func TestGuardLimitsAreToldOnTheWire(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withoutSidecar(), withClaims(), withTarget("echo", newTarget(t, echoServer)),
		withTiers(map[string]gatewayconfig.Tier{gatewayconfig.DefaultTier: {OpensPerMinute: 2, Burst: 2}, "gold": {OpensPerMinute: 50, Burst: 50}}),
		withGateway(func(c *gatewayconfig.Config) {
			c.Limits.Exempt = []gatewayconfig.Exemption{{Tenants: []string{"probe"}, Limits: []string{"opens"}}}
		}))
	t.Run("plain streams", func(t *testing.T) {
		token := w.signed("plain", nil)
		for left := 1; left >= 0; left-- {
			_, granted, err := w.stream("echo", token)
			require.NoError(t, err)
			limit, remaining, reset := quotaOf(t, granted.Header)
			assert.Equal(t, []int{2, left}, []int{limit, remaining}, "of what is granted")
			assert.Positive(t, reset)
		}
		_, refused, err := w.stream("echo", token)
		require.ErrorIs(t, err, websocket.ErrBadHandshake)
		assert.Equal(t, http.StatusTooManyRequests, refused.StatusCode)
		limit, remaining, reset := quotaOf(t, refused.Header)
		assert.Equal(t, []int{2, 0}, []int{limit, remaining})
		after, err := strconv.Atoi(refused.Header.Get("Retry-After"))
		require.NoError(t, err)
		assert.True(t, 1 <= after && after <= reset && reset <= 60, "%d s until one more, %d s until all", after, reset)
		body := readAnswer(t, refused)
		assert.Equal(t, errs.OpenRate.String(), body.Code)
		require.NotNil(t, body.Quota)
		assert.EqualValues(t, 2, body.Quota.Limit)
	})
	t.Run("streams of a tunnel", func(t *testing.T) {
		tunnel, _ := w.connectLink(w.signed("tunnel", nil))
		for range 2 {
			_, err := openLink(t, tunnel, "echo")
			require.NoError(t, err)
		}
		_, err := openLink(t, tunnel, "echo")
		require.ErrorIs(t, err, errs.OpenRate)
		told := errs.From(err)
		require.NotNil(t, told.Quota, "the RESET carries it")
		assert.EqualValues(t, 2, told.Quota.Limit)
		assert.Zero(t, told.Quota.Remaining)
		assert.Positive(t, told.Quota.ResetMS)
		assert.Positive(t, told.RetryAfter)
	})
	t.Run("another tier", func(t *testing.T) {
		_, granted, err := w.stream("echo", w.signed("rich", testbed.Claims{"tier": "gold"}))
		require.NoError(t, err)
		limit, remaining, _ := quotaOf(t, granted.Header)
		assert.Equal(t, []int{50, 49}, []int{limit, remaining})
	})
	t.Run("exempt", func(t *testing.T) {
		for range 4 {
			_, granted, err := w.stream("echo", w.signed("probe", nil))
			require.NoError(t, err)
			assert.Empty(t, granted.Header.Get("X-RateLimit-Limit"))
		}
	})
}

// from asks for a stream of the route "echo", as a proxy in front that forwards for a client.
func (w *world) from(client, token string) (int, http.Header) {
	w.t.Helper()
	dialer := websocket.Dialer{TLSClientConfig: w.ca.ClientTLS(), HandshakeTimeout: patience}
	c, answer, err := dialer.DialContext(w.t.Context(), w.endpoint(w.gateway.address)+"v1/stream/echo",
		http.Header{"Authorization": {"Bearer " + token}, "X-Forwarded-For": {client}})
	if err == nil {
		require.NoError(w.t, c.Close())
	} else {
		require.ErrorIs(w.t, err, websocket.ErrBadHandshake)
	}
	return answer.StatusCode, answer.Header
}

// Verifies: R4.10
func TestGuardHandshakesAreLimitedByClientAddress(t *testing.T) {
	t.Parallel()
	limited := withGateway(func(c *gatewayconfig.Config) {
		c.Limits.HandshakesPerMinute, c.Limits.HandshakeBurst = 3, 2
		c.Limits.Exempt = []gatewayconfig.Exemption{{Addresses: []string{"203.0.113.64/26"}, Limits: []string{"handshakes"}}}
	})
	echo := newTarget(t, echoServer)
	t.Run("behind a proxy", func(t *testing.T) {
		w := newWorld(t, withoutSidecar(), limited, withTarget("echo", echo), withGateway(func(c *gatewayconfig.Config) { c.TrustedProxies = []string{"127.0.0.0/8"} }))
		token := w.token(ownTenant, time.Hour)
		for _, client := range []string{"203.0.113.1", "192.0.2.7, 203.0.113.1"} { // what a client adds in front counts for nothing
			status, _ := w.from(client, token)
			require.Equal(t, http.StatusSwitchingProtocols, status)
		}
		status, header := w.from("198.51.100.9, 203.0.113.1", token)
		assert.Equal(t, http.StatusTooManyRequests, status)
		limit, remaining, _ := quotaOf(t, header)
		assert.Equal(t, []int{2, 0}, []int{limit, remaining})
		assert.NotEmpty(t, header.Get("Retry-After"))
		status, _ = w.from("203.0.113.2", token)
		assert.Equal(t, http.StatusSwitchingProtocols, status, "another client of the same proxy")
		for range 4 {
			status, _ = w.from("203.0.113.65", token)
			assert.Equal(t, http.StatusSwitchingProtocols, status, "an exempt address")
		}
		refused := w.gateway.logs.wait(t, "authentication refused", "code", errs.HandshakeLimit.String())
		assert.Equal(t, "203.0.113.1", refused.str("peer"))
	})
	t.Run("without a proxy", func(t *testing.T) {
		w := newWorld(t, withoutSidecar(), limited, withTarget("echo", echo))
		token := w.token(ownTenant, time.Hour)
		var got []int
		for i := range 3 {
			status, _ := w.from("203.0.113."+strconv.Itoa(64+i), token) // nobody is trusted to say so
			got = append(got, status)
		}
		assert.Equal(t, []int{101, 101, 429}, got)
	})
}

// Two streams of a tenant share its bandwidth, and lose nothing by it; another tenant is not held up.
//
// Verifies: R4.3
func TestGuardBandwidthIsSharedAndConserved(t *testing.T) {
	t.Parallel()
	const size = 3 << 20
	w := newWorld(t, withClaims(), func(w *world) {
		w.afterwards = append(w.afterwards, func() { w.writeToken(w.signed("paced", nil)) })
	}, withTarget("source", newTarget(t, sourceServer(70, size))),
		withTiers(map[string]gatewayconfig.Tier{gatewayconfig.DefaultTier: {Bandwidth: 2 << 20}, "gold": {}}))
	type result struct {
		line string
		got  [2]int64 // what both streams had carried when this one was over
		took time.Duration
	}
	var counts [2]atomic.Int64
	results := make(chan result, 2)
	for i := range counts {
		c := w.dial("source")
		begin := time.Now()
		go func() {
			hash := sha256.New()
			n, _ := io.Copy(io.MultiWriter(hash, counter{&counts[i]}), c) // the digest tells
			results <- result{digestLine(hash.Sum(nil), n), [2]int64{counts[0].Load(), counts[1].Load()}, time.Since(begin)}
		}()
	}
	first, second := <-results, <-results
	assert.Equal(t, lineOfContent(70, size), first.line)
	assert.Equal(t, lineOfContent(70, size), second.line)
	assert.Greater(t, 3*min(first.got[0], first.got[1]), max(first.got[0], first.got[1]), "when one has all, the other has a third of that at least")

	begin := time.Now()
	free := w.mustStream("source", w.signed("free", testbed.Claims{"tier": "gold"}))
	got, _ := readStream(t, free)
	assert.Equal(t, lineOfContent(70, size), got)
	assert.Less(t, 2*time.Since(begin), second.took, "who has no such limit")
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}
