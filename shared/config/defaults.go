package config

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"

	"go.yaml.in/yaml/v3"
)

// WriteDefaults writes every default as a YAML configuration file with the keys' meanings as comments. Of lists and maps that
// are empty by default, a comment says what their elements' defaults are.
func WriteDefaults[T Validator](w io.Writer, defaults T) error {
	root, err := schemaOf[T]()
	if err != nil {
		return err
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(root.mappingNode(root.treeOf(reflect.ValueOf(defaults)), true)); err != nil {
		return fmt.Errorf("encoding the defaults: %w", err)
	}
	_, err = b.WriteTo(w)
	return err
}

// mappingNode is a struct as YAML, its keys in the order of the schema.
func (f *field) mappingNode(tree map[string]any, comments bool) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	for _, c := range f.fields {
		key := &yaml.Node{Kind: yaml.ScalarNode, Value: c.key}
		if comments {
			key.HeadComment = c.comment()
		}
		n.Content = append(n.Content, key, c.valueNode(tree[c.key], comments))
	}
	return n
}

func (f *field) comment() string {
	text := "# " + f.doc
	if f.kind != kindList && f.kind != kindMap {
		return text
	}
	element := f.mappingNode(f.elementDefaults(), false)
	element.Style = yaml.FlowStyle
	line, err := yaml.Marshal(element)
	if err != nil {
		return text // a node made of scalars can be encoded
	}
	return text + "\n# Each has these defaults: " + string(bytes.ReplaceAll(bytes.TrimSpace(line), []byte("\n   "), nil))
}

func (f *field) valueNode(v any, comments bool) *yaml.Node {
	switch f.kind {
	case kindStruct:
		tree, _ := v.(map[string]any)
		return f.mappingNode(tree, comments)
	case kindMap:
		tree, _ := v.(map[string]any)
		n := &yaml.Node{Kind: yaml.MappingNode}
		for _, name := range slices.Sorted(maps.Keys(tree)) {
			entry, _ := tree[name].(map[string]any)
			n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: name}, f.mappingNode(entry, false))
		}
		return n
	case kindList:
		list, _ := v.([]any)
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for _, e := range list {
			tree, _ := e.(map[string]any)
			n.Content = append(n.Content, f.mappingNode(tree, false))
		}
		return n
	}
	n := &yaml.Node{}
	if list, ok := f.plain(v).([]string); ok && list == nil {
		_ = n.Encode([]string{}) // nil would become null
		return n
	}
	_ = n.Encode(f.plain(v)) // cannot fail: strings, numbers, booleans and lists of strings
	return n
}
