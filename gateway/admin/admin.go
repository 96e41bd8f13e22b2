// Package admin is the gateway's operators' API: what the gateway does, and what may be changed while it runs. One table of
// routes (routes.go) decides who may ask what, and is what docs/openapi.json is made from.
package admin

import (
	"context"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/gateway/audit"
	"fairlead/shared/adminapi"
	"fairlead/shared/errs"
)

// Config is what the API needs. Funcs that are marked optional may be nil; then what needs them answers errs.NotFound. All
// are called from many goroutines at once, and lists from a sequence may come in any order.
type Config struct {
	Listen    string  // host:port
	TokenFile string  // holds the token of a caller named OperatorName with the role Operator; empty: there is none
	Tokens    []Token // more callers. No callers at all: programs on the gateway's machine are the operators

	RequestsPerMinute int // of each caller, and of each client address; 0: DefaultRequests
	FailuresPerMinute int // wrong tokens from each client address; 0: DefaultFailures

	Audit   audit.Recorder // nil: nothing is recorded
	Ready   func() error
	Metrics func(io.Writer) error // writes Prometheus text

	Diagnostics func() Diagnostics         // what it says of store and replicas only counts when Replicas is nil or fails
	Effective   func() []Setting           // the configuration, masked, with sources
	Live        func(after time.Time) Live // optional
	Events      func(after uint64) Events  // optional

	// Replicas tells what is known now, and asks nobody for longer than its context lasts: two seconds. A store that cannot be
	// used is no error, but told in Store, with the replicas that were known last, of which this one is always one; an error
	// is for what cannot be told at all. The order of lists, Replica.Self and RelaysTotal are filled in. Nil: the gateway is the
	// only replica, and shares nothing.
	Replicas func(context.Context) (ReplicasView, error)

	// DrainProgress tells how far a drain is; without a Phase it is Serving or Finishing. Nil: only whether there is one, from
	// Diagnostics.
	DrainProgress func() DrainView

	Tunnels   func() iter.Seq[Tunnel]
	EndTunnel func(id string) error         // errs.NotFound when there is none
	Streams   func() iter.Seq[Stream]       // optional
	EndStream func(tunnel, id string) error // optional; errs.NotFound when there is none
	Tenants   func() iter.Seq[Tenant]       // optional

	Backends   func() []Backend                     // by name
	SetBreaker func(backend, mode, by string) error // mode is open, closed or auto; errs.NotFound for a backend that does not exist

	Revocations func() []Revocation                                         // optional
	Revoke      func(by string, what RevocationRequest) (Revocation, error) // optional
	Unrevoke    func(id string) error                                       // optional; errs.NotFound when there is none
	TestPolicy  func(tenant, route string) Decision
	Reload      func(by string) (ReloadResult, error) // optional. An error only when it could not even be tried
	Drain       func()                                // must not block
	Level       func() string                         // optional
	SetLevel    func(string) error

	Page     http.Handler // answers GET / and GET /ui/…, for everybody; nil: there is no page
	Logger   *slog.Logger
	Registry *metrics.Set     // nil: nothing is counted
	Now      func() time.Time // clock of limits and token files; nil: time.Now
}

// New binds the listener. A token file that cannot be used is an error, errs.KeyUnreadable; callers that cannot be told
// apart are errs.ConfigInvalid.
func New(cfg Config) (*adminapi.Server, error) {
	a, err := newAPI(cfg)
	if err != nil {
		return nil, err
	}
	return adminapi.New(adminapi.Config{Listen: cfg.Listen, Handler: a, Logger: cfg.Logger})
}

func newAPI(cfg Config) (*api, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	list := cfg.Tokens
	if cfg.TokenFile != "" {
		list = append([]Token{{OperatorName, Operator, cfg.TokenFile}}, list...)
	}
	if err := checkTokens(list); err != nil {
		return nil, err
	}
	a := &api{cfg: cfg}
	var err error
	if a.tokens, err = newTokens(list, cfg.Now); err != nil {
		return nil, err
	}
	if a.limits, err = newLimits(orElse(cfg.RequestsPerMinute, DefaultRequests), orElse(cfg.FailuresPerMinute, DefaultFailures), cfg.Now); err != nil {
		return nil, errs.Wrap(errs.Internal, err, "table of client addresses")
	}
	if a.document, err = openAPI(a.routes()); err != nil {
		return nil, errs.Wrap(errs.Internal, err, "the description of the API")
	}
	a.register()
	return a, nil
}

func orElse(n, otherwise int) int {
	if n <= 0 {
		return otherwise
	}
	return n
}
