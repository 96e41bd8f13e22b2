package admin

import (
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"fairlead/shared/adminapi"
	"fairlead/shared/config"
	"fairlead/shared/errs"
)

type object = adminapi.Object

const about = "How a sidecar is, and what a person or a program on the same machine may ask of it. Every refusal is told as the schema Error; its " +
	"code has a section in docs/troubleshooting.md. Fields may be added to answers."

// document describes the routes as an OpenAPI 3.1 document.
func document(routes []route) ([]byte, error) {
	s := adminapi.NewSchemas(map[reflect.Type]string{reflect.TypeFor[errs.Answer](): "Error", reflect.TypeFor[config.Entry](): "Setting", reflect.TypeFor[done](): "Done",
		reflect.TypeFor[level](): "Level"})
	paths, responses := object{}, object{}
	for _, r := range routes {
		item, ok := paths[r.path].(object)
		if !ok {
			item = object{}
			paths[r.path] = item
		}
		item[strings.ToLower(r.method)] = r.operation(s)
	}
	for status, list := range refused(routes) {
		responses[name(status)] = object{"description": strings.Join(list, "; ") + ".",
			"content": object{"application/json": object{"schema": s.Of(reflect.TypeFor[errs.Answer]())}}}
	}
	raw, err := json.MarshalIndent(object{
		"openapi": "3.1.0", "info": object{"title": "fairlead sidecar, admin API", "version": "1", "description": about}, "servers": []object{{"url": "/"}},
		"paths": paths, "components": object{"schemas": s.Found, "responses": responses},
	}, "", "  ")
	return append(raw, '\n'), err
}

func (r *route) operation(s *adminapi.Schemas) object {
	who := "For programs on the same machine."
	if r.open {
		who = "For everybody who can connect."
	}
	codes := []string{}
	for _, c := range r.refusals() {
		codes = append(codes, c.String())
	}
	op := object{"operationId": r.id(), "summary": strings.ToUpper(r.summary[:1]) + r.summary[1:] + ".", "description": who, "x-codes": codes, "responses": r.responses(s)}
	if r.query != nil {
		var parameters []object
		for _, f := range adminapi.Fields(reflect.TypeOf(r.query).Elem()) {
			schema := adminapi.Given(f)
			delete(schema, "description")
			parameters = append(parameters, object{"name": f.Name, "in": "query", "required": f.Required, "description": f.Doc, "schema": schema})
		}
		op["parameters"] = parameters
	}
	if r.body != nil {
		t := reflect.TypeOf(r.body).Elem()
		content := object{"application/json": object{"schema": s.Request(t)}}
		for _, f := range adminapi.Fields(t) {
			if f.Name == r.word {
				content["text/plain"] = object{"schema": adminapi.Given(f)}
			}
		}
		op["requestBody"] = object{"required": true, "content": content}
	}
	return op
}

// id is the method and the words of the path.
func (r *route) id() string {
	id := strings.ToLower(r.method)
	for _, word := range strings.FieldsFunc(r.path, func(c rune) bool { return strings.ContainsRune("/.-", c) }) {
		id += strings.ToUpper(word[:1]) + word[1:]
	}
	return id
}

func (r *route) responses(s *adminapi.Schemas) object {
	success := object{"description": http.StatusText(r.status)}
	switch {
	case r.answer != nil:
		success["content"] = object{"application/json": object{"schema": s.Of(reflect.TypeOf(r.answer))}}
	case r.media == "application/json":
		success["content"] = object{r.media: object{}} // this document
	default:
		success["content"] = object{r.media: object{"schema": object{"type": "string"}}}
	}
	all := object{strconv.Itoa(r.status): success, "default": object{"$ref": "#/components/responses/" + name(0)}}
	for _, c := range r.refusals() {
		all[strconv.Itoa(c.Info().HTTP)] = object{"$ref": "#/components/responses/" + name(c.Info().HTTP)}
	}
	return all
}

// name of the refusals with a status; 0: with any.
func name(status int) string {
	if status == 0 {
		return "Refused"
	}
	return "Refused" + strconv.Itoa(status)
}

// refused lists what requests are refused for, by the status of the answer.
func refused(routes []route) map[int][]string {
	titles := map[int][]string{0: {"A refusal"}}
	for _, r := range routes {
		for _, c := range r.refusals() {
			status, title := c.Info().HTTP, c.String()+" "+c.Info().Title
			if !slices.Contains(titles[status], title) {
				titles[status] = append(titles[status], title)
			}
		}
	}
	return titles
}

func (s *Server) openapi(w http.ResponseWriter, _ *http.Request) {
	adminapi.Guarded(w.Header())
	w.Header().Set("Content-Type", "application/json")
	w.Write(s.document)
}
