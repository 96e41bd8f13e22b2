package admin

import (
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"

	"fairlead/shared/adminapi"
	"fairlead/shared/errs"
)

// api answers.
type api struct {
	cfg       Config
	tokens    tokens
	limits    *limits
	mux       *http.ServeMux
	document  []byte // OpenAPI
	complaint atomic.Pointer[string]
}

// ServeHTTP implements http.Handler.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

func (a *api) register() {
	a.mux = http.NewServeMux()
	for _, r := range a.routes() {
		a.mux.HandleFunc(r.pattern(), func(w http.ResponseWriter, req *http.Request) {
			a.serve(w, req, r, func(c *call) error { return a.handle(c, r) })
		})
	}
	if a.cfg.Page != nil {
		a.mux.Handle("GET /{$}", a.cfg.Page)
		a.mux.Handle("GET /ui/", a.cfg.Page)
	}
	// Who may not see anything is not told that there is nothing either.
	a.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		a.serve(w, r, &route{role: Viewer}, a.elsewhere)
	})
}

// elsewhere answers OPTIONS, methods that an address does not take, and addresses that do not exist.
func (a *api) elsewhere(c *call) error {
	allowed := a.allowed(c.r)
	if len(allowed) == 0 {
		return errs.New(errs.NotFound, "there is nothing at %.100q", c.r.URL.Path)
	}
	c.w.Header().Set("Allow", strings.Join(allowed, ", "))
	if c.r.Method == http.MethodOptions {
		c.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	c.status = http.StatusMethodNotAllowed
	return errs.New(errs.BadRequest, "%.20q is not for %.100q; allowed are %s", c.r.Method, c.r.URL.Path, strings.Join(allowed, ", "))
}

// allowed are the methods that the request's address takes.
func (a *api) allowed(r *http.Request) []string {
	var methods []string
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete} {
		probe := &http.Request{Method: method, URL: r.URL, Host: r.Host}
		if _, pattern := a.mux.Handler(probe); pattern != "/" && pattern != "" {
			methods = append(methods, method)
		}
	}
	if len(methods) > 0 {
		methods = append(methods, http.MethodOptions)
	}
	return methods
}

// handle reads a request, does what it asks, and answers.
func (a *api) handle(c *call, r *route) error {
	in, err := read(c, r)
	if err == nil && r.has != nil && !r.has(&a.cfg) {
		err = errs.New(errs.NotFound, "this gateway does not have what %s needs", r.listed())
	}
	if err == nil && r.changes {
		err = a.recordChange(c, in)
	}
	if err != nil {
		return err
	}
	if r.raw != nil {
		r.raw(c.w, c.r)
		return nil
	}
	answer, err := r.do(c, in)
	if err != nil {
		return err
	}
	status := r.status
	if status == 0 {
		status = http.StatusOK
	}
	if r.answer == nil {
		c.w.WriteHeader(status)
		return nil
	}
	adminapi.Answer(c.w, status, answer)
	return nil
}

// read reads query and body.
func read(c *call, r *route) (in input, err error) {
	if r.free || r.role == Anyone {
		return in, nil
	}
	in = input{query: fresh(r.query), body: fresh(r.body)}
	if err = adminapi.Query(c.r, in.query); err != nil {
		return in, err
	}
	if err = adminapi.Body(c.w, c.r, in.body, r.word); err != nil {
		return in, err
	}
	if v, ok := in.body.(interface{ valid() error }); ok {
		err = v.valid()
	}
	return in, err
}

// fresh makes a new struct of the type that prototype points to; nil: an empty one.
func fresh(prototype any) any {
	if prototype == nil {
		return &struct{}{}
	}
	return reflect.New(reflect.TypeOf(prototype).Elem()).Interface()
}

func (a *api) openapi(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Write(a.document)
}
