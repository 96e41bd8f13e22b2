package adminapi

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"

	"fairlead/shared/errs"
)

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	if err := s.cfg.Ready(); err != nil {
		Refuse(w, err)
		return
	}
	io.WriteString(w, "ready\n")
}

// Metrics makes a handler that answers with what write writes, as Prometheus text.
func Metrics(write func(io.Writer) error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_ = write(w) // the client went away
	}
}

// level takes the log level as the body: a word, or JSON {"level": "debug"}.
func (s *Server) level(w http.ResponseWriter, r *http.Request) {
	level, err := Word(w, r, "level")
	if err != nil {
		Refuse(w, err)
		return
	}
	if err := s.cfg.SetLevel(level); err != nil {
		Refuse(w, errs.Wrap(errs.BadRequest, err, "setting the log level"))
		return
	}
	s.cfg.Logger.Info("log level changed", "level", level)
	Done(w, http.StatusOK)
}

// Word reads a request's body that is a single word, or a JSON object with that word under key.
func Word(w http.ResponseWriter, r *http.Request, key string) (string, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
	if err != nil {
		return "", errs.Wrap(errs.BadRequest, err, "reading the %s", key)
	}
	var object map[string]string
	if json.Unmarshal(body, &object) == nil {
		return object[key], nil
	}
	return strings.TrimSpace(string(body)), nil
}

// Show makes a handler that answers with what f returns, as JSON.
func Show(f func() any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		_ = enc.Encode(f()) // the client went away
	}
}

// Do makes a handler that calls f, which must not block, and answers 202.
func Do(f func()) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		f()
		Done(w, http.StatusAccepted)
	}
}

// Done answers that what was asked is done, or with status 202 that it has begun.
func Done(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	io.WriteString(w, "{}\n")
}

// Refuse answers with an error as JSON, under the HTTP status of its code.
func Refuse(w http.ResponseWriter, err error) {
	status, body := errs.HTTP(err)
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="fairlead"`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(body, '\n'))
}
