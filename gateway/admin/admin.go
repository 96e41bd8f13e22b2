// Package admin is the gateway's operators' API: diagnostics, tunnels, backends and profiles.
package admin

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"

	"fairlead/shared/adminapi"
	"fairlead/shared/errs"
)

// Config is what the API needs.
type Config struct {
	Listen      string // host:port
	TokenFile   string // holds the operators' bearer token; empty: programs on the gateway's machine are the operators
	Ready       func() error
	Diagnostics func() any
	Tunnels     func() any
	EndTunnel   func(id string) bool
	Backends    func() any
	SetBreaker  func(backend, mode string) error // NotFound for a backend that does not exist, BadRequest for a mode
	Effective   func() any                       // the configuration, masked, with sources
	Drain       func()
	SetLevel    func(string) error
	Metrics     func(io.Writer) error
	Logger      *slog.Logger
}

// New binds the listener. A token file that cannot be used is an error.
func New(cfg Config) (*adminapi.Server, error) {
	allow := adminapi.OnThisMachine
	if cfg.TokenFile != "" {
		op := operators{file: cfg.TokenFile, log: cfg.Logger}
		if _, err := op.token(); err != nil {
			return nil, err
		}
		allow = op.allow
	}
	return adminapi.New(adminapi.Config{Listen: cfg.Listen, Ready: cfg.Ready, Metrics: cfg.Metrics, SetLevel: cfg.SetLevel, Allow: allow, Logger: cfg.Logger,
		Routes: func(mux *http.ServeMux) { routes(cfg, mux) }})
}

func routes(cfg Config, mux *http.ServeMux) {
	mux.HandleFunc("GET /api/tunnel/metrics", adminapi.Metrics(cfg.Metrics))
	mux.HandleFunc("GET /api/tunnel/diagnostics", adminapi.Show(cfg.Diagnostics))
	mux.HandleFunc("GET /api/tunnel/config", adminapi.Show(cfg.Effective))
	mux.HandleFunc("GET /api/tunnels", adminapi.Show(cfg.Tunnels))
	mux.HandleFunc("DELETE /api/tunnels/{id}", func(w http.ResponseWriter, r *http.Request) {
		if !cfg.EndTunnel(r.PathValue("id")) {
			adminapi.Refuse(w, errs.New(errs.NotFound, "there is no tunnel %.64q", r.PathValue("id")))
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /api/backends", adminapi.Show(cfg.Backends))
	mux.HandleFunc("PUT /api/backends/{name}/breaker", func(w http.ResponseWriter, r *http.Request) {
		mode, err := adminapi.Word(w, r, "mode")
		if err == nil {
			err = cfg.SetBreaker(r.PathValue("name"), mode)
		}
		if err != nil {
			adminapi.Refuse(w, err)
			return
		}
		adminapi.Done(w, http.StatusOK)
	})
	mux.HandleFunc("POST /api/drain", adminapi.Do(cfg.Drain))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
}
