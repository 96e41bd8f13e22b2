package config

import (
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Key describes one key of a configuration struct.
type Key struct {
	Path    string // such as "listeners[].route" or "backends.<name>.address"
	Env     string // such as "FAIRLEAD_LISTENERS__<n>__ROUTE" or "FAIRLEAD_BACKENDS__<NAME>__ADDRESS"
	Type    string // what values it takes
	Default string // as it would be written; "" in quotes for an empty string; empty for a mapping
	Doc     string
	Example string
	Value   bool // false for a mapping, a list or a map, whose keys follow
}

// Keys lists all keys of T in the order of the struct, with their defaults.
func Keys[T Validator](defaults T) ([]Key, error) {
	root, err := schemaOf[T]()
	if err != nil {
		return nil, err
	}
	return root.describe(root.treeOf(reflect.ValueOf(defaults)), "", EnvPrefix), nil
}

func (f *field) describe(defaults map[string]any, path, env string) []Key {
	var keys []Key
	for _, c := range f.fields {
		keys = append(keys, c.describeOne(defaults[c.key], joinKey(path, c.key), env+envForm().spell(c.key))...)
	}
	return keys
}

func (f *field) describeOne(def any, path, env string) []Key {
	k := Key{Path: path, Env: env, Type: f.describeType(), Doc: f.doc, Example: f.example, Value: f.fields == nil}
	switch f.kind {
	case kindStruct:
		tree, _ := def.(map[string]any)
		return append([]Key{k}, f.describe(tree, path, env+"__")...)
	case kindList:
		k.Default = "[]"
		return append([]Key{k}, f.describe(f.elementDefaults(), path+"[]", env+"__<n>__")...)
	case kindMap:
		k.Default = describeNames(def)
		return append([]Key{k}, f.describe(f.elementDefaults(), path+".<name>", env+"__<NAME>__")...)
	}
	k.Default = f.describeDefault(def)
	return []Key{k}
}

func describeNames(def any) string {
	tree, _ := def.(map[string]any)
	names := slices.Sorted(maps.Keys(tree))
	for i := range names {
		names[i] += ": …"
	}
	return "{" + strings.Join(names, ", ") + "}"
}

func (f *field) describeType() string {
	s := f.expects()
	if f.kind == kindDuration || f.kind == kindBytes { // the page says once what these look like
		s = s[:strings.Index(s, " with its unit")] + s[strings.LastIndex(s, ",")+1:]
	}
	if f.kind == kindSecret {
		s = "a secret string"
	}
	if f.allowed != "" {
		s += "; " + f.allowed
	}
	return s
}

func (f *field) describeDefault(v any) string {
	switch v := f.plain(v).(type) {
	case []string:
		return "[" + strings.Join(v, ", ") + "]"
	case string:
		if v == "" {
			return `""`
		}
		return v
	default:
		return fmt.Sprint(v)
	}
}

const referenceIntro = `Each key can be set in four places, each of which overrides the ones before: the built-in default, the configuration
file (` + "`--config`" + `, or the environment variable ` + "`FAIRLEAD_CONFIG`" + `), the environment, and the command line
(` + "`--set path=value`" + `, any number of times).

- **Strict.** An unknown key, a value of another type and a number without its unit are refused, wherever they are set, and all problems are reported at once.
- **Durations** are strings with their unit: ` + "`200ms`, `30s`, `5m`, `1h`" + `; none is ` + "`0s`" + `. **Sizes** likewise: ` + "`512B`, `64KiB`, `1MiB`, `2GiB`" + `.
- **Lists of strings** in the environment and in ` + "`--set`" + ` are separated by commas, or written as a YAML or JSON list.
- **Mappings and lists of mappings** can be given there as a whole, as YAML or JSON, or key by key: ` + "`<n>`" + ` is an element's
  number from 0 (the number behind the last one adds an element), ` + "`<NAME>`" + ` an entry's name in capitals, with ` + "`_`" + ` for ` + "`-`" + ` and ` + "`.`" + `.
  A new entry is named in small letters. In ` + "`--set`" + `, keys are written as in this page: ` + "`--set 'listeners[0].route=git'`" + `.
- A list replaces the list of the layer below; the entries of a map are added to those of the layer below, key by key.
- Names of listeners, routes, backends and tiers are ` + "`" + NameRule + "`" + `.
- Variables that Kubernetes sets for services whose names begin with "fairlead" (such as ` + "`FAIRLEAD_GATEWAY_PORT_8443_TCP`" + `) are ignored.
`

// WriteReference writes the reference of all keys as a Markdown page.
func WriteReference[T Validator](w io.Writer, title string, defaults T) error {
	root, err := schemaOf[T]()
	if err != nil {
		return err
	}
	keys, err := Keys(defaults)
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n", title)
	b.WriteString("This page is generated from the code by `config reference`. Do not edit it.\n\n")
	b.WriteString(referenceIntro)
	writeProfiles(&b, root, defaults)
	section := ""
	for _, k := range keys {
		if head := topLevel(k); head != section || section == "" {
			section = head
			writeSection(&b, head, k)
			if !k.Value {
				writeRowOf(&b, k)
				continue
			}
		}
		writeRow(&b, k)
	}
	_, err = io.WriteString(w, b.String())
	return err
}

// topLevel is the section that a key belongs to; single keys of the top level share one.
func topLevel(k Key) string {
	end := strings.IndexAny(k.Path, ".[")
	switch {
	case end >= 0:
		return k.Path[:end]
	case k.Value:
		return "Single keys"
	}
	return k.Path
}

func writeSection(b *strings.Builder, head string, first Key) {
	if first.Value {
		fmt.Fprintf(b, "\n## %s\n", head)
	} else {
		fmt.Fprintf(b, "\n## `%s`\n\n%s\n", head, first.Doc)
	}
	b.WriteString("\n| key | environment variable | type | default | meaning | example |\n| --- | --- | --- | --- | --- | --- |\n")
}

// writeRowOf writes the row of a section's own key, whose meaning the section's head has told.
func writeRowOf(b *strings.Builder, k Key) {
	k.Doc = "the whole section"
	writeRow(b, k)
}

func writeRow(b *strings.Builder, k Key) {
	cells := []string{code(k.Path), code(k.Env), escape(k.Type), code(k.Default), escape(k.Doc), code(k.Example)}
	fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | "))
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + escape(s) + "`"
}

func escape(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
