package auth

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func TestDeletedPodsTokenEndsWithinTheReviewsTime(t *testing.T) {
	clock := newClock()
	c := newCluster(t, clock)
	v, log := newLoggedVerifier(t, clock, nil, c.issuer(true))
	token := c.sign(c.claims("payments", "api"))
	verify := func() error { _, err := v.Verify(t.Context(), token); return err }

	id, err := v.Verify(t.Context(), token)
	require.NoError(t, err)
	c.do(func() { require.Equal(t, []string{testAudience}, c.last.Spec.Audiences) })
	for range 3 {
		require.NoError(t, verify())
		require.NoError(t, v.Check(t.Context(), id))
	}
	require.Equal(t, 1, c.asked(), "an answer counts for a while")

	c.do(func() { c.gone["uid-of-api"] = true })
	clock.move(9 * time.Second)
	require.NoError(t, verify())
	clock.move(time.Second)
	requireRefused(t, v.Check(t.Context(), id), errs.TokenRevoked, "no longer accepts the token", token)
	requireRefused(t, verify(), errs.TokenRevoked, "no longer accepts the token", token)
	require.Equal(t, 2, c.asked(), "a refusal counts for a while too")
	code, _ := errs.CloseFrame(verify())
	require.Equal(t, errs.CloseInvalid, code)

	// Another pod of the same account is not concerned.
	other := c.sign(c.claims("payments", "web"))
	_, err = v.Verify(t.Context(), other)
	require.NoError(t, err)

	// A token whose signature is wrong is no question to the cluster.
	asked := c.asked()
	forged := sign(t, jwt.SigningMethodES256, "c1", ecKey(t), c.claims("payments", "api"))
	_, err = v.Verify(t.Context(), forged)
	requireRefused(t, err, errs.TokenInvalid, "signature is not by a key", forged)
	require.Equal(t, asked, c.asked())
	for _, secret := range []string{token, other, c.own} {
		require.NotContains(t, log.String(), secret[:40])
	}
}

func TestCredentialsShowNothing(t *testing.T) {
	clock := newClock()
	c := newCluster(t, clock)
	v := newVerifier(t, clock, c.issuer(true))
	token := c.sign(c.claims("payments", "api"))
	id, err := v.Verify(t.Context(), token)
	require.NoError(t, err)
	require.NotNil(t, id.Credential)
	asJSON, err := json.Marshal(id)
	require.NoError(t, err)
	for _, shown := range []string{string(asJSON), fmt.Sprintf("%v %+v %#v %s %q %x", id, id, id, id.Credential, id.Credential, id.Credential), fmt.Sprintf("%#v", id.Credential)} {
		for _, part := range strings.Split(token, ".") {
			require.NotContains(t, shown, part[:12])
		}
	}
	require.Contains(t, string(asJSON), hidden)
}

func TestClusterDoesNotConfirm(t *testing.T) {
	status := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusCreated)
			_, _ = w.Write([]byte(`{"kind":"TokenReview","apiVersion":"authentication.k8s.io/v1","status":` + s + `}`))
		}
	}
	code := func(n int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(n) }
	}
	text := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(s)) }
	}
	cases := map[string]struct {
		answer   http.HandlerFunc
		code     errs.Code
		sentence string
	}{
		"not authenticated":   {status(`{"authenticated":false,"user":{},"error":"[invalid bearer token, SECRET]"}`), errs.TokenRevoked, "no longer accepts"},
		"wrong audience":      {status(`{"authenticated":true,"audiences":["vault"],"user":{"username":"system:serviceaccount:payments:api"}}`), errs.TokenInvalid, "does not confirm"},
		"no audiences":        {status(`{"authenticated":true,"user":{"username":"system:serviceaccount:payments:api"}}`), errs.TokenInvalid, "does not confirm"},
		"another user":        {status(`{"authenticated":true,"audiences":["fairlead"],"user":{"username":"system:serviceaccount:payments:admin"}}`), errs.TokenInvalid, "another user"},
		"no rights":           {code(403), errs.ReviewUnavailable, "lacks the right to POST /apis/authentication.k8s.io/v1/tokenreviews"},
		"not logged in":       {code(401), errs.ReviewUnavailable, "does not accept the gateway's own token"},
		"broken":              {code(500), errs.ReviewUnavailable, "answered 500"},
		"overloaded":          {code(429), errs.ReviewUnavailable, "answered 429"},
		"a page":              {text("<html>"), errs.ReviewUnavailable, "something else than a TokenReview"},
		"nothing":             {text(""), errs.ReviewUnavailable, "something else than a TokenReview"},
		"its own question":    {text(`{"kind":"TokenReview","spec":{}}`), errs.ReviewUnavailable, "something else than a TokenReview"},
		"another kind":        {text(`{"kind":"SubjectAccessReview","status":{"authenticated":true}}`), errs.ReviewUnavailable, "something else than a TokenReview"},
		"endless":             {text(strings.Repeat(" ", maxKeyFile+1)), errs.ReviewUnavailable, "larger than"},
		"cut off in the body": {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "100") }, errs.ReviewUnavailable, "EOF"},
	}
	for name, each := range cases {
		t.Run(name, func(t *testing.T) {
			clock := newClock()
			c := newCluster(t, clock)
			v, log := newLoggedVerifier(t, clock, nil, c.issuer(true))
			token := c.sign(c.claims("payments", "api"))
			require.Eventually(t, func() bool { return v.Ready() == nil }, 5*time.Second, time.Millisecond)
			c.do(func() { c.override = each.answer })
			_, err := v.Verify(t.Context(), token)
			requireRefused(t, err, each.code, each.sentence, token)
			require.NotContains(t, err.Error()+log.String(), "SECRET")
			if each.code == errs.ReviewUnavailable {
				status, _ := errs.HTTP(err)
				require.Equal(t, 503, status)
				require.Positive(t, errs.From(err).RetryAfter)
				require.Contains(t, v.Status()[0].Review.Error, each.sentence)
			}
			c.do(func() { c.override = nil })
			clock.move(10 * time.Second)
			_, err = v.Verify(t.Context(), token)
			require.NoError(t, err, "the next answer counts")
			require.Empty(t, v.Status()[0].Review.Error)
		})
	}
}

func TestTunnelsOutlastAClusterThatCannotBeAsked(t *testing.T) {
	clock := newClock()
	c := newCluster(t, clock)
	v, log := newLoggedVerifier(t, clock, nil, c.issuer(true))
	token := c.sign(c.claims("payments", "api"))
	id, err := v.Verify(t.Context(), token)
	require.NoError(t, err)

	c.do(func() {
		c.override = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }
	})
	clock.move(4 * time.Minute)
	for range 5 {
		require.NoError(t, v.Check(t.Context(), id))
		_, err = v.Verify(t.Context(), token)
		require.NoError(t, err, "a sidecar that reconnects comes back")
	}
	require.Equal(t, 2, c.asked(), "a cluster that fails is left alone for a second")
	_, err = v.Verify(t.Context(), c.sign(c.claims("payments", "web")))
	require.ErrorIs(t, err, errs.ReviewUnavailable, "new ones are refused")
	require.Equal(t, 1, strings.Count(log.String(), "the cluster cannot be asked"), "said once")

	clock.move(time.Minute)
	require.ErrorIs(t, v.Check(t.Context(), id), errs.ReviewUnavailable)
	_, err = v.Verify(t.Context(), token)
	require.ErrorIs(t, err, errs.ReviewUnavailable)

	c.do(func() { c.override = nil })
	clock.move(reviewPause)
	require.NoError(t, v.Check(t.Context(), id))
	require.Contains(t, log.String(), "the cluster answers about tokens again")

	// What was refused does not live on by an older good answer.
	c.do(func() { c.gone["uid-of-api"] = true })
	clock.move(time.Minute)
	require.ErrorIs(t, v.Check(t.Context(), id), errs.TokenRevoked)
	c.do(func() {
		c.override = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }
	})
	clock.move(time.Minute)
	require.ErrorIs(t, v.Check(t.Context(), id), errs.ReviewUnavailable)
}

// A cluster that hangs costs its own tokens their time limit, and nobody else anything.
func TestHangingReviewBlocksNobodyElse(t *testing.T) {
	clock, secret := newClock(), newSecret()
	c := newCluster(t, clock)
	other := secretIssuer(t, secret)
	other.Issuer, other.Tenant = "other", "other:{sub}"
	iss := c.issuer(true)
	iss.Kubernetes.ReviewTimeout = time.Hour
	v := newVerifier(t, clock, iss, other)
	require.NoError(t, warm(t, v, c))
	release := make(chan struct{})
	c.do(func() {
		c.override = func(w http.ResponseWriter, _ *http.Request) {
			<-release
			w.WriteHeader(http.StatusBadGateway)
		}
	})
	var waiting sync.WaitGroup
	for i := range 2 * maxAsking {
		token := c.sign(c.claims("payments", fmt.Sprint("api-", i)))
		for range 3 { // who shows the same token waits for the same answer
			waiting.Go(func() {
				if _, err := v.Verify(context.Background(), token); errs.CodeOf(err) != errs.ReviewUnavailable {
					t.Errorf("unexpected: %v", err)
				}
			})
		}
	}
	underWay := func() int { return v.Status()[0].Review.UnderWay }
	require.Eventually(t, func() bool { return underWay() == 2*maxAsking && c.asked() == 1+maxAsking }, 10*time.Second, time.Millisecond, "bounded")
	for range 3 {
		_, err := v.Verify(t.Context(), sign(t, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now(), "iss", "other")))
		require.NoError(t, err)
	}
	require.Equal(t, 2*maxAsking, underWay(), "the others were served meanwhile")
	require.Equal(t, 1+maxAsking, c.asked())
	close(release)
	waiting.Wait()
	require.Zero(t, underWay())
}

func TestReviewHasATimeLimit(t *testing.T) {
	clock := newClock()
	c := newCluster(t, clock)
	iss := c.issuer(true)
	iss.Kubernetes.ReviewTimeout = 20 * time.Millisecond
	v := newVerifier(t, clock, iss)
	require.Eventually(t, func() bool { return v.Ready() == nil }, 5*time.Second, time.Millisecond)
	c.do(func() { c.override = func(_ http.ResponseWriter, r *http.Request) { c.hang(r) } })
	_, err := v.Verify(t.Context(), c.sign(c.claims("payments", "api")))
	requireRefused(t, err, errs.ReviewUnavailable, "deadline exceeded", "")
}

// warm has the cluster's keys fetched, and one token reviewed.
func warm(t *testing.T, v *Verifier, c *cluster) error {
	_, err := v.Verify(t.Context(), c.sign(c.claims("warm", "up")))
	return err
}

func TestReviewsOfOneTokenAreOneQuestion(t *testing.T) {
	clock := newClock()
	c := newCluster(t, clock)
	v := newVerifier(t, clock, c.issuer(true))
	require.Eventually(t, func() bool { return v.Ready() == nil }, 5*time.Second, time.Millisecond)
	release := make(chan struct{})
	c.do(func() {
		c.override = func(w http.ResponseWriter, r *http.Request) {
			<-release
			c.review(w, r)
		}
	})
	token := c.sign(c.claims("payments", "api"))
	var waiting sync.WaitGroup
	for range 50 {
		waiting.Go(func() {
			if _, err := v.Verify(context.Background(), token); err != nil {
				t.Error(err)
			}
		})
	}
	require.Eventually(t, func() bool { return c.asked() == 1 }, 5*time.Second, time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := v.Verify(ctx, token)
	require.ErrorIs(t, err, errs.Canceled, "who goes away does not take the question along")
	close(release)
	waiting.Wait()
	require.Equal(t, 1, c.asked())
}

func TestReviewsEndWithTheirIssuer(t *testing.T) {
	ends := map[string]func(v *Verifier, others Issuer) error{
		"closed":  func(v *Verifier, _ Issuer) error { return v.Close() },
		"removed": func(v *Verifier, others Issuer) error { return v.Apply([]Issuer{others}) },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			clock := newClock()
			c := newCluster(t, clock)
			iss := c.issuer(true)
			iss.Kubernetes.ReviewTimeout = time.Hour
			v := newVerifier(t, clock, iss)
			require.NoError(t, warm(t, v, c))
			asked := make(chan struct{})
			c.do(func() {
				c.override = func(_ http.ResponseWriter, r *http.Request) {
					close(asked)
					c.hang(r)
				}
			})
			result := make(chan error)
			go func() {
				_, err := v.Verify(context.Background(), c.sign(c.claims("payments", "api")))
				result <- err
			}()
			<-asked
			require.NoError(t, end(v, secretIssuer(t, newSecret())))
			require.ErrorIs(t, <-result, errs.ReviewUnavailable)
			_, err := v.Verify(t.Context(), c.sign(c.claims("payments", "web")))
			require.Error(t, err, "and nothing starts anew")
		})
	}
}
