package adminapi

import (
	"maps"
	"reflect"
	"strings"
	"time"
)

// Object is a JSON object of a document that describes an API.
type Object map[string]any

// Schemas makes JSON Schemas (2020-12) of the structs that an API reads and answers, for its OpenAPI document.
type Schemas struct {
	Names map[reflect.Type]string // what the document calls a struct, where that is not its own name
	Found Object                  // the schemas of structs made so far, by name: components/schemas of the document
}

// NewSchemas makes an empty one.
func NewSchemas(names map[reflect.Type]string) *Schemas {
	return &Schemas{Names: names, Found: Object{}}
}

// OneNeeded is a request that needs at least one of several fields.
type OneNeeded interface{ OneOf() []string }

func (s *Schemas) name(t reflect.Type) string {
	if name, ok := s.Names[t]; ok {
		return name
	}
	return t.Name()
}

// Of is the schema of what encoding/json makes of a value of type t.
func (s *Schemas) Of(t reflect.Type) Object {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return Object{"type": "string", "format": "date-time"}
	case t.Kind() == reflect.Struct:
		name := s.name(t)
		if _, known := s.Found[name]; !known {
			s.Found[name] = Object{} // ends a recursion
			s.Found[name] = s.answer(t)
		}
		return Object{"$ref": "#/components/schemas/" + name}
	}
	switch t.Kind() {
	case reflect.Slice:
		return Object{"type": "array", "items": s.Of(t.Elem())}
	case reflect.Pointer:
		schema := s.Of(t.Elem())
		if name, simple := schema["type"]; simple {
			schema["type"] = []any{name, "null"}
		}
		return schema
	case reflect.String:
		return Object{"type": "string"}
	case reflect.Bool:
		return Object{"type": "boolean"}
	case reflect.Float64:
		return Object{"type": "number"}
	case reflect.Uint32, reflect.Uint64:
		return Object{"type": "integer", "minimum": 0}
	case reflect.Int, reflect.Int64:
		return Object{"type": "integer"}
	}
	return Object{} // any
}

// answer is the schema of a struct that is answered.
func (s *Schemas) answer(t reflect.Type) Object {
	properties, required := Object{}, []string{}
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous { // encoding/json tells its fields as the struct's own
			inner := s.answer(f.Type)
			maps.Copy(properties, inner["properties"].(Object))
			required = append(required, inner["required"].([]string)...)
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" {
			continue
		}
		schema := s.Of(f.Type)
		if f.Type.Kind() == reflect.Pointer && schema["$ref"] != nil && !strings.Contains(options, "omit") {
			schema = Object{"anyOf": []Object{schema, {"type": "null"}}}
		}
		if doc := f.Tag.Get("doc"); doc != "" {
			if schema["$ref"] != nil { // many programs overlook what is beside a $ref
				schema = Object{"allOf": []Object{schema}}
			}
			schema["description"] = doc
		}
		if enum := f.Tag.Get("enum"); enum != "" {
			schema["enum"] = strings.Split(enum, ",")
		}
		properties[name] = schema
		if !strings.Contains(options, "omit") {
			required = append(required, name)
		}
	}
	schema := Object{"type": "object", "properties": properties}
	if len(required) > 0 {
		schema["required"] = required
	}
	return schema
}

// Request is the schema of a struct that a body is read into, which is as strict as reading is.
func (s *Schemas) Request(t reflect.Type) Object {
	properties, required := Object{}, []string{}
	for _, f := range Fields(t) {
		properties[f.Name] = Given(f)
		if f.Required {
			required = append(required, f.Name)
		}
	}
	schema := Object{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		schema["required"] = required
	}
	if o, ok := reflect.New(t).Interface().(OneNeeded); ok {
		var any []Object
		for _, name := range o.OneOf() {
			any = append(any, Object{"required": []string{name}})
		}
		schema["anyOf"] = any
	}
	s.Found[s.name(t)] = schema
	return Object{"$ref": "#/components/schemas/" + s.name(t)}
}

// Given is the schema of one field of a request.
func Given(f Field) Object {
	schema := NewSchemas(nil).Of(f.Type)
	if f.Doc != "" {
		schema["description"] = f.Doc
	}
	if len(f.Enum) > 0 {
		schema["enum"] = f.Enum
	}
	low, high := "minimum", "maximum"
	if f.Type.Kind() == reflect.String {
		low, high = "minLength", "maxLength" // characters, of which there are no more than bytes
		if f.Required {
			schema[low] = 1
		}
	} else if f.Type.Kind() == reflect.Int {
		schema[low] = 0
	}
	if f.Min != nil {
		schema[low] = *f.Min
	}
	if f.Max != nil {
		schema[high] = *f.Max
	}
	return schema
}
