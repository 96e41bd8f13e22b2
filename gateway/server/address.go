package server

import (
	"bytes"
	"net"
	"net/netip"
	"strings"

	"github.com/valyala/fasthttp"
)

// clientAddr is the address of the client: the first one, from the right, in X-Forwarded-For that is no trusted proxy's,
// if the connection comes from a trusted proxy. Proxies that add a header of their own instead of extending the client's
// add it as the last one, so all of them count, in their order. What is left of that address a client may have made up.
func (s *Server) clientAddr(ctx *fasthttp.RequestCtx) netip.Addr {
	addr := peerAddr(ctx.RemoteAddr())
	if !s.trusted(addr) {
		return addr
	}
	rest := string(bytes.Join(ctx.Request.Header.PeekAll("X-Forwarded-For"), []byte(",")))
	for more := true; more && s.trusted(addr); {
		var entry string
		rest, entry, more = cutLast(rest)
		next, ok := forwarded(entry)
		if !ok {
			break
		}
		addr = next
	}
	return addr
}

// cutLast cuts the last entry off a list; more says whether it was not the only one.
func cutLast(list string) (rest, last string, more bool) {
	i := strings.LastIndexByte(list, ',')
	if i < 0 {
		return "", list, false
	}
	return list[:i], list[i+1:], true
}

// forwarded reads an entry of X-Forwarded-For: an address, as some proxies write it with a port or in brackets.
func forwarded(entry string) (netip.Addr, bool) {
	entry = strings.TrimSpace(entry)
	addr, err := netip.ParseAddr(entry)
	if err != nil {
		if inner, ok := strings.CutPrefix(entry, "["); ok && strings.HasSuffix(inner, "]") {
			addr, err = netip.ParseAddr(inner[:len(inner)-1])
		} else {
			var pair netip.AddrPort
			pair, err = netip.ParseAddrPort(entry)
			addr = pair.Addr()
		}
	}
	return addr.WithZone("").Unmap(), err == nil
}

func peerAddr(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

func (s *Server) trusted(addr netip.Addr) bool {
	for _, p := range s.cfg.TrustedProxies {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
