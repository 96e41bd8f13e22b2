package config

import (
	"maps"
	"reflect"
	"slices"
)

// A tree is a configuration as nested maps: map[string]any for structs and maps, []any of map[string]any for lists of
// structs, and for the rest exactly the Go types of the struct's fields. So koanf has nothing to convert when it decodes.

// defaulter is what an element of a list or map implements on its pointer when its zero is not its default.
type defaulter interface{ SetDefaults() }

// treeOf is the tree of a struct.
func (f *field) treeOf(v reflect.Value) map[string]any {
	tree := make(map[string]any, len(f.fields))
	for _, c := range f.fields {
		tree[c.key] = c.valueOf(v.FieldByIndex(c.index))
	}
	return tree
}

func (f *field) valueOf(v reflect.Value) any {
	switch f.kind {
	case kindStruct:
		return f.treeOf(v)
	case kindList:
		list := make([]any, v.Len())
		for i := range list {
			list[i] = f.treeOf(v.Index(i))
		}
		return list
	case kindMap:
		tree := make(map[string]any, v.Len())
		for _, name := range v.MapKeys() {
			tree[name.String()] = f.treeOf(v.MapIndex(name))
		}
		return tree
	case kindStrings:
		return slices.Clone(v.Interface().([]string))
	}
	return v.Interface()
}

// elementDefaults is the tree of a fresh element of a list or map.
func (f *field) elementDefaults() map[string]any {
	v := reflect.New(f.elem)
	if d, ok := v.Interface().(defaulter); ok {
		d.SetDefaults()
	}
	return f.treeOf(v.Elem())
}

// fill completes the elements of all lists and maps in tree with their defaults.
func (f *field) fill(tree map[string]any) {
	for _, c := range f.fields {
		switch v := tree[c.key].(type) {
		case []any:
			for _, e := range v {
				c.fillElement(e)
			}
		case map[string]any:
			if c.kind == kindStruct {
				c.fill(v)
				continue
			}
			for _, e := range v {
				c.fillElement(e)
			}
		}
	}
}

func (f *field) fillElement(e any) {
	if tree, ok := e.(map[string]any); ok {
		overlay(tree, f.elementDefaults())
		f.fill(tree)
	}
}

// overlay adds to tree what only base has.
func overlay(tree, base map[string]any) {
	for k, v := range base {
		have, ok := tree[k]
		if !ok {
			tree[k] = v
			continue
		}
		inner, isMap := have.(map[string]any)
		if innerBase, ok := v.(map[string]any); ok && isMap {
			overlay(inner, innerBase)
		}
	}
}

// leaf is one value of a tree: a scalar, a list of strings, or an empty list or map.
type leaf struct {
	key   string
	field *field
	value any
}

// leaves lists all values of a struct's tree in the order of the schema, and map entries by name.
func (f *field) leaves(tree map[string]any, key string) []leaf {
	var out []leaf
	for _, c := range f.fields {
		out = append(out, c.leavesOf(tree[c.key], joinKey(key, c.key))...)
	}
	return out
}

func (f *field) leavesOf(v any, key string) []leaf {
	var out []leaf
	switch f.kind {
	case kindStruct:
		tree, _ := v.(map[string]any)
		return f.leaves(tree, key)
	case kindList:
		list, _ := v.([]any)
		for i, e := range list {
			tree, _ := e.(map[string]any)
			out = append(out, f.leaves(tree, indexKey(key, i))...)
		}
	case kindMap:
		tree, _ := v.(map[string]any)
		for _, name := range slices.Sorted(maps.Keys(tree)) {
			entry, _ := tree[name].(map[string]any)
			out = append(out, f.leaves(entry, joinKey(key, name))...)
		}
	default:
		return []leaf{{key, f, v}}
	}
	if len(out) == 0 {
		return []leaf{{key, f, v}}
	}
	return out
}

// Diff lists the keys whose values differ between two configurations that Load has made, sorted. Elements of a list are
// compared by position.
func Diff[T Validator](old, new T) []string {
	root, err := schemaOf[T]()
	if err != nil {
		return nil // Load has refused such a T already
	}
	before, after := root.byKey(old), root.byKey(new)
	var keys []string
	for k, v := range before {
		if w, ok := after[k]; !ok || !equal(v, w) {
			keys = append(keys, k)
		}
	}
	for k := range after {
		if _, ok := before[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func (f *field) byKey(config any) map[string]any {
	values := make(map[string]any)
	for _, l := range f.leaves(f.treeOf(reflect.ValueOf(config)), "") {
		values[l.key] = l.value
	}
	return values
}

// equal holds a nil and an empty list of strings for the same.
func equal(a, b any) bool {
	s, ok := a.([]string)
	t, ok2 := b.([]string)
	if ok && ok2 {
		return slices.Equal(s, t)
	}
	return reflect.DeepEqual(a, b)
}
