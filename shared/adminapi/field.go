package adminapi

import (
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Field is one field of a struct that a request's body or query is read into. Tags say what is allowed, for reading and
// for the documentation alike:
//
//	json      its name
//	doc       one sentence
//	required  "true": it must be given and must not be empty
//	enum      the values allowed, with commas between
//	min, max  of a number its value, of a text its length in bytes
type Field struct {
	Name     string
	Doc      string
	Required bool
	Enum     []string
	Min, Max *int64
	Type     reflect.Type // of string, int, int64, uint64, bool or time.Time
	index    int
}

// Fields lists the fields of a struct type.
func Fields(t reflect.Type) []Field {
	var fields []Field
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		field := Field{Name: name, Doc: f.Tag.Get("doc"), Required: f.Tag.Get("required") == "true", Min: number(f.Tag.Get("min")),
			Max: number(f.Tag.Get("max")), Type: f.Type, index: i}
		if enum := f.Tag.Get("enum"); enum != "" {
			field.Enum = strings.Split(enum, ",")
		}
		fields = append(fields, field)
	}
	return fields
}

func number(s string) *int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return nil
	}
	return &n
}

// Wants says in words what the field takes.
func (f Field) Wants() string {
	if len(f.Enum) > 0 {
		return "one of " + strings.Join(f.Enum, ", ")
	}
	what := map[reflect.Kind]string{reflect.Bool: "true or false", reflect.String: "a text"}[f.Type.Kind()]
	unit := " bytes"
	switch {
	case f.Type == reflect.TypeFor[time.Time]():
		return "a time such as 2026-11-24T06:00:00Z"
	case what == "":
		what, unit = "a whole number", ""
	}
	if f.Min != nil {
		what += " of at least " + strconv.FormatInt(*f.Min, 10) + unit
	}
	if f.Max != nil {
		what += map[bool]string{true: " and", false: " of"}[f.Min != nil] + " at most " + strconv.FormatInt(*f.Max, 10) + unit
	}
	return what
}
