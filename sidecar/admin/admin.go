// Package admin is the sidecar's API on loopback and its page: how it fares, and what a person may ask of it.
package admin

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"fairlead/shared/adminapi"
	"fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/sidecar/admin/ui"
	"fairlead/sidecar/status"
)

// Config is what the API needs. What may be nil is not offered then.
type Config struct {
	Listen        string                          // host:port
	Ready         func() error                    // nil when a connection would be carried
	Status        func() status.Status            // what GET /api/status answers; its Rates are filled in here
	Configuration func() []config.Entry           // the effective configuration, secrets masked, with sources; may be nil
	Reconnect     func()                          // tries again now
	Drain         func()                          // stops the sidecar once the application is gone
	Quit          func()                          // stops the sidecar once its connections have ended
	Reload        func() (status.Reloaded, error) // reads the configuration anew and says what came of it; may be nil
	SetLevel      func(string) error
	Metrics       func(io.Writer) error
	Routes        func(*http.ServeMux) // addresses of features; may be nil
	Logger        *slog.Logger
}

// Server serves the API.
type Server struct {
	*adminapi.Server
	cfg      Config
	history  *history
	page     http.Handler
	document []byte // OpenAPI
	stop     context.CancelFunc
	ctx      context.Context
}

// New binds the listener. All but health, readiness and metrics is for programs on the same machine.
func New(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, history: &history{}, page: ui.Handler()}
	var err error
	if s.document, err = document(s.table()); err != nil {
		return nil, errs.Wrap(errs.Internal, err, "the description of the API")
	}
	s.Server, err = adminapi.New(adminapi.Config{Listen: cfg.Listen, Ready: cfg.Ready, Metrics: cfg.Metrics, SetLevel: cfg.SetLevel, Logger: cfg.Logger,
		Routes: s.routes})
	if err != nil {
		return nil, err
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s, nil
}

// Serve answers, and takes a sample of the sidecar every second, until Shutdown.
func (s *Server) Serve() error {
	var sampling sync.WaitGroup
	sampling.Go(func() { s.history.run(s.ctx, s.cfg.Status) })
	defer sampling.Wait()
	defer s.stop()
	return s.Server.Serve()
}

// Shutdown waits for requests until ctx ends, and closes the listener, also when Serve was never called.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	return s.Server.Shutdown(ctx)
}

// status is what GET /api/status answers: as the sidecar tells it, with rates, without lists that are null, and with a word
// for what has none yet.
func (s *Server) status() status.Status {
	st := s.cfg.Status()
	st.Rates = s.history.rates()
	st.Quality = cmp.Or(st.Quality, "none")
	st.Tunnels, st.Listeners = filled(slices.Clone(st.Tunnels)), filled(slices.Clone(st.Listeners))
	st.Endpoints, st.Events = filled(st.Endpoints), filled(st.Events)
	for i := range st.Tunnels {
		st.Tunnels[i].Quality = cmp.Or(st.Tunnels[i].Quality, "none")
	}
	for i := range st.Listeners {
		st.Listeners[i].Delivery = cmp.Or(st.Listeners[i].Delivery, "stream")
	}
	return st
}

// samples answers with those after a moment, or with all that are kept.
func (s *Server) samples(w http.ResponseWriter, r *http.Request) {
	newer(w, r, s.history.list(), func(x status.Sample) time.Time { return x.Time })
}

// events answers with those after a moment, or with all that are kept.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	newer(w, r, s.cfg.Status().Events, func(x status.Event) time.Time { return x.Time })
}

// newer answers with what of a list came after the moment that the query asks for.
func newer[T any](w http.ResponseWriter, r *http.Request, list []T, at func(T) time.Time) {
	var q since
	if err := adminapi.Query(r, &q); err != nil {
		adminapi.Refuse(w, err)
		return
	}
	found := []T{}
	for _, x := range list {
		if at(x).After(q.After) {
			found = append(found, x)
		}
	}
	adminapi.Answer(w, http.StatusOK, found)
}

func (s *Server) reload(w http.ResponseWriter, _ *http.Request) {
	result, err := s.cfg.Reload()
	if err != nil {
		adminapi.Refuse(w, err)
		return
	}
	result.Applied, result.NeedsRestart = filled(result.Applied), filled(result.NeedsRestart)
	adminapi.Answer(w, http.StatusOK, result)
}
