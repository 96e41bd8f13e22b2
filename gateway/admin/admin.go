// Package admin is the gateway's operators' API: health, metrics, diagnostics, tunnels and backends.
package admin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// Config is what a Server needs.
type Config struct {
	Listen      string
	TokenFile   string // holds the bearer token of /api/ and /debug/; empty: these are served to loopback clients only
	Ready       func() error
	Diagnostics func() any
	Tunnels     func() any
	EndTunnel   func(id string) bool
	Backends    func() any
	Effective   func() any // the configuration, masked, with sources
	Drain       func()
	SetLevel    func(string) error
	Metrics     func(io.Writer) error
	Logger      *slog.Logger
}

// Server serves the API.
type Server struct {
	cfg Config
	l   net.Listener
	srv http.Server
}

const (
	headerTime = 5 * time.Second
	bodyLimit  = 4 << 10
)

// New binds the listener. A token file that cannot be read is an error.
func New(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg}
	if cfg.TokenFile != "" {
		if _, err := s.token(); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, errs.Wrap(errs.ListenFailed, err, "the admin API cannot listen on %s", cfg.Listen)
	}
	s.l = l
	s.srv = http.Server{Handler: s.routes(), ReadHeaderTimeout: headerTime, ReadTimeout: 2 * headerTime, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug)}
	return s, nil
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	ok := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") }
	mux.HandleFunc("GET /healthz", ok)
	mux.HandleFunc("GET /startupz", ok) // everything is built and bound before this listens
	mux.HandleFunc("GET /readyz", s.ready)
	mux.HandleFunc("GET /metrics", s.metrics)

	api := http.NewServeMux()
	api.HandleFunc("GET /api/tunnel/metrics", s.metrics)
	api.HandleFunc("GET /api/tunnel/diagnostics", show(s.cfg.Diagnostics))
	api.HandleFunc("GET /api/tunnel/config", show(s.cfg.Effective))
	api.HandleFunc("GET /api/tunnels", show(s.cfg.Tunnels))
	api.HandleFunc("DELETE /api/tunnels/{id}", s.endTunnel)
	api.HandleFunc("GET /api/backends", show(s.cfg.Backends))
	api.HandleFunc("POST /api/drain", s.drain)
	api.HandleFunc("PUT /api/log-level", s.level)
	api.HandleFunc("/debug/pprof/", pprof.Index)
	api.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	api.HandleFunc("/debug/pprof/profile", pprof.Profile)
	api.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	api.HandleFunc("/debug/pprof/trace", pprof.Trace)
	api.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer(w, errs.New(errs.NotFound, "there is nothing for %s at %.100q", r.Method, r.URL.Path))
	})
	mux.Handle("/", s.operators(api))
	return mux
}

// token reads the token anew, so that it can be changed without a restart.
func (s *Server) token() ([]byte, error) {
	b, err := os.ReadFile(s.cfg.TokenFile)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "admin.token_file")
	}
	if b = bytes.TrimSpace(b); len(b) < 16 {
		return nil, errs.New(errs.KeyUnreadable, "admin.token_file: %s holds %d bytes; at least 16 are needed", s.cfg.TokenFile, len(b))
	}
	return b, nil
}

// operators lets operators through: who has the token, or, when there is none, who is on this machine and is no web page.
func (s *Server) operators(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.allow(r); err != nil {
			s.cfg.Logger.Warn("admin request refused", append(logging.Error(err), logging.FieldPeer, r.RemoteAddr, "path", r.URL.Path)...)
			answer(w, err)
			return
		}
		if r.Method != http.MethodGet {
			s.cfg.Logger.Info("admin request", "method", r.Method, "path", r.URL.Path, logging.FieldPeer, r.RemoteAddr)
		}
		next.ServeHTTP(w, r)
	})
}

func (s *Server) allow(r *http.Request) error {
	if s.cfg.TokenFile == "" {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() || r.Header.Get("Origin") != "" || !localName(r.Host) {
			return errs.New(errs.AdminDenied, "without admin.token_file the API is for clients on the gateway's machine")
		}
		return nil
	}
	want, err := s.token()
	if err != nil {
		return err
	}
	got, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	a, b := sha256.Sum256([]byte(got)), sha256.Sum256(want) // of equal length, so that the comparison tells nothing about it
	if !ok || subtle.ConstantTimeCompare(a[:], b[:]) != 1 {
		return errs.New(errs.AdminDenied, "the admin token is missing or wrong")
	}
	return nil
}

// localName refuses names that a web page could have made to resolve to loopback.
func localName(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
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

func show(f func() any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		_ = enc.Encode(f()) // the client went away
	}
}

func (s *Server) endTunnel(w http.ResponseWriter, r *http.Request) {
	if !s.cfg.EndTunnel(r.PathValue("id")) {
		answer(w, errs.New(errs.NotFound, "there is no tunnel %.64q", r.PathValue("id")))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) drain(w http.ResponseWriter, _ *http.Request) {
	s.cfg.Drain()
	w.WriteHeader(http.StatusAccepted)
	io.WriteString(w, "{}\n")
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
		v.Level = strings.TrimSpace(string(body))
	}
	if err := s.cfg.SetLevel(v.Level); err != nil {
		answer(w, errs.Wrap(errs.BadRequest, err, "setting the log level"))
		return
	}
	io.WriteString(w, "{}\n")
}

func answer(w http.ResponseWriter, err error) {
	status, body := errs.HTTP(err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(body, '\n'))
}
