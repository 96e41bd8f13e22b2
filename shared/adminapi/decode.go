package adminapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"fairlead/shared/errs"
)

// Body reads a request's body, at most 4 KiB, into the struct that into points to: a JSON object with no other fields
// than the struct's, each at most once, of the right type and among the values allowed. A body that is no JSON object is
// taken as the value of the field named word, unless word is empty. Errors are errs.BadRequest and name the field.
func Body(w http.ResponseWriter, r *http.Request, into any, word string) error {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &big):
		return errs.New(errs.BadRequest, "the body is over %d bytes", bodyLimit)
	case err != nil:
		return errs.New(errs.BadRequest, "the body did not arrive whole")
	case !utf8.Valid(raw):
		return errs.New(errs.BadRequest, "the body is not UTF-8")
	}
	return parse(bytes.TrimSpace(raw), into, word)
}

func parse(raw []byte, into any, word string) error {
	f := newForm(into)
	switch {
	case len(raw) == 0:
	case word != "" && raw[0] != '{':
		if err := f.setText(word, string(raw)); err != nil {
			return err
		}
	default:
		if err := f.readObject(raw); err != nil {
			return err
		}
	}
	return f.check()
}

// Query reads a request's query as Body reads a body. Errors are errs.BadRequest.
func Query(r *http.Request, into any) error {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil || !utf8.ValidString(r.URL.RawQuery) {
		return errs.New(errs.BadRequest, "the query is malformed")
	}
	f := newForm(into)
	for name, all := range values {
		if err := f.setText(name, all[0]); err != nil {
			return err
		}
		if len(all) > 1 {
			return errs.New(errs.BadRequest, "%.64q is given %d times; once is allowed", name, len(all))
		}
	}
	return f.check()
}

// form is a struct that is being filled.
type form struct {
	fields []Field
	into   reflect.Value
	given  map[string]bool
}

func newForm(into any) *form {
	v := reflect.ValueOf(into).Elem()
	return &form{fields: Fields(v.Type()), into: v, given: map[string]bool{}}
}

// field finds a field by its exact name, and notes that it is given.
func (f *form) field(name string) (Field, error) {
	i := slices.IndexFunc(f.fields, func(f Field) bool { return f.Name == name })
	if i < 0 {
		return Field{}, errs.New(errs.BadRequest, "there is no %.64q here; %s", name, f.known())
	}
	if f.given[name] {
		return Field{}, errs.New(errs.BadRequest, "%.64q is given twice", name)
	}
	f.given[name] = true
	return f.fields[i], nil
}

func (f *form) known() string {
	if len(f.fields) == 0 {
		return "nothing is allowed"
	}
	names := make([]string, len(f.fields))
	for i, field := range f.fields {
		names[i] = field.Name
	}
	return "allowed are " + strings.Join(names, ", ")
}

func (f *form) readObject(raw []byte) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return errs.New(errs.BadRequest, "the body is not a JSON object")
	}
	for dec.More() {
		if err := f.readField(dec); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil { // the closing brace
		return errs.New(errs.BadRequest, "the body is not valid JSON")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errs.New(errs.BadRequest, "something follows the JSON object")
	}
	return nil
}

func (f *form) readField(dec *json.Decoder) error {
	name, err := dec.Token()
	key, ok := name.(string)
	if err != nil || !ok {
		return errs.New(errs.BadRequest, "the body is not valid JSON")
	}
	field, err := f.field(key)
	if err != nil {
		return err
	}
	var value json.RawMessage
	if err := dec.Decode(&value); err != nil {
		return errs.New(errs.BadRequest, "%q is not valid JSON", key)
	}
	if string(value) == "null" || json.Unmarshal(value, f.into.Field(field.index).Addr().Interface()) != nil {
		return wrong(field)
	}
	return nil
}

// setText sets a field from plain text.
func (f *form) setText(name, text string) error {
	field, err := f.field(name)
	if err != nil {
		return err
	}
	v := f.into.Field(field.index)
	switch p := v.Addr().Interface().(type) {
	case *string:
		*p = text
	case *bool:
		*p, err = strconv.ParseBool(text)
	case *time.Time:
		*p, err = time.Parse(time.RFC3339Nano, text)
	case *uint64:
		*p, err = strconv.ParseUint(text, 10, 64)
	default:
		var n int64
		n, err = strconv.ParseInt(text, 10, v.Type().Bits())
		v.SetInt(n)
	}
	if err != nil {
		return wrong(field)
	}
	return nil
}

// check says which field lacks or has a value that is not allowed.
func (f *form) check() error {
	for _, field := range f.fields {
		v := f.into.Field(field.index)
		if !f.given[field.Name] {
			if field.Required {
				return errs.New(errs.BadRequest, "%q is missing; it takes %s", field.Name, field.Wants())
			}
			continue
		}
		if !field.allows(v) {
			return wrong(field)
		}
	}
	return nil
}

func wrong(field Field) error {
	return errs.New(errs.BadRequest, "%q takes %s", field.Name, field.Wants())
}

// allows checks a value; without a lower bound, a number must not be negative and a required text must not be empty.
func (f Field) allows(v reflect.Value) bool {
	var size int64
	switch v.Kind() {
	case reflect.String:
		size = int64(v.Len())
		if len(f.Enum) > 0 && !slices.Contains(f.Enum, v.String()) || f.Required && size == 0 {
			return false
		}
	case reflect.Int, reflect.Int64:
		size = v.Int()
	case reflect.Uint64:
		size = int64(min(v.Uint(), 1<<63-1))
	default:
		return true
	}
	least := int64(0)
	if f.Min != nil {
		least = *f.Min
	}
	return size >= least && (f.Max == nil || size <= *f.Max)
}
