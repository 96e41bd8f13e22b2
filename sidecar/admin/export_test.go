package admin

// RouteInfo is what tests may know of a route.
type RouteInfo struct {
	Method, Path, Summary string
	Open, Body, Query     bool
}

// Routes lists the table.
func Routes() (list []RouteInfo) {
	for _, r := range (&Server{}).table() {
		list = append(list, RouteInfo{r.method, r.path, r.summary, r.open, r.body != nil, r.query != nil})
	}
	return list
}

// Document is the OpenAPI document.
func Document() ([]byte, error) { return document((&Server{}).table()) }
