package admin

import (
	"encoding/json"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"fairlead/shared/adminapi"
	"fairlead/shared/config"
	"fairlead/shared/errs"
)

// object is a JSON object of the document.
type object = adminapi.Object

const about = "What a gateway does, and what may be changed while it runs. Every refusal is told as the schema Error; its code has a " +
	"section in docs/troubleshooting.md. Fields may be added to answers; requests with fields that are not known are refused."

// openAPI describes the routes as an OpenAPI 3.1 document.
func openAPI(routes []*route) ([]byte, error) {
	s := adminapi.NewSchemas(map[reflect.Type]string{reflect.TypeFor[errs.Answer](): "Error", reflect.TypeFor[config.Entry](): "Setting"})
	paths := object{}
	for _, r := range routes {
		item, ok := paths[r.listed()].(object)
		if !ok {
			item = object{}
			paths[r.listed()] = item
		}
		item[strings.ToLower(r.method)] = operation(r, s)
	}
	tags := []object{}
	for _, r := range routes {
		if !slices.ContainsFunc(tags, func(t object) bool { return t["name"] == r.group }) {
			tags = append(tags, object{"name": r.group})
		}
	}
	document := object{
		"openapi":  "3.1.0",
		"info":     object{"title": "fairlead gateway, admin API", "version": "1", "description": about},
		"servers":  []object{{"url": "/"}},
		"tags":     tags,
		"security": []object{{"token": []string{}}},
		"paths":    paths,
		"components": object{
			"schemas":         s.Found,
			"responses":       refusals(routes, s),
			"securitySchemes": object{"token": object{"type": "http", "scheme": "bearer", "description": "The content of admin.token_file, or of a file of admin.tokens."}},
			"headers":         commonHeaders(),
		},
	}
	raw, err := json.MarshalIndent(document, "", "  ")
	return append(raw, '\n'), err
}

func commonHeaders() object {
	number := func(what string) object {
		return object{"description": what, "schema": object{"type": "integer", "minimum": 0}}
	}
	return object{
		"X-Request-Id":          object{"description": "By which the logs know the request.", "required": true, "schema": object{"type": "string", "pattern": "^[0-9a-f]{16}$"}},
		"X-RateLimit-Limit":     number("Requests that the caller may make in a minute."),
		"X-RateLimit-Remaining": number("How many are left now."),
		"X-RateLimit-Reset":     number("Seconds until all are left again."),
		"Retry-After":           number("Seconds until trying again may help."),
		"X-Total-Count":         number("How many there are on all pages."),
		"Link":                  object{"description": "The next page, rel=\"next\"; not there: this is the last one.", "schema": object{"type": "string"}},
	}
}

func headers(names ...string) object {
	all := object{}
	for _, name := range names {
		all[name] = object{"$ref": "#/components/headers/" + name}
	}
	return all
}

func operation(r *route, s *adminapi.Schemas) object {
	op := object{
		"operationId": operationID(r),
		"tags":        []string{r.group},
		"summary":     strings.ToUpper(r.summary[:1]) + r.summary[1:] + ".",
		"description": "For the role " + string(r.role) + " and above.",
		"x-role":      r.role,
		"x-codes":     codesOf(r),
		"responses":   responses(r, s),
	}
	if r.role == Anyone {
		op["description"], op["security"] = "For everybody who can connect.", []object{}
	}
	if parameters := append(inPath(r), inQuery(r)...); len(parameters) > 0 {
		op["parameters"] = parameters
	}
	if r.body != nil {
		op["requestBody"] = body(r, s)
	}
	return op
}

// operationID is the method and the words of the path.
func operationID(r *route) string {
	id := strings.ToLower(r.method)
	for _, word := range strings.FieldsFunc(r.listed(), func(c rune) bool { return strings.ContainsRune("/}.-", c) }) {
		if after, parameter := strings.CutPrefix(word, "{"); parameter {
			word = after
			id += "By"
		}
		id += strings.ToUpper(word[:1]) + word[1:]
	}
	return id
}

var pathParameter = regexp.MustCompile(`\{(\w+)\}`)

func inPath(r *route) (parameters []object) {
	for _, m := range pathParameter.FindAllStringSubmatch(r.listed(), -1) {
		parameters = append(parameters, object{"name": m[1], "in": "path", "required": true, "schema": object{"type": "string", "minLength": 1}})
	}
	return parameters
}

func inQuery(r *route) (parameters []object) {
	if r.query == nil {
		return nil
	}
	for _, f := range adminapi.Fields(reflect.TypeOf(r.query).Elem()) {
		parameters = append(parameters, object{"name": f.Name, "in": "query", "required": f.Required, "description": f.Doc, "schema": withoutDoc(adminapi.Given(f))})
	}
	return parameters
}

func withoutDoc(schema object) object {
	delete(schema, "description")
	return schema
}

func body(r *route, s *adminapi.Schemas) object {
	t := reflect.TypeOf(r.body).Elem()
	content := object{"application/json": object{"schema": s.Request(t)}}
	for _, f := range adminapi.Fields(t) {
		if f.Name == r.word {
			content["text/plain"] = object{"schema": adminapi.Given(f)}
		}
	}
	return object{"required": true, "content": content}
}

func responses(r *route, s *adminapi.Schemas) object {
	status := orElse(r.status, http.StatusOK)
	own := headers("X-Request-Id")
	if r.role != Anyone {
		own = headers("X-Request-Id", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")
	}
	if r.paged() {
		own["Link"], own["X-Total-Count"] = headers("Link")["Link"], headers("X-Total-Count")["X-Total-Count"]
	}
	success := object{"description": http.StatusText(status), "headers": own}
	switch {
	case r.answer != nil:
		success["content"] = object{"application/json": object{"schema": s.Of(reflect.TypeOf(r.answer))}}
	case r.media == "application/json":
		success["content"] = object{r.media: object{}} // this document
	case r.media == binary:
		success["content"] = object{binary: object{}, plainText: object{"schema": object{"type": "string"}}}
	case r.media != "":
		success["content"] = object{r.media: object{"schema": object{"type": "string"}}}
	}
	all := object{strconv.Itoa(status): success}
	for _, c := range r.refusals() {
		all[strconv.Itoa(c.Info().HTTP)] = object{"$ref": "#/components/responses/" + refusedName(c.Info().HTTP)}
	}
	all["default"] = object{"$ref": "#/components/responses/" + refusedName(0)}
	return all
}

// paged says whether the answer is a page of a list.
func (r *route) paged() bool {
	if r.query == nil || r.answer == nil {
		return false
	}
	_, paged := reflect.TypeOf(r.query).Elem().FieldByName("Limit")
	return paged && reflect.TypeOf(r.answer).Kind() == reflect.Slice
}

func refusedName(status int) string {
	if status == 0 {
		return "Refused"
	}
	return "Refused" + strconv.Itoa(status)
}

// refusals are the answers under which requests are refused, one for each status, by name.
func refusals(routes []*route, s *adminapi.Schemas) object {
	titles := map[int][]string{0: {"A refusal"}}
	for _, r := range routes {
		for _, c := range r.refusals() {
			status, title := c.Info().HTTP, c.String()+" "+c.Info().Title
			if !slices.Contains(titles[status], title) {
				titles[status] = append(titles[status], title)
			}
		}
	}
	all := object{}
	for status, list := range titles {
		all[refusedName(status)] = object{"description": strings.Join(list, "; ") + ".",
			"headers": headers("X-Request-Id", "Retry-After", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"),
			"content": object{"application/json": object{"schema": s.Of(reflect.TypeFor[errs.Answer]())}}}
	}
	return all
}

func codesOf(r *route) []string {
	codes := []string{}
	for _, c := range r.refusals() {
		codes = append(codes, c.String())
	}
	return codes
}
