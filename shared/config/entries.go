package config

import (
	"reflect"
	"strconv"
	"strings"
)

// Entry is one value of an effective configuration, fit to be shown.
type Entry struct {
	Key    string `json:"key"`
	Value  any    `json:"value"` // string, bool, int or []string; durations and sizes as strings; secrets masked
	Source string `json:"source"`
}

// Entries lists all values in the order of the struct, secrets masked, with their sources.
func (l *Loaded[T]) Entries() []Entry {
	root, err := schemaOf[T]()
	if err != nil {
		return nil // Load has refused such a T already
	}
	var out []Entry
	for _, leaf := range root.leaves(root.treeOf(reflect.ValueOf(l.Config)), "") {
		source, ok := l.Sources[leaf.key]
		if !ok {
			source = SourceDefault
		}
		out = append(out, Entry{leaf.key, leaf.field.plain(leaf.value), source})
	}
	return out
}

// shown is the leaf's value as problems repeat it.
func (l leaf) shown() string {
	switch v := l.field.plain(l.value).(type) {
	case string:
		quote := l.field.kind == kindString || l.field.kind == kindSecret
		return (&field{}).show(v, quote)
	case []string:
		return "[" + strings.Join(v, ", ") + "]"
	case bool:
		return strconv.FormatBool(v)
	case int:
		return strconv.Itoa(v)
	case []any, map[string]any:
		return "nothing"
	}
	return ""
}

// shownAt is the one string of a list of strings that key names.
func (l leaf) shownAt(key string) string {
	list, _ := l.field.plain(l.value).([]string)
	for i, s := range list {
		if indexKey(l.key, i) == key {
			return (&field{}).show(s, true)
		}
	}
	return ""
}
