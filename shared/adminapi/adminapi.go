// Package adminapi is what the admin APIs of both programs have in common: health, readiness, metrics, the log level, who
// may ask, and how answers look. What only one of them has to say is in its own package admin.
package adminapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// Config is what a Server needs.
type Config struct {
	Listen   string                      // host:port; port 0 takes any
	Ready    func() error                // nil when a connection would be carried
	Metrics  func(io.Writer) error       // writes Prometheus text
	SetLevel func(string) error          // changes the log level
	Allow    func(r *http.Request) error // who may use Routes and the log level; nil: OnThisMachine
	Routes   func(mux *http.ServeMux)    // adds the program's own addresses; nil: none
	Handler  http.Handler                // answers everything, instead of what the fields above describe; nil: they do
	Logger   *slog.Logger
}

// Server serves an admin API. Health, readiness and metrics are for everybody who can connect; the rest is guarded.
type Server struct {
	cfg Config
	l   net.Listener
	srv http.Server
}

// Limits of a server whose clients are few and near.
const (
	headerTime = 5 * time.Second
	readTime   = 10 * time.Second
	writeTime  = 2 * time.Minute // profiles take as long as they are asked to
	headerSize = 16 << 10
	bodyLimit  = 4 << 10
)

// New binds the listener.
func New(cfg Config) (*Server, error) {
	if cfg.Allow == nil {
		cfg.Allow = OnThisMachine
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, errs.Wrap(errs.ListenFailed, err, "the admin API cannot listen on %s", cfg.Listen)
	}
	s := &Server{cfg: cfg, l: l}
	handler := cfg.Handler
	if handler == nil {
		handler = s.routes()
	}
	s.srv = http.Server{Handler: handler, ReadHeaderTimeout: headerTime, ReadTimeout: readTime, WriteTimeout: writeTime, MaxHeaderBytes: headerSize,
		ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug)}
	return s, nil
}

func (s *Server) routes() http.Handler {
	open, guarded := http.NewServeMux(), http.NewServeMux()
	open.HandleFunc("GET /healthz", Alive)
	open.HandleFunc("GET /startupz", Alive) // everything is built and bound before this one answers
	open.HandleFunc("GET /readyz", Ready(s.cfg.Ready))
	open.HandleFunc("GET /metrics", Metrics(s.cfg.Metrics))
	open.Handle("/", s.guard(guarded))

	guarded.HandleFunc("PUT /api/log-level", s.level)
	guarded.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		Refuse(w, errs.New(errs.NotFound, "there is nothing for %.20s at %.100q", r.Method, r.URL.Path))
	})
	if s.cfg.Routes != nil {
		s.cfg.Routes(guarded)
	}
	return open
}

// guard lets through who may ask. Refusals, and requests that change something, are logged.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		about := []any{"method", r.Method, "path", Clip(r.URL.Path), logging.FieldPeer, r.RemoteAddr}
		if err := s.cfg.Allow(r); err != nil {
			s.cfg.Logger.Warn("admin request refused", append(logging.Error(err), about...)...)
			Refuse(w, err)
			return
		}
		if r.Method != http.MethodGet {
			s.cfg.Logger.Info("admin request", about...)
		}
		next.ServeHTTP(w, r)
	})
}

// Clip bounds a stranger's text in a log line.
func Clip(s string) string {
	const most = 128
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// OnThisMachine refuses clients on other machines, and what a browser was led to send: a web page must not be able to
// stop a program, nor read from it by making a name of its own resolve to loopback.
func OnThisMachine(r *http.Request) error {
	from, _, _ := net.SplitHostPort(r.RemoteAddr) // always host:port
	if ip := net.ParseIP(from); ip == nil || !ip.IsLoopback() || crossSite(r) || fromElsewhere(r) || !literal(r.Host) {
		return errs.New(errs.AdminDenied, "this address is for programs on the same machine that ask for localhost or an IP address")
	}
	return nil
}

// crossSite says whether a page from elsewhere made the request.
func crossSite(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return false
	}
	u, err := url.Parse(origin)
	return err != nil || u.Host != r.Host
}

// fromElsewhere says whether a browser tells that another site's page made the request, or one at another port of this
// machine (Fetch Metadata, https://www.w3.org/TR/fetch-metadata/): such requests need have no Origin when they only read,
// and images and scripts are read so. A link that a person follows may lead here: the page that it was on reads nothing.
func fromElsewhere(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin": // no browser, or one without it; typed by a person; our own page
		return false
	}
	return r.Method != http.MethodGet || r.Header.Get("Sec-Fetch-Mode") != "navigate" || r.Header.Get("Sec-Fetch-Dest") != "document"
}

// literal says whether a Host header is an address, or the one name that everybody knows to be loopback.
func literal(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil { // without a port
		host = strings.TrimSuffix(strings.TrimPrefix(hostport, "["), "]")
	}
	return host == "localhost" || net.ParseIP(host) != nil
}

// Addr is the address it listens on.
func (s *Server) Addr() net.Addr { return s.l.Addr() }

// Serve answers until Shutdown.
func (s *Server) Serve() error {
	if err := s.srv.Serve(s.l); !errors.Is(err, http.ErrServerClosed) {
		return errs.Wrap(errs.ListenFailed, err, "serving the admin API")
	}
	return nil
}

// Shutdown waits for requests until ctx ends, and closes the listener, also when Serve was never called.
func (s *Server) Shutdown(ctx context.Context) error {
	defer s.l.Close() // the HTTP server knows only listeners that it serves
	defer s.srv.Close()
	return s.srv.Shutdown(ctx)
}
