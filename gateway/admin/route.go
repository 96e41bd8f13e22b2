package admin

import (
	"net/http"
	"strings"

	"fairlead/shared/errs"
)

// route is one request that the API takes. The table of routes decides who may ask, what is read and answered, and is what
// the documentation is made from.
type route struct {
	method, path string // as net/http's ServeMux takes them
	role         Role
	group        string // of the documentation
	summary      string // what the answer is, or what it does
	changes      bool   // it is recorded before it takes effect
	closes       bool   // it only takes away: it is done also when it cannot be recorded, which the log then says

	query  any    // a pointer to the struct that the query is read into; nil: there must be none
	body   any    // a pointer to the struct that the body is read into; nil: there must be none
	word   string // the field of body that a body of plain text is
	status int    // of success; 0: 200
	answer any    // a value of the type that is answered as JSON; nil: media says what it is
	media  string // content type of an answer that is no JSON; empty with a nil answer: there is no body
	codes  []errs.Code

	has func(*Config) bool                       // says whether this gateway offers it; nil: always
	do  func(*call, input) (answer any, _ error) // makes the answer
	raw http.HandlerFunc                         // answers by itself, instead of do

	free bool // raw reads query and body by itself
}

// input is what was read of a request: pointers to new structs of the types that the route names.
type input struct{ query, body any }

func (r *route) pattern() string { return r.method + " " + r.path }

// listed is the path as documentation has it.
func (r *route) listed() string { return strings.ReplaceAll(r.path, "{$}", "") }

// refusals are the codes that a request may be refused with.
func (r *route) refusals() []errs.Code {
	var codes []errs.Code
	if r.role != Anyone {
		codes = append(codes, errs.AdminDenied, errs.KeyUnreadable, errs.RequestLimit)
	}
	if r.role == Operator {
		codes = append(codes, errs.RoleForbidden)
	}
	if r.role != Anyone && !r.free {
		codes = append(codes, errs.BadRequest)
	}
	if strings.Contains(r.listed(), "{") || r.has != nil {
		codes = append(codes, errs.NotFound)
	}
	if r.changes && !r.closes {
		codes = append(codes, errs.AuditFailed)
	}
	return append(codes, r.codes...)
}
