package config

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	koanfmaps "github.com/knadh/koanf/maps"
)

// assignment is one value that the environment or a flag gives to one key.
type assignment struct {
	source string // the variable or flag, for people
	path   string // as the source spells it
	value  string
	form   pathForm
}

// pathForm is how a source spells keys.
type pathForm struct {
	separator string
	spell     func(name string) string  // how a key or name of the configuration is spelt
	name      func(spelt string) string // the name that a spelling stands for when no such name exists yet
}

// envForm: levels are joined by "__"; capitals, and "_" for what variable names cannot hold.
func envForm() pathForm {
	replace := strings.NewReplacer("-", "_", ".", "_")
	return pathForm{"__", func(s string) string { return strings.ToUpper(replace.Replace(s)) }, strings.ToLower}
}

// flagForm: as keys are written, with "[0]" or ".0" for the elements of lists.
func flagForm() pathForm {
	same := func(s string) string { return s }
	return pathForm{".", same, same}
}

// assigner builds the layer that one assignment is: a tree with only what it sets.
type assigner struct {
	d *decoder
	a assignment
}

func (s assigner) refuse(key, value, allowed string) (any, bool) {
	s.d.problems = append(s.d.problems, Problem{s.a.source, key, value, allowed})
	return nil, false
}

// build descends along path from f, whose value in the layers below is current.
func (s assigner) build(f *field, path string, current any, key string) (any, bool) {
	if path == "" {
		return s.d.parseText(f, s.a.value, key)
	}
	switch f.kind {
	case kindStruct:
		return s.inStruct(f, path, current, key)
	case kindMap:
		return s.inMap(f, path, current, key)
	case kindList:
		return s.inList(f, path, current, key)
	}
	return s.refuse(joinKey(key, path), "", "unknown key; "+key+" is "+f.expects())
}

func (s assigner) inStruct(f *field, path string, current any, key string) (any, bool) {
	name, rest, _ := strings.Cut(path, s.a.form.separator)
	i := slices.IndexFunc(f.fields, func(c *field) bool { return s.a.form.spell(c.key) == name })
	if i < 0 {
		return s.refuse(joinKey(key, s.a.form.name(name)), "", unknownKey(s.a.form.name(name), f.keys()))
	}
	c := f.fields[i]
	tree, _ := current.(map[string]any)
	v, ok := s.build(c, rest, tree[c.key], joinKey(key, c.key))
	return map[string]any{c.key: v}, ok
}

func (s assigner) inMap(f *field, path string, current any, key string) (any, bool) {
	tree, _ := current.(map[string]any)
	name, rest := s.entry(tree, path)
	if !ValidName(name) {
		return s.refuse(joinKey(key, name), "", "not a name; allowed: "+NameRule)
	}
	v, ok := s.build(f.element(), rest, tree[name], joinKey(key, name))
	return map[string]any{name: v}, ok
}

// entry finds the entry that path leads into: the existing one with the longest matching name, since names may hold the
// separator, or else a new one.
func (s assigner) entry(tree map[string]any, path string) (name, rest string) {
	found := false
	for _, n := range slices.Sorted(maps.Keys(tree)) {
		r, ok := strings.CutPrefix(path, s.a.form.spell(n))
		if ok && (r == "" || strings.HasPrefix(r, s.a.form.separator)) && (!found || len(n) > len(name)) {
			found, name, rest = true, n, strings.TrimPrefix(r, s.a.form.separator)
		}
	}
	if found {
		return name, rest
	}
	spelt, rest, _ := strings.Cut(path, s.a.form.separator)
	return s.a.form.name(spelt), rest
}

// inList changes one element, or adds one behind the last. The layer is then the whole list, as layers replace lists.
func (s assigner) inList(f *field, path string, current any, key string) (any, bool) {
	list, _ := current.([]any)
	position, rest, _ := strings.Cut(path, s.a.form.separator)
	i, err := strconv.Atoi(position)
	if err != nil || i < 0 || i > len(list) {
		return s.refuse(joinKey(key, s.a.form.name(position)), "", fmt.Sprintf("not an element; allowed: 0 to %d", len(list)))
	}
	element := map[string]any{}
	if i < len(list) {
		element, _ = list[i].(map[string]any)
	}
	v, ok := s.build(f.element(), rest, element, indexKey(key, i))
	if !ok {
		return nil, false
	}
	list = append(slices.Clone(list[:i:i]), append([]any{element}, list[min(i+1, len(list)):]...)...)
	if change, ok := v.(map[string]any); ok {
		koanfmaps.Merge(change, element)
	}
	return list, true
}

// environment lists the assignments of the environment: whole lists before their elements, and elements by number.
func environment(environ []string) []assignment {
	var out []assignment
	for _, e := range environ {
		name, value, ok := strings.Cut(e, "=")
		path, ours := strings.CutPrefix(name, EnvPrefix)
		if !ok || !ours || name == EnvFile {
			continue
		}
		out = append(out, assignment{source: name, path: path, value: value, form: envForm()})
	}
	slices.SortFunc(out, func(a, b assignment) int {
		return slices.CompareFunc(strings.Split(a.path, "__"), strings.Split(b.path, "__"), compareSegments)
	})
	return out
}

func compareSegments(a, b string) int {
	i, errA := strconv.Atoi(a)
	j, errB := strconv.Atoi(b)
	if errA == nil && errB == nil {
		return i - j
	}
	return strings.Compare(a, b)
}

// serviceLink reports whether a variable is one of those that Kubernetes puts into every pod for a service whose name begins
// with "fairlead", such as FAIRLEAD_GATEWAY_PORT_8443_TCP. They are nobody's configuration, and refusing them
// would stop every pod next to such a service.
func (a assignment) serviceLink(root *field) bool {
	first, _, nested := strings.Cut(a.path, "__")
	known := slices.ContainsFunc(root.fields, func(c *field) bool { return a.form.spell(c.key) == first })
	return !known && !nested && servicePattern.MatchString(a.path)
}
