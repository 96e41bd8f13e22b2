// Package admin is the sidecar's API on loopback and its page: how it fares, and what a person may ask of it.
package admin

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"fairlead/shared/adminapi"
	"fairlead/shared/errs"
	"fairlead/sidecar/admin/ui"
	"fairlead/sidecar/status"
)

// Config is what the API needs. What may be nil is not offered then.
type Config struct {
	Listen        string               // host:port
	Ready         func() error         // nil when a connection would be carried
	Status        func() status.Status // what GET /api/status answers; its Rates are filled in here
	Configuration func() any           // the effective configuration, secrets masked; may be nil
	Reconnect     func()               // tries again now
	Drain         func()               // stops the sidecar once the application is gone
	Quit          func()               // stops the sidecar once its connections have ended
	Reload        func() (any, error)  // reads the configuration anew and says what came of it; may be nil
	SetLevel      func(string) error
	Metrics       func(io.Writer) error
	Routes        func(*http.ServeMux) // addresses of features; may be nil
	Logger        *slog.Logger
}

// Server serves the API.
type Server struct {
	*adminapi.Server
	cfg     Config
	history *history
	stop    context.CancelFunc
	ctx     context.Context
}

// New binds the listener. All but health, readiness and metrics is for programs on the same machine.
func New(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, history: &history{}}
	var err error
	s.Server, err = adminapi.New(adminapi.Config{Listen: cfg.Listen, Ready: cfg.Ready, Metrics: cfg.Metrics, SetLevel: cfg.SetLevel, Logger: cfg.Logger,
		Routes: s.routes})
	if err != nil {
		return nil, err
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s, nil
}

func (s *Server) routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /api/status", adminapi.Show(func() any { return s.status() }))
	mux.HandleFunc("GET /api/history", adminapi.Show(func() any { return s.history.list() }))
	mux.HandleFunc("GET /api/events", s.events)
	if s.cfg.Configuration != nil {
		mux.HandleFunc("GET /api/config", adminapi.Show(s.cfg.Configuration))
	}
	mux.HandleFunc("POST /api/reconnect", adminapi.Do(s.cfg.Reconnect))
	mux.HandleFunc("POST /api/drain", adminapi.Do(s.cfg.Drain))
	mux.HandleFunc("POST /quitquitquit", adminapi.Do(s.cfg.Quit))
	if s.cfg.Reload != nil {
		mux.HandleFunc("POST /api/reload", s.reload)
	}
	if s.cfg.Routes != nil {
		s.cfg.Routes(mux)
	}
	page := ui.Handler()
	mux.Handle("GET /{$}", page)
	mux.Handle("GET /ui/", page)
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

func (s *Server) status() status.Status {
	st := s.cfg.Status()
	st.Rates = s.history.rates()
	return st
}

// events answers with those after a moment, or with all that are kept.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	var after time.Time
	if text := r.URL.Query().Get("after"); text != "" {
		t, err := time.Parse(time.RFC3339, text)
		if err != nil {
			adminapi.Refuse(w, errs.New(errs.BadRequest, "after: %.40q; allowed: a time such as 2026-11-24T09:00:00Z", text))
			return
		}
		after = t
	}
	events := []status.Event{}
	for _, e := range s.cfg.Status().Events {
		if e.Time.After(after) {
			events = append(events, e)
		}
	}
	adminapi.Answer(w, http.StatusOK, events)
}

func (s *Server) reload(w http.ResponseWriter, _ *http.Request) {
	result, err := s.cfg.Reload()
	if err != nil {
		adminapi.Refuse(w, err)
		return
	}
	adminapi.Answer(w, http.StatusOK, result)
}
