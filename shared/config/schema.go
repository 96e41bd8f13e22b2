package config

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

type kind int

const (
	kindString kind = iota
	kindSecret
	kindBool
	kindInt
	kindDuration
	kindBytes
	kindStrings
	kindStruct
	kindList // of structs
	kindMap  // from names to structs
)

// field is one key of the schema.
type field struct {
	key    string
	kind   kind
	index  []int        // where it is in the struct that it belongs to, for reflect's FieldByIndex
	elem   reflect.Type // the struct type of a struct, list or map
	fields []*field     // keys of that struct

	doc, example, allowed string
	enum                  []string
	min                   int64
	max                   *int64
	secret                string // "", "true" or "url"
}

var (
	secretType   = reflect.TypeFor[logging.Secret]()
	durationType = reflect.TypeFor[time.Duration]()
	bytesType    = reflect.TypeFor[Bytes]()
	stringsType  = reflect.TypeFor[[]string]()
)

// schemaOf reads the tags of T. A mistake in them is an errs.Internal error: the program's, not its user's.
func schemaOf[T any]() (*field, error) {
	root := &field{kind: kindStruct, elem: reflect.TypeFor[T]()}
	if root.elem.Kind() != reflect.Struct {
		return nil, errs.New(errs.Internal, "config: %s is not a struct", root.elem)
	}
	var err error
	root.fields, err = fieldsOf(root.elem)
	return root, err
}

func fieldsOf(t reflect.Type) ([]*field, error) {
	var fields []*field
	for i := range t.NumField() {
		sf := t.Field(i)
		name, opts, _ := strings.Cut(sf.Tag.Get("koanf"), ",")
		if opts == "squash" {
			inner, err := fieldsOf(sf.Type)
			if err != nil {
				return nil, err
			}
			for _, f := range inner {
				f.index = append([]int{i}, f.index...)
			}
			fields = append(fields, inner...)
			continue
		}
		f, err := newField(name, sf)
		if err != nil {
			return nil, errs.Wrap(errs.Internal, err, "config: field %s.%s", t, sf.Name)
		}
		f.index = []int{i}
		fields = append(fields, f)
	}
	return fields, nil
}

func newField(name string, sf reflect.StructField) (*field, error) {
	if name == "" || !sf.IsExported() {
		return nil, fmt.Errorf("needs an exported name and a koanf tag")
	}
	f := &field{key: name, doc: sf.Tag.Get("doc"), example: sf.Tag.Get("example"),
		allowed: sf.Tag.Get("allowed"), secret: sf.Tag.Get("secret")}
	if f.doc == "" {
		return nil, fmt.Errorf("needs a doc tag")
	}
	if enum := sf.Tag.Get("enum"); enum != "" {
		f.enum = strings.Split(enum, "|")
	}
	if err := f.setType(sf.Type); err != nil {
		return nil, err
	}
	return f, f.setLimits(sf.Tag.Get("min"), sf.Tag.Get("max"))
}

func (f *field) setType(t reflect.Type) (err error) {
	switch {
	case t == secretType:
		f.kind, f.secret = kindSecret, "true"
	case t == durationType:
		f.kind = kindDuration
	case t == bytesType:
		f.kind = kindBytes
	case t == stringsType:
		f.kind = kindStrings
	case t.Kind() == reflect.String && t.PkgPath() == "":
		f.kind = kindString
	case t.Kind() == reflect.Bool:
		f.kind = kindBool
	case t.Kind() == reflect.Int:
		f.kind = kindInt
	case t.Kind() == reflect.Struct:
		f.kind, f.elem = kindStruct, t
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		f.kind, f.elem = kindList, t.Elem()
	case t.Kind() == reflect.Map && t.Key().Kind() == reflect.String && t.Elem().Kind() == reflect.Struct:
		f.kind, f.elem = kindMap, t.Elem()
	default:
		return fmt.Errorf("type %s is not supported", t)
	}
	if f.elem != nil {
		f.fields, err = fieldsOf(f.elem)
	}
	return err
}

func (f *field) setLimits(low, high string) error {
	if low != "" {
		n, ok := f.limit(low)
		if !ok {
			return fmt.Errorf("min tag %q", low)
		}
		f.min = n
	}
	if high != "" {
		n, ok := f.limit(high)
		if !ok {
			return fmt.Errorf("max tag %q", high)
		}
		f.max = &n
	}
	return nil
}

func (f *field) limit(s string) (int64, bool) {
	switch f.kind {
	case kindInt:
		n, err := strconv.Atoi(s)
		return int64(n), err == nil
	case kindDuration:
		d, err := time.ParseDuration(s)
		return int64(d), err == nil
	case kindBytes:
		b, ok := parseBytes(s)
		return int64(b), ok
	}
	return 0, false
}

// child is the key of that name in a struct, list element or map entry.
func (f *field) child(name string) *field {
	for _, c := range f.fields {
		if c.key == name {
			return c
		}
	}
	return nil
}

func (f *field) keys() []string {
	keys := make([]string, len(f.fields))
	for i, c := range f.fields {
		keys[i] = c.key
	}
	return keys
}

// element is the schema of one element of a list or map.
func (f *field) element() *field {
	return &field{kind: kindStruct, elem: f.elem, fields: f.fields}
}

// expects says what values the field takes, for problems and the reference.
func (f *field) expects() string {
	switch f.kind {
	case kindBool:
		return "true or false"
	case kindInt:
		return "a whole number" + f.limits(func(n int64) string { return strconv.FormatInt(n, 10) })
	case kindDuration:
		return "a duration with its unit, such as 200ms, 30s or 5m," + f.limits(func(n int64) string { return FormatDuration(time.Duration(n)) })
	case kindBytes:
		return "a size with its unit (B, KiB, MiB, GiB), such as 64KiB," + f.limits(func(n int64) string { return Bytes(n).String() })
	case kindStrings:
		return "a list of strings" + f.choices(" out of ")
	case kindStruct:
		return "a mapping"
	case kindMap:
		return "a mapping from names to mappings"
	case kindList:
		return "a list of mappings"
	}
	return "a string" + f.choices(": ")
}

func (f *field) choices(lead string) string {
	if len(f.enum) == 0 {
		return ""
	}
	names := slices.Clone(f.enum)
	if i := slices.Index(names, ""); i >= 0 {
		names = append(slices.Delete(names, i, i+1), `""`)
	}
	return lead + orList(names)
}

func (f *field) limits(format func(int64) string) string {
	if f.max == nil {
		return " from " + format(f.min)
	}
	return " from " + format(f.min) + " to " + format(*f.max)
}
