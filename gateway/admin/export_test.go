package admin

import "net/http"

// RouteInfo is what tests may know of a route.
type RouteInfo struct {
	Method, Path, Listed, Summary, Group string
	Role                                 Role
	Changes, Closes, Free, Raw, Body     bool
}

// RoutesOf lists the table.
func RoutesOf(cfg Config) []RouteInfo {
	var list []RouteInfo
	for _, r := range (&api{cfg: cfg}).routes() {
		list = append(list, RouteInfo{r.method, r.path, r.listed(), r.summary, r.group, r.role, r.changes, r.closes, r.free, r.raw != nil, r.body != nil})
	}
	return list
}

// Document is the OpenAPI document.
func Document(cfg Config) ([]byte, error) { return openAPI((&api{cfg: cfg}).routes()) }

// Handler answers without a listener.
func Handler(cfg Config) (http.Handler, error) { return newAPI(cfg) }

// Bearer reads the header Authorization.
func Bearer(h http.Header) (string, error) { return bearer(h) }

// Cursor reads a cursor and writes it again.
func Cursor(s string) (string, error) {
	p, err := parseCursor(s)
	if p == nil {
		return "", err
	}
	return p.cursor(), nil
}
