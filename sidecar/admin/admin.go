// Package admin is the sidecar's API on loopback: health, metrics, status, and what a person may ask of it.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// Config is what a Server needs.
type Config struct {
	Listen    string
	Ready     func() error // nil when a connection would be carried
	Status    func() any
	Reconnect func()
	Drain     func()
	Quit      func()
	SetLevel  func(string) error
	Metrics   func(io.Writer) error
	Logger    *slog.Logger
}

// Server serves the API.
type Server struct {
	cfg Config
	l   net.Listener
	srv http.Server
}

// Limits of a server on loopback.
const (
	headerTime = 5 * time.Second
	bodyLimit  = 4 << 10
)

// New binds the listener.
func New(cfg Config) (*Server, error) {
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, errs.Wrap(errs.ListenFailed, err, "the admin API cannot listen on %s", cfg.Listen)
	}
	s := &Server{cfg: cfg, l: l}
	mux := http.NewServeMux()
	ok := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") }
	mux.HandleFunc("GET /healthz", ok)
	mux.HandleFunc("GET /startupz", ok) // listeners are bound and the configuration is valid before this one listens
	mux.HandleFunc("GET /readyz", s.ready)
	mux.HandleFunc("GET /metrics", s.metrics)
	mux.HandleFunc("GET /api/status", s.status)
	mux.HandleFunc("POST /api/reconnect", s.do(cfg.Reconnect))
	mux.HandleFunc("POST /api/drain", s.do(cfg.Drain))
	mux.HandleFunc("POST /quitquitquit", s.do(cfg.Quit))
	mux.HandleFunc("PUT /api/log-level", s.level)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer(w, errs.New(errs.NotFound, "there is nothing for %s at %.100q", r.Method, r.URL.Path))
	})
	s.srv = http.Server{Handler: local(mux), ReadHeaderTimeout: headerTime, ReadTimeout: 2 * headerTime, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug)}
	return s, nil
}

// local refuses what a browser was led to send here: a web page must not be able to stop a sidecar, nor read from it by
// rebinding a name of its own to loopback.
func local(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		ip := net.ParseIP(host)
		if r.Header.Get("Origin") != "" && r.Method != http.MethodGet || ip == nil && host != "localhost" {
			answer(w, errs.New(errs.AdminDenied, "requests of web pages and for the host %.100q are refused; use localhost or an address", host))
			return
		}
		next.ServeHTTP(w, r)
	})
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

// Shutdown stops the server.
func (s *Server) Shutdown(ctx context.Context) error {
	defer s.srv.Close()
	return s.srv.Shutdown(ctx)
}

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	if err := s.cfg.Ready(); err != nil {
		answer(w, err)
		return
	}
	io.WriteString(w, "ready\n")
}

func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	if err := s.cfg.Metrics(w); err != nil {
		s.cfg.Logger.Debug("metrics were not taken", logging.FieldError, err.Error())
	}
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(s.cfg.Status()) // the client went away
}

func (s *Server) do(f func()) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.cfg.Logger.Info("admin request", "path", r.URL.Path, logging.FieldPeer, r.RemoteAddr)
		f()
		w.WriteHeader(http.StatusAccepted)
		io.WriteString(w, "{}\n")
	}
}

// level takes the log level as the body: a word, or JSON {"level": "debug"}.
func (s *Server) level(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
	if err != nil {
		answer(w, errs.Wrap(errs.BadRequest, err, "reading the level"))
		return
	}
	var v struct {
		Level string `json:"level"`
	}
	if json.Unmarshal(body, &v) != nil {
		v.Level = string(body)
	}
	if err := s.cfg.SetLevel(v.Level); err != nil {
		answer(w, errs.Wrap(errs.BadRequest, err, "setting the log level"))
		return
	}
	s.cfg.Logger.Info("log level changed", "level", v.Level)
	io.WriteString(w, "{}\n")
}

func answer(w http.ResponseWriter, err error) {
	status, body := errs.HTTP(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(body, '\n'))
}
