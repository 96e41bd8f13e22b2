// Package admin is the sidecar's API on loopback: status, and what a person may ask of it.
package admin

import (
	"io"
	"log/slog"
	"net/http"

	"fairlead/shared/adminapi"
)

// Config is what the API needs.
type Config struct {
	Listen    string       // host:port
	Ready     func() error // nil when a connection would be carried
	Status    func() any   // what GET /api/status answers, as JSON
	Reconnect func()       // tries again now
	Drain     func()       // stops the sidecar once its connections have ended
	Quit      func()       // stops the sidecar
	SetLevel  func(string) error
	Metrics   func(io.Writer) error
	Logger    *slog.Logger
}

// New binds the listener. All but health, readiness and metrics is for programs on the same machine.
func New(cfg Config) (*adminapi.Server, error) {
	return adminapi.New(adminapi.Config{Listen: cfg.Listen, Ready: cfg.Ready, Metrics: cfg.Metrics, SetLevel: cfg.SetLevel, Logger: cfg.Logger,
		Routes: func(mux *http.ServeMux) {
			mux.HandleFunc("GET /api/status", adminapi.Show(cfg.Status))
			mux.HandleFunc("POST /api/reconnect", adminapi.Do(cfg.Reconnect))
			mux.HandleFunc("POST /api/drain", adminapi.Do(cfg.Drain))
			mux.HandleFunc("POST /quitquitquit", adminapi.Do(cfg.Quit))
		}})
}
