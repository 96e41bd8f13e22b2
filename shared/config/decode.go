package config

import (
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxNodes bounds the values of one source: aliases can make a small file huge ("billion laughs"). No honest configuration
// comes near. Depth needs no bound, since nothing is followed deeper than the schema goes.
const maxNodes = 100_000

// decoder turns YAML nodes into a tree by the schema and gathers problems on its way.
type decoder struct {
	source   func(line int) string
	problems Problems
	origins  map[string]string // source of each key that was met, mappings and lists included
	nodes    int
}

func (d *decoder) refuse(n *yaml.Node, key, value, allowed string) {
	d.problems = append(d.problems, Problem{d.source(n.Line), key, value, allowed})
}

// node decodes the value of one key. It is false when nothing is to be taken over: a problem was found, or the value is an
// empty one of a mapping or list.
func (d *decoder) node(f *field, n *yaml.Node, key string) (any, bool) {
	if !d.count(n) {
		return nil, false
	}
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	d.origins[key] = d.source(n.Line)
	switch f.kind {
	case kindStruct, kindMap, kindList, kindStrings:
		if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
			return nil, false // "key:" with nothing, or only comments, below it
		}
	}
	switch f.kind {
	case kindStruct:
		return d.mapping(f, n, key, d.structEntry)
	case kindMap:
		return d.mapping(f, n, key, d.mapEntry)
	case kindList:
		return d.list(f, n, key)
	case kindStrings:
		return d.strings(f, n, key)
	}
	return d.scalar(f, n, key)
}

// count reports whether there may be one more value; the first one too many is a problem, the others are passed over.
// It has no key, so that nothing is said about values that were passed over.
func (d *decoder) count(n *yaml.Node) bool {
	d.nodes++
	if d.nodes == maxNodes+1 {
		d.refuse(n, "", "", fmt.Sprintf("too large; allowed: %d values", maxNodes))
	}
	return d.nodes <= maxNodes
}

type entryFunc func(f *field, name, value *yaml.Node, key string) (any, bool)

func (d *decoder) mapping(f *field, n *yaml.Node, key string, entry entryFunc) (any, bool) {
	if n.Kind != yaml.MappingNode {
		d.refuse(n, key, f.showNode(n), "allowed: "+f.expects())
		return nil, false
	}
	tree := make(map[string]any)
	first := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		inner := joinKey(key, name.Value)
		if line, twice := first[name.Value]; twice {
			d.refuse(name, inner, "", fmt.Sprintf("given twice, first in line %d", line))
			continue
		}
		first[name.Value] = name.Line
		if v, ok := entry(f, name, value, inner); ok {
			tree[name.Value] = v
		}
	}
	return tree, true
}

func (d *decoder) structEntry(f *field, name, value *yaml.Node, key string) (any, bool) {
	c := f.child(name.Value)
	if c == nil || name.Kind != yaml.ScalarNode {
		d.refuse(name, key, "", unknownKey(name.Value, f.keys())) // without its value: it may be a misspelt token
		return nil, false
	}
	return d.node(c, value, key)
}

func (d *decoder) mapEntry(f *field, name, value *yaml.Node, key string) (any, bool) {
	if name.Kind != yaml.ScalarNode || !ValidName(name.Value) {
		d.refuse(name, key, "", "not a name; allowed: "+NameRule)
		return nil, false
	}
	v, ok := d.node(f.element(), value, key)
	if !ok && value.Tag == "!!null" {
		return map[string]any{}, true // "name:" is an entry with its defaults
	}
	return v, ok
}

func (d *decoder) list(f *field, n *yaml.Node, key string) (any, bool) {
	if n.Kind != yaml.SequenceNode {
		d.refuse(n, key, f.showNode(n), "allowed: "+f.expects())
		return nil, false
	}
	d.forget(key + "[")
	list := make([]any, len(n.Content))
	for i, e := range n.Content {
		v, ok := d.node(f.element(), e, indexKey(key, i))
		if !ok {
			v = map[string]any{} // keeps the positions of the others, for the problems that name them
		}
		list[i] = v
	}
	return list, true
}

// forget drops what an earlier layer said about the elements of a list that is now replaced.
func (d *decoder) forget(prefix string) {
	for k := range d.origins {
		if strings.HasPrefix(k, prefix) {
			delete(d.origins, k)
		}
	}
}

func (d *decoder) strings(f *field, n *yaml.Node, key string) (any, bool) {
	if n.Kind != yaml.SequenceNode {
		d.refuse(n, key, f.showNode(n), "allowed: "+f.expects())
		return nil, false
	}
	d.forget(key + "[")
	one := &field{kind: kindString, secret: f.secret}
	list, good := make([]string, 0, len(n.Content)), true
	for i, e := range n.Content {
		for e.Kind == yaml.AliasNode {
			e = e.Alias
		}
		if !d.count(e) {
			return nil, false
		}
		d.origins[indexKey(key, i)] = d.source(e.Line)
		if v, ok := d.scalar(one, e, indexKey(key, i)); ok {
			list = append(list, v.(string))
		} else {
			good = false
		}
	}
	return list, good
}

func (d *decoder) scalar(f *field, n *yaml.Node, key string) (any, bool) {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		d.refuse(n, key, f.showNode(n), "allowed: "+f.expects())
		return nil, false
	}
	if wrong := f.wrongTag(n); wrong != "" {
		d.refuse(n, key, f.showNode(n), wrong)
		return nil, false
	}
	v, wrong := f.scalar(n.Value)
	if wrong != "" {
		d.refuse(n, key, f.showNode(n), "allowed: "+wrong)
	}
	return v, wrong == ""
}

// wrongTag refuses what YAML reads as another type than the field's.
func (f *field) wrongTag(n *yaml.Node) string {
	text := n.Tag == "!!str" || n.Tag == "!!timestamp"
	switch f.kind {
	case kindString, kindSecret:
		if !text {
			return "allowed: " + f.expects() + "; put it in quotes"
		}
	case kindInt, kindBool:
		if text && n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0 {
			return "allowed: " + f.expects() + ", without quotes"
		}
	}
	return ""
}

// showNode is a node as problems repeat it.
func (f *field) showNode(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Tag == "!!null":
		return "nothing"
	}
	if f.fields != nil && n.Value != "" { // a scalar where a mapping belongs may be anything, a secret of it included
		return "a single value"
	}
	return f.show(n.Value, n.Tag == "!!str")
}

// parseText decodes a text of the environment or a flag: as it stands for scalars, separated by commas or as a YAML list
// for lists of strings, as YAML for the rest.
func (d *decoder) parseText(f *field, text, key string) (any, bool) {
	switch f.kind {
	case kindStruct, kindMap, kindList:
		return d.parseYAML(f, text, key)
	case kindStrings:
		if strings.HasPrefix(strings.TrimSpace(text), "[") {
			return d.parseYAML(f, text, key)
		}
		d.origins[key] = d.source(0)
		d.forget(key + "[")
		return splitList(text), true
	}
	d.origins[key] = d.source(0)
	v, wrong := f.scalar(text)
	if wrong != "" {
		d.refuse(&yaml.Node{}, key, f.show(text, true), "allowed: "+wrong)
	}
	return v, wrong == ""
}

func (d *decoder) parseYAML(f *field, text, key string) (any, bool) {
	n, err := parseYAML([]byte(text))
	if err != nil {
		d.refuse(&yaml.Node{}, key, "", "not valid YAML or JSON: "+err.text)
		return nil, false
	}
	if n == nil {
		d.refuse(&yaml.Node{}, key, strconv.Quote(text), "allowed: "+f.expects()+" as YAML or JSON")
		return nil, false
	}
	return d.node(f, n, key)
}

func splitList(text string) []string {
	list := []string{}
	for s := range strings.SplitSeq(text, ",") {
		if s = strings.TrimSpace(s); s != "" {
			list = append(list, s)
		}
	}
	return list
}
