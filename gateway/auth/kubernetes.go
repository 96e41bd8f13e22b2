package auth

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// Kubernetes makes an issuer that of a cluster's service accounts. No secret is needed: the gateway shows the cluster the
// token that its own pod has.
type Kubernetes struct {
	APIServer string // https URL of the cluster's API; empty: from KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT
	TokenFile string // the gateway's own token, read again for each request; empty: where pods have it
	CAFile    string // authorities of the API's certificate, PEM, read again for each request; empty: where pods have it

	// Review asks the cluster about each token (TokenReview) after its signature was found good, so that a token ends
	// with its pod or service account and not only when it expires.
	Review        bool
	ReviewTTL     time.Duration // how long an answer counts; zero: 10s
	ReviewGrace   time.Duration // how long a token that was good lives on while the cluster cannot be asked; zero: 5m
	ReviewTimeout time.Duration // of a question; zero: 3s
}

const (
	podToken      = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	podCA         = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
	clusterTenant = "{kubernetes.io.namespace}/{kubernetes.io.serviceaccount.name}"
	clusterKeys   = "/openid/v1/jwks" // the same path for whatever issuer the cluster names
)

// complete returns cfg with what a Kubernetes issuer leaves to its surroundings.
func (cfg Issuer) complete() (Issuer, error) {
	if cfg.Kubernetes == nil {
		return cfg, nil
	}
	k, err := cfg.Kubernetes.complete()
	if err != nil {
		return cfg, err
	}
	cfg.Kubernetes = &k
	if cfg.Tenant == "" {
		cfg.Tenant = clusterTenant
	}
	if cfg.Issuer == "" {
		cfg.Issuer, err = issuerOfFile(k.TokenFile)
	}
	return cfg, err
}

func (k Kubernetes) complete() (Kubernetes, error) {
	if k.APIServer == "" {
		host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
		if host == "" || port == "" {
			return k, errs.New(errs.ConfigInvalid, "kubernetes: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, so this is no pod: set api_server, token_file and ca_file")
		}
		k.APIServer = "https://" + net.JoinHostPort(host, port)
	}
	u, err := url.Parse(k.APIServer)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return k, errs.New(errs.ConfigInvalid, "kubernetes: api_server must be an https URL with a host and without user, query and fragment")
	}
	if k.ReviewTTL < 0 || k.ReviewGrace < 0 || k.ReviewTimeout < 0 {
		return k, errs.New(errs.ConfigInvalid, "kubernetes: the times of the review must not be negative")
	}
	k.APIServer = strings.TrimRight(k.APIServer, "/")
	k.TokenFile, k.CAFile = or(k.TokenFile, podToken), or(k.CAFile, podCA)
	k.ReviewTTL, k.ReviewGrace, k.ReviewTimeout = or(k.ReviewTTL, 10*time.Second), or(k.ReviewGrace, 5*time.Minute), or(k.ReviewTimeout, 3*time.Second)
	return k, nil
}

func or[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// place is k without the review: where the keys come from.
func (k Kubernetes) place() Kubernetes {
	return Kubernetes{APIServer: k.APIServer, TokenFile: k.TokenFile, CAFile: k.CAFile}
}

// issuerOfFile reads who issued the gateway's own token. The file is the kubelet's word, so no signature is checked.
func issuerOfFile(path string) (string, error) {
	token, err := readToken(path)
	if err != nil {
		return "", errs.Wrap(errs.KeyUnreadable, err, "kubernetes: token_file %s", quote(path))
	}
	claims := jwt.MapClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(token, claims); err != nil {
		return "", errs.New(errs.KeyUnreadable, "kubernetes: token_file %s does not hold a JWT: set issuer", quote(path))
	}
	name, _ := claims["iss"].(string)
	if name == "" {
		return "", errs.New(errs.KeyUnreadable, "kubernetes: the token of token_file %s names no issuer: set issuer", quote(path))
	}
	return name, nil
}

func readToken(path string) (string, error) {
	data, err := readFile(path)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(data))
	if token == "" || len(token) > maxToken || !wellFormed(token) {
		return "", errors.New("holds no token")
	}
	return token, nil
}

// kubeAPI asks a cluster. The gateway's token goes to that server over TLS and nowhere else: no proxy, no redirect.
type kubeAPI struct {
	place Kubernetes
	log   *slog.Logger

	mu     sync.Mutex
	client *http.Client // trusts the authorities that were in CAFile; nil before the first request
	ca     []byte       // the file's content that client was made from
	failed string       // what was said about CAFile last
}

func newKubeAPI(k Kubernetes, log *slog.Logger) (*kubeAPI, error) {
	api := &kubeAPI{place: k.place(), log: log.With(logging.FieldComponent, "auth", "api_server", k.APIServer)}
	_, err := api.http()
	return api, err
}

// http returns a client that trusts what is in CAFile now. If that cannot be used, the client before stays.
func (a *kubeAPI) http() (*http.Client, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	pem, err := readFile(a.place.CAFile)
	if err == nil && a.client != nil && bytes.Equal(pem, a.ca) {
		return a.client, nil
	}
	pool := x509.NewCertPool()
	if err == nil && !pool.AppendCertsFromPEM(pem) {
		err = errors.New("holds no certificate")
	}
	if err != nil {
		err = errs.Wrap(errs.KeyUnreadable, err, "kubernetes: ca_file %s", quote(a.place.CAFile))
		if a.client == nil {
			return nil, err
		}
		if a.failed != err.Error() {
			a.log.Error("the changed ca_file cannot be used; the authorities before stay trusted", logging.Error(err)...)
		}
		a.failed = err.Error()
		return a.client, nil
	}
	if a.client != nil {
		a.client.CloseIdleConnections()
	}
	a.client, a.ca, a.failed = newKubeClient(pool), pem, ""
	return a.client, nil
}

func newKubeClient(authorities *x509.CertPool) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:            (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			TLSClientConfig:        &tls.Config{RootCAs: authorities, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    5 * time.Second,
			ForceAttemptHTTP2:      true,
			MaxIdleConnsPerHost:    maxAsking,
			IdleConnTimeout:        90 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("redirected, but the gateway's token is for this server only")
		},
	}
}

func (a *kubeAPI) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.client != nil {
		a.client.CloseIdleConnections()
	}
}

// keys fetches the cluster's key set.
func (a *kubeAPI) keys(ctx context.Context) ([]byte, error) {
	return a.ask(ctx, http.MethodGet, clusterKeys, nil)
}

// ask sends a request with the gateway's token as it is now, and returns the body of a 200 or 201.
func (a *kubeAPI) ask(ctx context.Context, method, path string, question any) ([]byte, error) {
	client, err := a.http()
	if err != nil {
		return nil, err
	}
	token, err := readToken(a.place.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("the gateway's own token: %w", err)
	}
	var body io.Reader
	if question != nil {
		data, err := json.Marshal(question)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.place.APIServer+path, body)
	if err != nil {
		return nil, withoutURL(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Accept", "application/json")
	if question != nil {
		req.Header.Set("Content-Type", "application/json")
	} else {
		req.Header.Set("Accept", "application/jwk-set+json, application/json")
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, withoutURL(err)
	}
	defer resp.Body.Close()
	if err := accepted(resp); err != nil {
		return nil, err
	}
	return readBounded(resp.Body)
}

func accepted(resp *http.Response) error {
	switch resp.StatusCode {
	case http.StatusOK, http.StatusCreated:
		return nil
	case http.StatusUnauthorized:
		return fmt.Errorf("answered %s: it does not accept the gateway's own token", resp.Status)
	case http.StatusForbidden:
		return fmt.Errorf("answered %s: the gateway's service account lacks the right to %s %s", resp.Status, resp.Request.Method, resp.Request.URL.Path)
	}
	return fmt.Errorf("answered %s", resp.Status)
}
