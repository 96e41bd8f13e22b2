package audit

import (
	"net/netip"
	"strconv"
	"strings"
)

// AppendCEF appends the line as one of ArcSight's Common Event Format (CEF:0, implementation standard 26), without a
// newline. Fields that CEF has no key for are custom strings with their labels, or keys that begin with "fairlead".
func AppendCEF(b []byte, l *Line, version string) []byte {
	b = append(b, "CEF:0|fairlead|gateway|"...)
	for _, s := range []string{version, l.Action, name(l)} {
		b = appendHeader(b, s)
	}
	b = strconv.AppendInt(b, int64(severity(l)), 10)
	b = append(b, '|')
	e := extension{b: b}
	e.add("rt", strconv.FormatInt(l.at.UnixMilli(), 10))
	e.add("externalId", strconv.FormatUint(l.Seq, 10))
	e.add("dvchost", l.Instance)
	e.add("act", l.Action)
	e.add("outcome", l.Result)
	e.add("suser", l.Actor)
	e.client(l.Client)
	e.add("reason", l.Code)
	e.add("msg", l.Detail)
	e.number("in", l.Received)
	e.number("out", l.Sent)
	e.custom("cs1", "tenant", l.Tenant)
	e.custom("cs2", "route", l.Route)
	e.custom("cs3", "backend", l.Backend)
	e.custom("cs4", "target", l.Target)
	e.custom("cs5", "pod", l.Pod)
	e.custom("cs6", "tunnel", l.Tunnel)
	e.custom("flexString1", "stream", l.Stream)
	e.custom("flexString2", "trace", l.Trace)
	if l.DurationMS > 0 {
		e.custom("cfp1", "duration_ms", strconv.FormatFloat(l.DurationMS, 'f', -1, 64))
	}
	e.add("fairleadIssuer", l.Issuer)
	e.add("fairleadTokenId", l.TokenID)
	e.add("fairleadLog", l.kind())
	e.add("fairleadPrev", l.Prev)
	return e.b
}

// name is what a person reads first.
func name(l *Line) string { return strings.ReplaceAll(l.Action, "_", " ") + " " + l.Result }

// severity is from 0 to 10.
func severity(l *Line) int {
	switch {
	case l.Action == string(Losses):
		return 9
	case l.Action == string(HostKey) && l.Result != string(Allowed):
		return 8
	case l.Result == string(Refused):
		return 6
	case l.Result == string(Failed), l.Action == string(Revoke):
		return 5
	case l.Action == string(Administer), l.Action == string(Configuration), l.Action == string(HostKey):
		return 4
	}
	return 2
}

func appendHeader(b []byte, s string) []byte {
	b = append(b, headerEscapes.Replace(s)...)
	return append(b, '|')
}

// Replacers are immutable. In the header a newline cannot be written at all; in a value it is \n.
var (
	headerEscapes = strings.NewReplacer(`\`, `\\`, `|`, `\|`, "\r\n", " ", "\n", " ", "\r", " ")
	valueEscapes  = strings.NewReplacer(`\`, `\\`, `=`, `\=`, "\n", `\n`, "\r", `\r`)
)

// extension is the part of key=value pairs.
type extension struct {
	b    []byte
	some bool
}

func (e *extension) add(key, value string) {
	if value == "" {
		return
	}
	if e.some {
		e.b = append(e.b, ' ')
	}
	e.some = true
	e.b = append(e.b, key...)
	e.b = append(e.b, '=')
	e.b = append(e.b, valueEscapes.Replace(value)...)
}

func (e *extension) number(key string, n uint64) {
	if n > 0 {
		e.add(key, strconv.FormatUint(n, 10))
	}
}

func (e *extension) custom(key, label, value string) {
	if value != "" {
		e.add(key+"Label", label)
		e.add(key, value)
	}
}

// client is the client's address: CEF has different keys for IPv4 (src) and IPv6.
func (e *extension) client(s string) {
	addr, port := s, ""
	if ap, err := netip.ParseAddrPort(s); err == nil {
		addr, port = ap.Addr().Unmap().String(), strconv.Itoa(int(ap.Port()))
	}
	ip, err := netip.ParseAddr(addr)
	switch {
	case err != nil:
		e.add("shost", s)
		return
	case ip.Unmap().Is4():
		e.add("src", ip.Unmap().String())
	default:
		e.custom("c6a2", "Source IPv6 Address", ip.String())
	}
	e.add("spt", port)
}
