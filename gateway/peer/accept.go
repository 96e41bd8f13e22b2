package peer

import (
	"context"
	"encoding/base64"
	"fmt"
	"runtime/debug"

	"github.com/fasthttp/websocket"
	"github.com/valyala/fasthttp"

	"fairlead/shared/errs"
	"fairlead/shared/lifecycle"
	"fairlead/shared/link"
	"fairlead/shared/logging"
	"fairlead/shared/ws"
)

// handle answers another replica. fasthttp recovers from nothing, so a panic is answered here.
func (p *Peer) handle(ctx *fasthttp.RequestCtx) {
	defer func() {
		if v := recover(); v != nil {
			p.cfg.Logger.Error("panic in a call of a replica", logging.FieldCode, errs.Panicked.String(), "panic", fmt.Sprint(v), logging.FieldStack, string(debug.Stack()))
			answer(ctx, errs.New(errs.Internal, "internal error"))
		}
	}()
	if err := p.call(ctx); err != nil {
		answer(ctx, err)
	}
}

// call takes a tunnel that came to another replica, or says why not.
func (p *Peer) call(ctx *fasthttp.RequestCtx) error {
	if string(ctx.Request.Header.RequestURI()) != path {
		return errs.New(errs.NotFound, "there is nothing but %s here", path)
	}
	c, err := parseCall(ctx.Request.Header.PeekAll)
	if err != nil {
		return err
	}
	if c.replica != "" && c.replica != p.cfg.Replica {
		return errs.New(errs.OwnerGone, "the replica %s, which held the tunnel, is gone; at its address is %s now", c.replica, p.cfg.Name)
	}
	if err := c.fits(); err != nil {
		return err
	}
	if !upgrades(ctx) {
		return errs.New(errs.BadRequest, "this address is for WebSocket upgrades with the subprotocol %s", link.Subprotocol)
	}
	admitting, cancel := context.WithTimeout(p.ctx, admitTimeout)
	defer cancel()
	accept, err := p.cfg.Admit(admitting, c.Call)
	if err != nil {
		return err
	}
	_ = p.upgrader.Upgrade(ctx, func(conn *websocket.Conn) { // a refusal is answered by the upgrader
		if err := p.accept(conn, c, accept); err != nil {
			p.cfg.Logger.Error("cannot use a replica's connection", append(logging.Error(err), logging.FieldTunnel, c.Tunnel.String(), "via", c.Via)...)
			_ = conn.Close()
		}
	})
	return nil
}

// fits makes sure that the handshake which was transferred is for the tunnel that is called.
func (c callHeader) fits() error {
	hs, err := link.Transferred(nil, c.transfer)
	if err != nil {
		return err
	}
	if id, _ := hs.Tunnel(); id != c.Tunnel {
		return errs.New(errs.ProtocolViolation, "the handshake is for another tunnel than the call")
	}
	return nil
}

// accept gives an upgraded connection away. When it returns, fasthttp takes the request's memory back.
func (p *Peer) accept(c *websocket.Conn, call callHeader, accept func(link.Conn, *link.Handshake)) error {
	if !p.enter() {
		return errs.New(errs.ShuttingDown, "the gateway is shutting down")
	}
	defer p.served.Done()
	return lifecycle.Guard(p.cfg.Logger, "handshake through another replica", func() error {
		conn, err := ws.New(c, p.cfg.MaxMessage)
		if err != nil {
			return err
		}
		hs, err := link.Transferred(conn, call.transfer)
		if err == nil {
			accept(conn, hs)
		}
		return err
	})
}

// upgrades says whether the upgrader would take the request: what it would refuse is not to be admitted.
func upgrades(ctx *fasthttp.RequestCtx) bool {
	h := &ctx.Request.Header
	key, err := base64.StdEncoding.Strict().DecodeString(string(h.Peek("Sec-WebSocket-Key")))
	return ctx.IsGet() && h.IsHTTP11() && websocket.FastHTTPIsWebSocketUpgrade(ctx) && string(h.Peek("Sec-WebSocket-Version")) == "13" && err == nil && len(key) == keyBytes &&
		string(h.Peek("Sec-WebSocket-Protocol")) == link.Subprotocol
}

// keyBytes is the length of the nonce in Sec-WebSocket-Key (RFC 6455 section 4.1).
const keyBytes = 16

// answer tells an error as JSON.
func answer(ctx *fasthttp.RequestCtx, err error) {
	status, body := errs.HTTP(errs.Outward(err))
	ctx.Response.Reset()
	ctx.SetConnectionClose()
	ctx.SetStatusCode(status)
	ctx.SetContentType("application/json")
	for _, field := range errs.Headers(err) {
		ctx.Response.Header.Set(field[0], field[1])
	}
	ctx.SetBody(append(body, '\n'))
}

// malformed answers what fasthttp could not parse. What it says about that may quote a token.
func malformed(ctx *fasthttp.RequestCtx, _ error) {
	answer(ctx, errs.New(errs.BadRequest, "the request is not understood: it is not HTTP/1.1, or its header is over %d bytes or late", headerBuffer))
}
