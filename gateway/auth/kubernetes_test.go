package auth

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
	"fairlead/shared/testbed"
)

const clusterIssuer = "https://kubernetes.default.svc.cluster.local"

// cluster is an HTTPS server that behaves as a cluster's API does, with the authority, the token of the gateway's pod and
// the key that tokens are signed with.
type cluster struct {
	t      testing.TB
	clock  *clock
	key    *ecdsa.PrivateKey
	url    string
	caFile string
	token  string // file of the gateway's own token
	quit   chan struct{}

	mu       sync.Mutex
	own      string // the gateway's own token: any other is not authenticated
	keys     []byte
	gone     map[string]bool // pods that were deleted, by uid
	override http.HandlerFunc
	reviews  int
	paths    map[string]bool
	last     tokenReview // the last question
}

func newCluster(t testing.TB, clock *clock) *cluster {
	c := &cluster{t: t, clock: clock, key: ecKey(t), gone: map[string]bool{}, paths: map[string]bool{}, quit: make(chan struct{}), token: filepath.Join(t.TempDir(), "token")}
	c.keys = jwks(t, map[string]crypto.Signer{"c1": c.key})
	ca := c.newAuthority(t.TempDir())
	c.caFile = ca.CertFile()
	leaf, err := ca.Issue(testbed.CertificateConfig{Name: "kube-apiserver"})
	require.NoError(t, err)
	config, err := ca.ServerTLS(leaf)
	require.NoError(t, err)
	c.serve(config)
	c.rotate("fairlead-gateway-0")
	return c
}

func (c *cluster) newAuthority(dir string) *testbed.CA {
	ca, err := testbed.NewCA(dir)
	require.NoError(c.t, err)
	return ca
}

func (c *cluster) serve(config *tls.Config) {
	server := httptest.NewUnstartedServer(c)
	server.TLS = config
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	c.url = server.URL
	c.t.Cleanup(func() {
		close(c.quit)
		server.Close()
	})
}

// rotate gives the gateway's pod another token, as the kubelet does; the one before is no longer good.
func (c *cluster) rotate(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own = sign(c.t, jwt.SigningMethodES256, "c1", c.key, c.claims("fairlead", "gateway", "jti", id))
	require.NoError(c.t, testbed.WriteToken(c.token, c.own))
}

// claims are those of a projected token.
func (c *cluster) claims(namespace, account string, more ...any) jwt.MapClaims {
	now := c.clock.now()
	claims := jwt.MapClaims{
		"aud": []string{testAudience}, "iss": clusterIssuer, "jti": "3f6c9a0e-9a5c-4c3a-bb1a-0d9a43b0f7f1",
		"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		"sub": "system:serviceaccount:" + namespace + ":" + account,
		"kubernetes.io": map[string]any{
			"namespace":      namespace,
			"node":           map[string]any{"name": "node-1", "uid": "0b6a0c1a-0000-4000-8000-000000000001"},
			"pod":            map[string]any{"name": account + "-7c9f", "uid": "uid-of-" + account},
			"serviceaccount": map[string]any{"name": account, "uid": "0b6a0c1a-0000-4000-8000-000000000002"},
			"warnafter":      now.Add(50 * time.Minute).Unix(),
		},
	}
	for i := 0; i < len(more); i += 2 {
		claims[more[i].(string)] = more[i+1]
	}
	return claims
}

func (c *cluster) sign(claims jwt.MapClaims) string {
	return sign(c.t, jwt.SigningMethodES256, "c1", c.key, claims)
}

func (c *cluster) issuer(review bool) Issuer {
	return Issuer{Audience: testAudience, Kubernetes: &Kubernetes{APIServer: c.url, TokenFile: c.token, CAFile: c.caFile, Review: review}}
}

func (c *cluster) do(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

func (c *cluster) asked() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reviews
}

func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.paths[r.URL.Path] = true
	override := c.override
	if r.URL.Path == clusterTrial {
		c.reviews++
	}
	own := c.own
	c.mu.Unlock()
	switch {
	case override != nil:
		override(w, r)
	case r.Header.Get("Authorization") != "Bearer "+own:
		http.Error(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}`, http.StatusUnauthorized)
	case r.Method == http.MethodGet && r.URL.Path == "/openid/v1/jwks":
		w.Header().Set("Content-Type", "application/jwk-set+json")
		_, _ = w.Write(c.keys)
	case r.Method == http.MethodPost && r.URL.Path == clusterTrial && r.Header.Get("Content-Type") == "application/json":
		c.review(w, r)
	default:
		http.Error(w, `{"kind":"Status","code":404}`, http.StatusNotFound)
	}
}

// review answers as the API does: 201, and why not in status.error.
func (c *cluster) review(w http.ResponseWriter, r *http.Request) {
	var question tokenReview
	data, _ := io.ReadAll(r.Body)
	if json.Unmarshal(data, &question) != nil || question.APIVersion != "authentication.k8s.io/v1" || question.Kind != "TokenReview" {
		http.Error(w, `{"kind":"Status","code":400}`, http.StatusBadRequest)
		return
	}
	claims := jwt.MapClaims{}
	_, err := jwt.ParseWithClaims(question.Spec.Token, claims, func(*jwt.Token) (any, error) { return c.key.Public(), nil },
		jwt.WithTimeFunc(c.clock.now), jwt.WithValidMethods([]string{"ES256"}), jwt.WithAudience(question.Spec.Audiences...))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = question
	status := map[string]any{"user": map[string]any{}}
	inner, _ := claims["kubernetes.io"].(map[string]any)
	pod, _ := inner["pod"].(map[string]any)
	uid, _ := pod["uid"].(string)
	switch {
	case err != nil:
		status["error"] = "[invalid bearer token, " + err.Error() + "]"
	case c.gone[uid]:
		status["error"] = "[invalid bearer token, service account token has been invalidated]"
	default:
		status = map[string]any{"authenticated": true, "audiences": question.Spec.Audiences,
			"user": map[string]any{"username": claims["sub"], "uid": "0b6a0c1a-0000-4000-8000-000000000002", "groups": []string{"system:serviceaccounts"}}}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": map[string]any{}, "status": status})
}

// hang answers nothing until the client goes away, which a server notices only once it has read the request.
func (c *cluster) hang(r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	select {
	case <-r.Context().Done():
	case <-c.quit:
	}
	panic(http.ErrAbortHandler) // without an answer: the client may still be listening
}

// logged is a verifier's log that may be read meanwhile.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newLoggedVerifier(t testing.TB, clock *clock, revoked *Revocations, list ...Issuer) (*Verifier, *logged) {
	log := &logged{}
	v, err := New(Config{Issuers: list, Revocations: revoked, Metrics: metrics.NewSet(), Now: clock.now,
		Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, v.Close()) })
	return v, log
}

func TestPodsAreKnownWithoutAnySecret(t *testing.T) {
	clock := newClock()
	c := newCluster(t, clock)
	u, err := url.Parse(c.url)
	require.NoError(t, err)
	t.Setenv("KUBERNETES_SERVICE_HOST", u.Hostname())
	t.Setenv("KUBERNETES_SERVICE_PORT", u.Port())
	iss := c.issuer(false)
	iss.Kubernetes.APIServer = ""
	v, log := newLoggedVerifier(t, clock, nil, iss)
	token := c.sign(c.claims("payments", "api"))
	id, err := v.Verify(t.Context(), token)
	require.NoError(t, err)
	id.by = nil
	require.Equal(t, Identity{Tenant: "payments/api", Subject: "system:serviceaccount:payments:api", Issuer: clusterIssuer, TokenID: "3f6c9a0e-9a5c-4c3a-bb1a-0d9a43b0f7f1",
		Tier: "default", Expires: clock.now().Add(time.Hour), IssuedAt: clock.now(), Pod: "payments/api-7c9f", PodUID: "uid-of-api"}, id)
	require.Zero(t, c.asked(), "reviews were not asked for")

	// The gateway's own token rotates: the next request shows the new one.
	c.rotate("fairlead-gateway-1")
	before := v.Status()[0].Fetched
	require.NoError(t, v.Reload())
	require.Eventually(t, func() bool { return v.Status()[0].Fetched.After(before) }, 5*time.Second, time.Millisecond)
	status := v.Status()[0]
	require.Equal(t, "kubernetes", status.Source)
	require.Equal(t, clusterIssuer, status.Issuer)
	require.Equal(t, 1, status.Keys)
	require.Empty(t, status.Error)
	require.NoError(t, v.Ready())
	for _, part := range strings.Split(c.own, ".") {
		require.NotContains(t, log.String(), part)
	}
}

func TestServiceAccountClaimsMustFit(t *testing.T) {
	clock := newClock()
	c := newCluster(t, clock)
	v := newVerifier(t, clock, c.issuer(false))
	inner := func(namespace, account, pod any) map[string]any {
		m := map[string]any{"serviceaccount": map[string]any{"name": account}}
		if namespace != nil {
			m["namespace"] = namespace
		}
		if pod != nil {
			m["pod"] = pod
		}
		return m
	}
	cases := map[string]struct {
		more     []any
		sentence string
	}{
		"no kubernetes.io":      {[]any{"kubernetes.io", "x"}, "is missing"},
		"no namespace":          {[]any{"kubernetes.io", inner(nil, "api", nil)}, "is missing"},
		"namespace not text":    {[]any{"kubernetes.io", inner(1, "api", nil)}, "is not a string"},
		"slash in a namespace":  {[]any{"kubernetes.io", inner("a/b", "api", nil)}, "uses to join claims"},
		"colon in a namespace":  {[]any{"kubernetes.io", inner("a:b", "api", nil), "sub", "system:serviceaccount:a:b:api"}, "is no name that Kubernetes gives"},
		"subject of another":    {[]any{"sub", "system:serviceaccount:payments:admin"}, `claim "sub" is of another one`},
		"a user":                {[]any{"sub", "system:admin"}, `claim "sub" is of another one`},
		"pod's name not text":   {[]any{"kubernetes.io", inner("payments", "api", map[string]any{"name": 7})}, "is not a string"},
		"namespace in two ways": {[]any{"kubernetes.io.namespace", "finance"}, "more than once"},
		"bound by another way":  {[]any{"cnf", map[string]any{"jkt": "x"}}, "gives no certificate to compare with"},
	}
	for name, each := range cases {
		t.Run(name, func(t *testing.T) {
			token := c.sign(c.claims("payments", "api", each.more...))
			_, err := v.Verify(t.Context(), token)
			requireRefused(t, err, errs.TokenInvalid, each.sentence, token)
		})
	}
	id, err := v.Verify(t.Context(), c.sign(c.claims("payments", "api", "kubernetes.io", inner("payments", "api", nil))))
	require.NoError(t, err, "a token need not be a pod's")
	require.Empty(t, id.Pod)
}

func TestKubernetesConfiguration(t *testing.T) {
	clock := newClock()
	c := newCluster(t, clock)
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	nonsense := writeFile(t, []byte("nonsense"))
	cases := map[string]struct {
		change   func(*Issuer)
		code     errs.Code
		sentence string
	}{
		"no pod":              {func(i *Issuer) { i.Kubernetes.APIServer = "" }, errs.ConfigInvalid, "this is no pod"},
		"http":                {func(i *Issuer) { i.Kubernetes.APIServer = "http://127.0.0.1:1" }, errs.ConfigInvalid, "must be an https URL"},
		"user":                {func(i *Issuer) { i.Kubernetes.APIServer = "https://u:hunter2@x" }, errs.ConfigInvalid, "must be an https URL"},
		"no token":            {func(i *Issuer) { i.Kubernetes.TokenFile += "x" }, errs.KeyUnreadable, "token_file"},
		"token is no token":   {func(i *Issuer) { i.Kubernetes.TokenFile = nonsense }, errs.KeyUnreadable, "does not hold a JWT"},
		"no authorities":      {func(i *Issuer) { i.Kubernetes.CAFile += "x" }, errs.KeyUnreadable, "ca_file"},
		"authorities are not": {func(i *Issuer) { i.Kubernetes.CAFile = nonsense }, errs.KeyUnreadable, "holds no certificate"},
		"negative time":       {func(i *Issuer) { i.Kubernetes.ReviewTTL = -1 }, errs.ConfigInvalid, "negative"},
		"second source":       {func(i *Issuer) { i.JWKS = "{}" }, errs.ConfigInvalid, "exactly one of"},
		"shared secrets":      {func(i *Issuer) { i.Algorithms = []string{"HS256"} }, errs.ConfigInvalid, "allowed: RS256, ES256, EdDSA"},
	}
	for name, each := range cases {
		t.Run(name, func(t *testing.T) {
			iss := c.issuer(true)
			each.change(&iss)
			_, err := New(Config{Issuers: []Issuer{iss}})
			require.ErrorIs(t, err, each.code)
			require.ErrorContains(t, err, each.sentence)
			require.NotContains(t, err.Error(), "hunter2")
		})
	}
	_, err := (Kubernetes{APIServer: "https://api.example/k8s/clusters/c1/"}).complete()
	require.NoError(t, err)
	t.Setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "443")
	k, err := (Kubernetes{}).complete()
	require.NoError(t, err)
	require.Equal(t, "https://[fd00::1]:443", k.APIServer)
	require.Equal(t, podToken, k.TokenFile)
}

// The gateway's own token is worth as much as the gateway: it must not go anywhere else.
func TestOwnTokenGoesNowhereElse(t *testing.T) {
	clock := newClock()
	c := newCluster(t, clock)
	var strangers sync.Map
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { strangers.Store(r.URL.Path, r.Header) }))
	defer elsewhere.Close()
	for _, target := range []string{elsewhere.URL, c.url} { // not even to another path of its own
		c.do(func() { c.override = http.RedirectHandler(target+"/elsewhere", http.StatusTemporaryRedirect).ServeHTTP })
		v, log := newLoggedVerifier(t, clock, nil, c.issuer(false))
		_, err := v.Verify(t.Context(), c.sign(c.claims("payments", "api")))
		require.ErrorIs(t, err, errs.KeysUnavailable)
		require.Contains(t, log.String(), "the gateway's token is for this server only")
		require.Contains(t, v.Status()[0].Error, "redirected")
		require.ErrorIs(t, v.Ready(), errs.KeysUnavailable)
	}
	strangers.Range(func(path, header any) bool {
		t.Errorf("another server was asked for %v with %v", path, header)
		return true
	})
	c.do(func() { require.Equal(t, map[string]bool{clusterKeys: true}, c.paths) })
}

func TestClusterAuthorityIsReadAgain(t *testing.T) {
	clock := newClock()
	c := newCluster(t, clock)
	caFile := filepath.Join(t.TempDir(), "ca.crt")
	stranger, err := os.ReadFile(c.newAuthority(t.TempDir()).CertFile())
	require.NoError(t, err)
	right, err := os.ReadFile(c.caFile)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(caFile, stranger, 0o600))
	iss := c.issuer(false)
	iss.Kubernetes.CAFile = caFile
	v, log := newLoggedVerifier(t, clock, nil, iss)
	verify := func() error { _, err := v.Verify(t.Context(), c.sign(c.claims("payments", "api"))); return err }
	require.ErrorIs(t, verify(), errs.KeysUnavailable)
	require.Contains(t, log.String(), "certificate signed by unknown authority")

	require.NoError(t, os.WriteFile(caFile, right, 0o600))
	require.NoError(t, v.Reload())
	require.Eventually(t, func() bool { return verify() == nil }, 5*time.Second, 5*time.Millisecond)

	require.NoError(t, os.WriteFile(caFile, []byte("half a certif"), 0o600))
	for range 2 {
		before := v.Status()[0].Fetched
		require.NoError(t, v.Reload())
		require.Eventually(t, func() bool { return v.Status()[0].Fetched.After(before) }, 5*time.Second, time.Millisecond, "the authorities before stay")
	}
	require.Equal(t, 1, strings.Count(log.String(), "the changed ca_file cannot be used"))
}
