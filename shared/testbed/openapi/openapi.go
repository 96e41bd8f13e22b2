// Package openapi checks HTTP requests and answers against an OpenAPI 3.1 document.
package openapi

import (
	"bytes"
	_ "embed"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
)

//go:embed openapi-3.1.schema.json
var specification []byte

// object is a JSON object.
type object = map[string]any

// Checker has a document.
type Checker struct {
	document object
	compiler *jsonschema.Compiler
}

// address is what the compiler knows the document by.
const address = "document:///openapi.json"

// New takes a document, which must be valid itself: by the specification's schema, with schemas that can be compiled,
// references that lead somewhere, unique operations, and no parameter of a path that is not described.
func New(t *testing.T, raw []byte) *Checker {
	t.Helper()
	document := parse(t, raw).(object)
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	spec := parse(t, specification)
	require.NoError(t, compiler.AddResource("specification:///", spec))
	schema, err := compiler.Compile("specification:///")
	require.NoError(t, err)
	require.NoError(t, schema.Validate(document), "the document is no OpenAPI 3.1")

	strict := parse(t, raw).(object)
	closeObjects(at(strict, "components", "schemas"))
	require.NoError(t, compiler.AddResource(address, strict))
	c := &Checker{document: document, compiler: compiler}
	for name := range at(document, "components", "schemas") {
		_, err := compiler.Compile(address + "#/components/schemas/" + name)
		require.NoError(t, err)
	}
	c.references(t, document)
	c.operations(t)
	return c
}

func parse(t *testing.T, raw []byte) any {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	require.NoError(t, err)
	return v
}

// at follows keys through objects; what is not there is empty.
func at(o object, keys ...string) object {
	for _, key := range keys {
		o, _ = o[key].(object)
	}
	return o
}

// closeObjects makes schemas refuse fields that they do not have, unless they say otherwise: documents leave them open for later
// versions, but this version has no others.
func closeObjects(v any) {
	o, _ := v.(object)
	if _, open := o["additionalProperties"]; o["properties"] != nil && !open {
		o["additionalProperties"] = false
	}
	for _, inner := range o {
		closeObjects(inner)
		list, _ := inner.([]any)
		for _, item := range list {
			closeObjects(item)
		}
	}
}

// references checks that each reference below v leads somewhere in the document.
func (c *Checker) references(t *testing.T, v any) {
	t.Helper()
	switch v := v.(type) {
	case object:
		if ref, ok := v["$ref"].(string); ok {
			require.NotNil(t, c.resolve(v), "%s leads nowhere", ref)
		}
		for _, inner := range v {
			c.references(t, inner)
		}
	case []any:
		for _, inner := range v {
			c.references(t, inner)
		}
	}
}

// resolve follows a reference, if o is one.
func (c *Checker) resolve(o object) object {
	ref, ok := o["$ref"].(string)
	if !ok {
		return o
	}
	return at(c.document, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
}

var parameter = regexp.MustCompile(`\{(\w+)\}`)

func (c *Checker) operations(t *testing.T) {
	t.Helper()
	ids := map[any]bool{}
	for path := range at(c.document, "paths") {
		for method := range at(c.document, "paths", path) {
			operation := at(c.document, "paths", path, method)
			id := operation["operationId"]
			require.False(t, ids[id], "two operations have the id %v", id)
			ids[id] = true
			var described, named []string
			for _, p := range parameters(operation, "path") {
				described = append(described, p["name"].(string))
			}
			for _, m := range parameter.FindAllStringSubmatch(path, -1) {
				named = append(named, m[1])
			}
			require.ElementsMatch(t, named, described, "parameters of %s", path)
		}
	}
}

func parameters(operation object, in string) (all []object) {
	list, _ := operation["parameters"].([]any)
	for _, p := range list {
		if o := p.(object); o["in"] == in {
			all = append(all, o)
		}
	}
	return all
}

// find is the path that the document has for a request's: one without parameters if there are several.
func (c *Checker) find(path string) string {
	best := ""
	for template := range at(c.document, "paths") {
		pattern := "^" + parameter.ReplaceAllString(template, `[^/]+`) + "$"
		if regexp.MustCompile(pattern).MatchString(path) && (best == "" || !strings.Contains(template, "{")) {
			best = template
		}
	}
	return best
}

// Request says what of a request the document does not allow.
func (c *Checker) Request(r *http.Request, body string) (problems []string) {
	template, method := c.find(r.URL.Path), strings.ToLower(r.Method)
	operation := at(c.document, "paths", template, method)
	if operation == nil {
		return []string{"there is no " + r.Method + " " + r.URL.Path}
	}
	here := []string{"paths", template, method}
	described, _ := operation["parameters"].([]any)
	for name, values := range r.URL.Query() {
		i := slices.IndexFunc(described, func(p any) bool { return p.(object)["name"] == name && p.(object)["in"] == "query" })
		if i < 0 {
			problems = append(problems, "there is no parameter "+name)
			continue
		}
		problems = append(problems, c.text(values[0], append(here, "parameters", strconv.Itoa(i), "schema")...)...)
	}
	if _, takes := operation["requestBody"]; takes != (body != "") {
		return append(problems, "a body is there and should not be, or the other way round")
	}
	if body != "" {
		problems = append(problems, c.content(append(here, "requestBody", "content"), r.Header.Get("Content-Type"), body)...)
	}
	return problems
}

// Answer says what of an answer the document does not allow; fields and headers that it does not have count, too.
func (c *Checker) Answer(r *http.Request, answer *http.Response, body string) (problems []string) {
	template, method := c.find(r.URL.Path), strings.ToLower(r.Method)
	here := []string{"paths", template, method, "responses", strconv.Itoa(answer.StatusCode)}
	response := at(c.document, here...)
	if response == nil {
		here[4] = "default"
		response = at(c.document, here...)
	}
	if response == nil || here[4] == "default" && answer.StatusCode < 400 {
		return []string{fmt.Sprintf("%s %s is not described with status %d", r.Method, r.URL.Path, answer.StatusCode)}
	}
	if ref, ok := response["$ref"].(string); ok {
		here = strings.Split(strings.TrimPrefix(ref, "#/"), "/")
		response = at(c.document, here...)
	}
	problems = c.headers(response, answer.Header)
	if response["content"] == nil {
		if body != "" {
			problems = append(problems, "a body is there and should not be")
		}
		return problems
	}
	return append(problems, c.content(append(here, "content"), answer.Header.Get("Content-Type"), body)...)
}

// headers checks those that a document describes: X-… and some others. The rest is HTTP's own.
func (c *Checker) headers(response object, given http.Header) (problems []string) {
	described := at(response, "headers")
	for name, ref := range described {
		path := strings.Split(strings.TrimPrefix(ref.(object)["$ref"].(string), "#/"), "/")
		header, value := at(c.document, path...), given.Get(name)
		switch {
		case value != "":
			problems = append(problems, c.text(value, append(path, "schema")...)...)
		case header["required"] == true:
			problems = append(problems, "the header "+name+" is missing")
		}
	}
	for name := range given {
		own := strings.HasPrefix(name, "X-") && name != "X-Content-Type-Options" && name != "X-Frame-Options" || name == "Link" || name == "Retry-After"
		known := slices.ContainsFunc(slices.Collect(maps.Keys(described)), func(s string) bool { return strings.EqualFold(s, name) })
		if own && !known {
			problems = append(problems, "the header "+name+" is not described")
		}
	}
	return problems
}

// content checks a body by its type.
func (c *Checker) content(here []string, mediaType, body string) []string {
	kind, _, err := mime.ParseMediaType(mediaType)
	for described := range at(c.document, here...) {
		if known, _, _ := mime.ParseMediaType(described); err == nil && known == kind {
			here = append(here, described)
			if at(c.document, here...)["schema"] == nil {
				return nil
			}
			here = append(here, "schema")
			if kind != "application/json" {
				return c.validate(body, here)
			}
			v, err := jsonschema.UnmarshalJSON(strings.NewReader(body))
			if err != nil {
				return []string{err.Error()}
			}
			return c.validate(v, here)
		}
	}
	return []string{fmt.Sprintf("the type %q is not described", mediaType)}
}

// text checks a text that stands for a value: of a header, or of a query.
func (c *Checker) text(s string, here ...string) []string {
	var v any = s
	if schema := c.lookup(here); schema["type"] == "integer" {
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			v = n
		}
	}
	return c.validate(v, here)
}

// lookup is what is at a place, which may lead through lists.
func (c *Checker) lookup(here []string) object {
	var v any = c.document
	for _, key := range here {
		switch in := v.(type) {
		case object:
			v = in[key]
		case []any:
			i, _ := strconv.Atoi(key)
			v = in[i]
		}
	}
	o, _ := v.(object)
	return o
}

func (c *Checker) validate(v any, here []string) []string {
	pointer := ""
	for _, key := range here {
		pointer += "/" + strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D", " ", "%20", ";", "%3B").Replace(key)
	}
	schema, err := c.compiler.Compile(address + "#" + pointer)
	if err == nil {
		err = schema.Validate(v)
	}
	if err != nil {
		return []string{err.Error()}
	}
	return nil
}
