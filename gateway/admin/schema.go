package admin

import (
	"maps"
	"reflect"
	"strings"
	"time"

	"fairlead/shared/adminapi"
	"fairlead/shared/config"
	"fairlead/shared/errs"
)

// schemas are the JSON Schemas (2020-12) of structs, by the name that the document has for them.
type schemas map[string]object

func schemaName(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[errs.Answer]():
		return "Error"
	case reflect.TypeFor[config.Entry]():
		return "Setting"
	}
	return t.Name()
}

// of is the schema of what encoding/json makes of a value of type t.
func (s schemas) of(t reflect.Type) object {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case t.Kind() == reflect.Struct:
		name := schemaName(t)
		if _, known := s[name]; !known {
			s[name] = object{} // ends a recursion
			s[name] = s.answer(t)
		}
		return object{"$ref": "#/components/schemas/" + name}
	}
	switch t.Kind() {
	case reflect.Slice:
		return object{"type": "array", "items": s.of(t.Elem())}
	case reflect.Pointer:
		schema := s.of(t.Elem())
		if name, simple := schema["type"]; simple {
			schema["type"] = []any{name, "null"}
		}
		return schema
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.Uint32, reflect.Uint64:
		return object{"type": "integer", "minimum": 0}
	case reflect.Int, reflect.Int64:
		return object{"type": "integer"}
	}
	return object{} // any
}

// answer is the schema of a struct that is answered.
func (s schemas) answer(t reflect.Type) object {
	properties, required := object{}, []string{}
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous { // encoding/json tells its fields as the struct's own
			inner := s.answer(f.Type)
			maps.Copy(properties, inner["properties"].(object))
			required = append(required, inner["required"].([]string)...)
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" {
			continue
		}
		schema := s.of(f.Type)
		if doc := f.Tag.Get("doc"); doc != "" {
			if schema["$ref"] != nil { // many programs overlook what is beside a $ref
				schema = object{"allOf": []object{schema}}
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
	schema := object{"type": "object", "properties": properties}
	if len(required) > 0 {
		schema["required"] = required
	}
	return schema
}

// request is the schema of a struct that a body is read into, which is as strict as reading is.
func (s schemas) request(t reflect.Type) object {
	properties, required := object{}, []string{}
	for _, f := range adminapi.Fields(t) {
		properties[f.Name] = given(f)
		if f.Required {
			required = append(required, f.Name)
		}
	}
	schema := object{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		schema["required"] = required
	}
	if o, ok := reflect.New(t).Interface().(oneNeeded); ok {
		var any []object
		for _, name := range o.oneOf() {
			any = append(any, object{"required": []string{name}})
		}
		schema["anyOf"] = any
	}
	s[t.Name()] = schema
	return object{"$ref": "#/components/schemas/" + t.Name()}
}

// given is the schema of one field of a request.
func given(f adminapi.Field) object {
	schema := schemas{}.of(f.Type)
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
