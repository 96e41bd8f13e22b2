package admin

import (
	"net/http"
	"net/netip"
	"strings"

	"fairlead/shared/adminapi"
	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// caller is who asks.
type caller struct {
	name string // nobody: not known
	role Role
}

// authenticate finds out who asks. Without tokens, programs on this machine are the operators.
func (a *api) authenticate(r *http.Request, addr netip.Addr) (caller, error) {
	if len(a.tokens) == 0 {
		return caller{local, Operator}, adminapi.OnThisMachine(r)
	}
	token, err := bearer(r.Header)
	if err != nil {
		return caller{}, err
	}
	found, problem := a.tokens.find(token)
	if problem != nil {
		a.complain(problem)
	}
	if found != nil {
		return caller{found.Name, found.Role}, nil
	}
	a.limits.fail(addr)
	if problem != nil { // which says whose file it is, and a stranger is not told of files
		return caller{}, errs.New(errs.KeyUnreadable, "the gateway cannot use one of its admin tokens; its log says which")
	}
	return caller{}, errs.New(errs.AdminDenied, "the admin token is wrong")
}

// complain logs a problem with a token file, once until another one comes up.
func (a *api) complain(problem error) {
	text := problem.Error()
	if last := a.complaint.Swap(&text); last == nil || *last != text {
		a.cfg.Logger.Error("an admin token cannot be used", logging.Error(problem)...)
	}
}

// bearer is the token of the header Authorization (RFC 6750 section 2.1), which must be there once.
func bearer(h http.Header) (string, error) {
	all := h.Values("Authorization")
	if len(all) == 0 {
		return "", errs.New(errs.AdminDenied, "the admin token is missing")
	}
	scheme, token, _ := strings.Cut(all[0], " ")
	if len(all) > 1 || !strings.EqualFold(scheme, "Bearer") || !isToken(token) {
		return "", errs.New(errs.AdminDenied, "the header Authorization is not one Bearer token")
	}
	return token, nil
}

// isToken says whether s can be a token: printable ASCII of a length that a file may hold.
func isToken(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return s != "" && len(s) <= maxToken
}

// clientAddr is the network address of the caller.
func clientAddr(r *http.Request) netip.Addr {
	from, _ := netip.ParseAddrPort(r.RemoteAddr) // always host:port
	return from.Addr().Unmap()
}
