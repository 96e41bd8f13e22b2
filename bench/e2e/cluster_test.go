package e2e

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	gatewayconfig "fairlead/gateway/config"
	"fairlead/shared/testbed"
)

const (
	clusterIssuer   = "https://kubernetes.default.svc.cluster.local"
	clusterKeys     = "/openid/v1/jwks"
	clusterReviews  = "/apis/authentication.k8s.io/v1/tokenreviews"
	clusterAudience = "fairlead"
)

// podName is a pod, by what its projected token says.
type podName struct{ namespace, account, name string }

// tenant is what the gateway makes of the pod's token unless it is told otherwise.
func (p podName) tenant() string { return p.namespace + "/" + p.account }

// qualified is how the gateway calls the pod.
func (p podName) qualified() string { return p.namespace + "/" + p.name }

// kubeAPI is an HTTPS server that behaves as a cluster's API does towards a gateway in a pod: it serves keys and answers
// reviews to whoever shows the token of the gateway's own service account, and to nobody else.
type kubeAPI struct {
	t         *testing.T
	issuer    *testbed.Issuer
	url       string
	caFile    string
	tokenFile string // the gateway's own
	own       string
	keys      http.Handler

	mu      sync.Mutex
	pods    map[string]podName // by token
	deleted map[podName]bool
	denied  int      // requests without the gateway's token
	asked   []string // tokens that were reviewed
}

func newKubeAPI(t *testing.T) *kubeAPI {
	t.Helper()
	k := &kubeAPI{t: t, tokenFile: filepath.Join(t.TempDir(), "token"), pods: map[string]podName{}, deleted: map[podName]bool{}}
	var err error
	k.issuer, err = testbed.NewIssuer(testbed.IssuerConfig{Algorithm: "ES256", Issuer: clusterIssuer, Audience: clusterAudience, Dir: t.TempDir()})
	require.NoError(t, err)
	k.keys = testbed.JWKSHandler(func() []*testbed.Issuer { return []*testbed.Issuer{k.issuer} })
	k.own = k.sign(podName{"fairlead", "gateway", "fairlead-gateway-0"}, clusterIssuer)
	require.NoError(t, testbed.WriteToken(k.tokenFile, k.own))

	ca, leaf := testbed.NewTestCA(t)
	k.caFile = ca.CertFile()
	server := httptest.NewUnstartedServer(k)
	server.TLS, err = ca.ServerTLS(leaf)
	require.NoError(t, err)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	t.Cleanup(server.Close)
	k.url = server.URL
	return k
}

// sign makes a token as the kubelet projects it into a pod.
func (k *kubeAPI) sign(p podName, audience string) string {
	k.t.Helper()
	token, err := k.issuer.Sign(testbed.Claims{
		"aud": []string{audience}, "sub": "system:serviceaccount:" + p.namespace + ":" + p.account, "jti": "jti-of-" + p.name,
		"kubernetes.io": map[string]any{
			"namespace":      p.namespace,
			"node":           map[string]any{"name": "node-1", "uid": "0b6a0c1a-0000-4000-8000-000000000001"},
			"pod":            map[string]any{"name": p.name, "uid": "uid-of-" + p.name},
			"serviceaccount": map[string]any{"name": p.account, "uid": "0b6a0c1a-0000-4000-8000-000000000002"},
			"warnafter":      time.Now().Add(50 * time.Minute).Unix(),
		},
	})
	require.NoError(k.t, err)
	return token
}

// start makes a pod and returns its token.
func (k *kubeAPI) start(p podName) string {
	k.t.Helper()
	token := k.sign(p, clusterAudience)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pods[token] = p
	return token
}

// delete ends a pod: its token is no longer good, although it has not expired.
func (k *kubeAPI) delete(p podName) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.deleted[p] = true
}

// config is the gateway's configuration for tokens of this cluster.
func (k *kubeAPI) config() gatewayconfig.Issuer {
	var c gatewayconfig.Issuer
	c.SetDefaults()
	c.Audience, c.Leeway = clusterAudience, 0
	c.Kubernetes.Enabled, c.Kubernetes.APIServer, c.Kubernetes.TokenFile, c.Kubernetes.CAFile = true, k.url, k.tokenFile, k.caFile
	c.Kubernetes.TokenReview, c.Kubernetes.ReviewTTL = true, time.Second
	return c
}

func (k *kubeAPI) reviewed(token string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Contains(k.asked, token)
}

func (k *kubeAPI) refusals() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.denied
}

// ServeHTTP implements http.Handler.
func (k *kubeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Header.Get("Authorization") != "Bearer "+k.own:
		k.mu.Lock()
		k.denied++
		k.mu.Unlock()
		http.Error(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}`, http.StatusUnauthorized)
	case r.Method == http.MethodGet && r.URL.Path == clusterKeys:
		k.keys.ServeHTTP(w, r)
	case r.Method == http.MethodPost && r.URL.Path == clusterReviews:
		k.review(w, r)
	default:
		http.Error(w, `{"kind":"Status","code":404}`, http.StatusNotFound)
	}
}

// review answers as the API does: 201, and why not in status.error.
func (k *kubeAPI) review(w http.ResponseWriter, r *http.Request) {
	var question struct {
		APIVersion, Kind string
		Spec             struct {
			Token     string
			Audiences []string
		}
	}
	if json.NewDecoder(r.Body).Decode(&question) != nil || question.APIVersion != "authentication.k8s.io/v1" || question.Kind != "TokenReview" {
		http.Error(w, `{"kind":"Status","code":400}`, http.StatusBadRequest)
		return
	}
	k.mu.Lock()
	pod, known := k.pods[question.Spec.Token]
	gone := k.deleted[pod]
	k.asked = append(k.asked, question.Spec.Token)
	k.mu.Unlock()
	status := map[string]any{"user": map[string]any{}}
	switch {
	case !known || !slices.Equal(question.Spec.Audiences, []string{clusterAudience}):
		status["error"] = "[invalid bearer token]"
	case gone:
		status["error"] = "[invalid bearer token, service account token has been invalidated]"
	default:
		status = map[string]any{"authenticated": true, "audiences": question.Spec.Audiences,
			"user": map[string]any{"username": "system:serviceaccount:" + pod.namespace + ":" + pod.account, "groups": []string{"system:serviceaccounts"}}}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": map[string]any{}, "status": status}) // a client that left needs no answer
}
