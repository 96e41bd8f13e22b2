package adminapi

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"

	"fairlead/shared/errs"
)

// Alive answers that the process runs.
func Alive(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") }

// Ready makes a handler that answers whether ready returns nil.
func Ready(ready func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			Refuse(w, err)
			return
		}
		io.WriteString(w, "ready\n")
	}
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
	var body struct {
		Level string `json:"level" required:"true"`
	}
	if err := Body(w, r, &body, "level"); err != nil {
		Refuse(w, err)
		return
	}
	if err := s.cfg.SetLevel(body.Level); err != nil {
		Refuse(w, errs.Wrap(errs.BadRequest, err, "setting the log level"))
		return
	}
	s.cfg.Logger.Info("log level changed", "level", body.Level)
	Done(w, http.StatusOK)
}

// Show makes a handler that answers with what f returns, as JSON.
func Show(f func() any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { Answer(w, http.StatusOK, f()) }
}

// Do makes a handler that calls f, which must not block, and answers 202.
func Do(f func()) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		f()
		Done(w, http.StatusAccepted)
	}
}

// Done answers that what was asked is done, or with status 202 that it has begun.
func Done(w http.ResponseWriter, status int) { Answer(w, status, struct{}{}) }

// Answer answers with v as JSON. What cannot be told as JSON is an internal error, told whole.
func Answer(w http.ResponseWriter, status int, v any) {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false) // the type of the answer is no HTML, and may not be guessed to be
	if err := enc.Encode(v); err != nil {
		Refuse(w, errs.Wrap(errs.Internal, err, "answering"))
		return
	}
	write(w, status, body.Bytes())
}

// Refuse answers with an error as JSON, under the HTTP status of its code, with the headers that tell its limit.
func Refuse(w http.ResponseWriter, err error) {
	RefuseAs(w, 0, err)
}

// RefuseAs is Refuse under another status than that of the error's code; 0: under that one.
func RefuseAs(w http.ResponseWriter, status int, err error) {
	own, body := errs.HTTP(err)
	if status == 0 {
		status = own
	}
	for _, h := range errs.Headers(err) {
		w.Header().Set(h[0], h[1])
	}
	write(w, status, append(body, '\n'))
}

func write(w http.ResponseWriter, status int, body []byte) {
	Guarded(w.Header())
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(body)
}

// Guarded sets the headers of an answer that nothing may keep, guess the type of, or show in a frame.
func Guarded(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
}
