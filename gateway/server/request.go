package server

import (
	"bytes"
	"encoding/base64"
	"net/url"
	"strings"

	"github.com/fasthttp/websocket"
	"github.com/valyala/fasthttp"

	"fairlead/shared/errs"
)

// maxLines bounds a header's lines. Proxies add some; nobody needs a hundred.
const maxLines = 100

// target is the path that is asked for, exactly as it was sent: a path that is only by some rewriting the one of an
// address ("//", "/../", "%2e") is not that address's, because a proxy in front may have let it pass as another one.
func target(ctx *fasthttp.RequestCtx) (string, error) {
	h := &ctx.Request.Header
	path := string(h.RequestURI()) // memory of the request is reused
	if !h.IsGet() && (!h.IsHead() || strings.HasPrefix(path, "/v1/")) {
		return "", withStatus(fasthttp.StatusMethodNotAllowed, errs.New(errs.BadRequest, "only GET is understood"))
	}
	if scheme, rest, ok := strings.Cut(path, "://"); ok && !strings.HasPrefix(path, "/") { // the form that is sent to proxies
		switch scheme {
		case "http", "https", "ws", "wss":
			_, path, _ = strings.Cut(rest, "/")
			path = "/" + path
		}
	}
	path, _, _ = strings.Cut(path, "?")
	return path, nil
}

// routeOf is the route of a path below /v1/stream/. A name may be percent-encoded, but what is encoded is never a
// separator or a step in the path.
func routeOf(path string) (route string, ok bool) {
	encoded, ok := strings.CutPrefix(path, "/v1/stream/")
	if !ok {
		return "", false
	}
	segments := strings.Split(encoded, "/")
	for i, s := range segments {
		name, err := url.PathUnescape(s)
		if err != nil || name == "" || name == "." || name == ".." || strings.ContainsFunc(name, func(r rune) bool { return r == '/' || r == '\\' || r < ' ' || r == 0x7f }) {
			return "", false
		}
		segments[i] = name
	}
	route = strings.Join(segments, "/")
	return route, len(route) <= maxRoute
}

// wellFormed refuses what fasthttp lets pass but others on the way may understand otherwise: each such difference is a
// way to smuggle something past them.
func wellFormed(ctx *fasthttp.RequestCtx) error {
	h := &ctx.Request.Header
	if p := string(h.Protocol()); p != "HTTP/1.1" && p != "HTTP/1.0" {
		return errs.New(errs.BadRequest, "only HTTP/1.1 is spoken here")
	}
	if len(ctx.Request.Body()) > 0 {
		return tooLarge()
	}
	if err := lines(h.RawHeaders()); err != nil {
		return err
	}
	join(h, "Connection")
	join(h, "Upgrade")
	join(h, "Sec-Websocket-Protocol")
	join(h, "Sec-Websocket-Extensions")
	return nil
}

// once are the names of which there may be one line only.
const once = " authorization host content-length transfer-encoding sec-websocket-key sec-websocket-version "

// lines checks the lines of a header, as they were sent.
func lines(raw []byte) error {
	seen := map[string]bool{}
	for n := 0; ; n++ {
		line, rest, more := bytes.Cut(raw, []byte("\n"))
		if !more || len(line) == 1 { // the empty line at the end
			return nil
		}
		name, _, colon := bytes.Cut(line, []byte(":"))
		switch {
		case n == maxLines:
			return withStatus(fasthttp.StatusRequestHeaderFieldsTooLarge, errs.New(errs.BadRequest, "the request's header has more than %d lines", maxLines))
		case line[0] == ' ', line[0] == '\t':
			return errs.New(errs.BadRequest, "a folded line in the request's header")
		case line[len(line)-1] != '\r', bytes.IndexByte(line[:len(line)-1], '\r') >= 0:
			return errs.New(errs.BadRequest, "a line of the request's header does not end with CR LF")
		case !colon, bytes.ContainsAny(name, " \t"):
			return errs.New(errs.BadRequest, "a line of the request's header has no name")
		}
		if lower := strings.ToLower(string(name)); strings.Contains(once, " "+lower+" ") {
			if seen[lower] {
				return errs.New(errs.BadRequest, "%s is given twice", lower)
			}
			seen[lower] = true
		}
		if raw = rest; seen["transfer-encoding"] {
			return errs.New(errs.BadRequest, "a request has no body here")
		}
	}
}

// join makes one list of several lines, as the upgrader looks at the first one only.
func join(h *fasthttp.RequestHeader, name string) {
	if all := h.PeekAll(name); len(all) > 1 {
		h.SetBytesV(name, bytes.Join(all, []byte(", ")))
	}
}

func offers(ctx *fasthttp.RequestCtx, protocol string) bool {
	for p := range strings.SplitSeq(string(ctx.Request.Header.Peek("Sec-WebSocket-Protocol")), ",") {
		if strings.TrimSpace(p) == protocol {
			return true
		}
	}
	return false
}

// offersDeflate says whether the client offers permessage-deflate in a way that can be accepted: without a window for what the gateway
// sends that is smaller than the usual one (RFC 7692 section 7.1). Contexts are never kept from one message to the next.
func offersDeflate(ctx *fasthttp.RequestCtx) bool {
	for offer := range strings.SplitSeq(string(ctx.Request.Header.Peek("Sec-WebSocket-Extensions")), ",") {
		if deflates(offer) {
			return true
		}
	}
	return false
}

// deflates checks one offer. One with a parameter that is unknown, given twice or has no possible value is to be declined.
func deflates(offer string) bool {
	name, parameters, more := strings.Cut(offer, ";")
	if strings.TrimSpace(name) != "permessage-deflate" {
		return false
	}
	seen := map[string]bool{}
	for more {
		var parameter string
		parameter, parameters, more = strings.Cut(parameters, ";")
		name, value, valued := strings.Cut(strings.TrimSpace(parameter), "=")
		if seen[name] {
			return false
		}
		seen[name] = true
		switch name {
		case "client_no_context_takeover", "server_no_context_takeover":
			if valued {
				return false
			}
		case "client_max_window_bits":
			if valued && !windowBits(value) {
				return false
			}
		case "server_max_window_bits":
			if strings.Trim(value, `"`) != "15" {
				return false
			}
		default:
			return false
		}
	}
	return true
}

func windowBits(value string) bool {
	switch strings.Trim(value, `"`) {
	case "8", "9", "10", "11", "12", "13", "14", "15":
		return true
	}
	return false
}

// keyBytes is the length of the nonce in Sec-WebSocket-Key (RFC 6455 section 4.1).
const keyBytes = 16

// upgrades says whether the upgrader would take the request: what it would refuse must not have a backend dialled for it.
func upgrades(ctx *fasthttp.RequestCtx) bool {
	h := &ctx.Request.Header
	key, err := base64.StdEncoding.Strict().DecodeString(string(h.Peek("Sec-WebSocket-Key")))
	return ctx.IsGet() && h.IsHTTP11() && websocket.FastHTTPIsWebSocketUpgrade(ctx) && string(h.Peek("Sec-WebSocket-Version")) == "13" && err == nil && len(key) == keyBytes
}
