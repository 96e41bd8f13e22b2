package server

import (
	"errors"
	"fmt"
	"log/slog"
	"net"

	"github.com/valyala/fasthttp"

	"fairlead/gateway/session"
	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// statusError is an error whose answer has another status than its code's.
type statusError struct {
	error
	status int
}

func (e statusError) Unwrap() error { return e.error }

func withStatus(status int, err error) error { return statusError{err, status} }

func tooLarge() error {
	return withStatus(fasthttp.StatusRequestEntityTooLarge, errs.New(errs.BadRequest, "a request has no body here"))
}

// answer tells an error as JSON. It is the last answer on the connection: whoever was refused does not go on with it.
func answer(ctx *fasthttp.RequestCtx, err error) {
	status, body := errs.HTTP(errs.Outward(err))
	var other statusError
	if errors.As(err, &other) {
		status = other.status
	}
	ctx.Response.Reset()
	ctx.SetConnectionClose()
	ctx.SetStatusCode(status)
	ctx.SetContentType("application/json")
	h := &ctx.Response.Header
	for _, field := range errs.Headers(err) {
		h.Set(field[0], field[1])
	}
	switch {
	case status == fasthttp.StatusMethodNotAllowed:
		h.Set("Allow", "GET")
	case errs.CodeOf(err) == errs.BadRequest:
		h.Set("Sec-WebSocket-Version", "13") // RFC 6455 section 4.4
	}
	ctx.SetBody(append(body, '\n'))
}

// standing tells who has got a stream how many more there are.
func (s *Server) standing(ctx *fasthttp.RequestCtx, who session.Identity) {
	if s.cfg.Standing == nil {
		return
	}
	q := s.cfg.Standing(who.Tenant, who.Tier)
	if q.Limit == 0 { // there is no limit
		return
	}
	for _, field := range q.Headers() {
		ctx.Response.Header.Set(field[0], field[1])
	}
}

// badRequest answers what fasthttp could not parse. What it says about that quotes the request, and may quote its token.
func (s *Server) badRequest(ctx *fasthttp.RequestCtx, err error) {
	cause := describe(err)
	s.log.Say(s.cfg.Logger, slog.LevelInfo, cause.Error(), "malformed request", append(logging.Error(cause), logging.FieldPeer, peerAddr(ctx.RemoteAddr()).String())...)
	answer(ctx, cause)
}

// describe says what was wrong, without a word of the request.
func describe(err error) error {
	var small *fasthttp.ErrSmallBuffer
	var network *net.OpError
	switch {
	case errors.As(err, &small):
		return withStatus(fasthttp.StatusRequestHeaderFieldsTooLarge, errs.New(errs.BadRequest, "the request's header is over %d bytes", headerBuffer))
	case errors.As(err, &network) && network.Timeout():
		return withStatus(fasthttp.StatusRequestTimeout, errs.New(errs.BadRequest, "the request did not arrive within %v", readTimeout))
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		return tooLarge()
	case errors.As(err, &network), errors.Is(err, errDropped):
		return errs.New(errs.BadRequest, "the connection ended within the request")
	}
	return errs.New(errs.BadRequest, "the request is not understood: it is not HTTP/1.1 as RFC 9112 has it")
}

// httpLogger takes what fasthttp has to say; strangers cause most of it. Errors are told as badRequest does: the text of
// some quotes the request.
type httpLogger struct {
	to  *slog.Logger
	log *logging.Tamed
}

func (l httpLogger) Printf(format string, args ...any) {
	for i, arg := range args {
		if err, ok := arg.(error); ok {
			args[i] = describe(err)
		}
	}
	l.log.Say(l.to, slog.LevelDebug, format, "http", logging.FieldError, fmt.Sprintf(format, args...))
}
