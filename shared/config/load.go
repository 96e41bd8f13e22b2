package config

import (
	"reflect"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"

	"fairlead/shared/errs"
)

// koanfDelimiter cannot occur in a name; "." can, and koanf would take such a name for two levels.
const koanfDelimiter = "\x1f"

// Input is where a configuration comes from.
type Input struct {
	Flags   Flags    // file and assignments of the command line
	Environ []string // "NAME=value"; nil is the process's environment
}

// Loaded is an effective configuration and where each of its values came from.
type Loaded[T Validator] struct {
	Config T
	// Sources gives for each key "file:line", the environment variable, the flag, or SourceDefault. Keys are those of
	// Entries.
	Sources map[string]string
	// File is the configuration file that was read; empty if none was.
	File string
}

// Load layers file, environment and flags over defaults and validates the result. All that is wrong comes as one
// errs.ConfigInvalid error with Problems in its chain; a file that cannot be read is errs.ConfigUnreadable.
func Load[T Validator](defaults T, in Input) (*Loaded[T], error) {
	root, err := schemaOf[T]()
	if err != nil {
		return nil, err
	}
	loaded, err := load[T](newLoader(root, defaults), in)
	if loaded == nil {
		return nil, err
	}
	// Which profile counts is known only now that all layers are read; its values belong below them, and decide what is
	// wrong.
	if p := profileOf(loaded.Config); p != nil {
		loaded, err = load[T](newProfileLoader(root, defaults, p), in)
	}
	if err != nil {
		return nil, err
	}
	return loaded, nil
}

// load reads the layers over l's defaults. Together with problems it returns what they leave.
func load[T Validator](l *loader, in Input) (*Loaded[T], error) {
	environ := environOr(in.Environ)
	file := in.Flags.file(environ)
	if err := l.file(file); err != nil {
		return nil, err
	}
	for _, a := range environment(environ) {
		if !a.serviceLink(l.root) {
			l.assign(a)
		}
	}
	for _, a := range in.Flags.assignments {
		l.assign(a)
	}
	var config T
	tree, err := l.finish(&config)
	if err != nil {
		return nil, err
	}
	l.addProblems(config.Validate(), tree)
	return &Loaded[T]{config, l.sources(tree), file}, l.problems.err()
}

// loader holds the layers read so far.
type loader struct {
	root     *field
	ko       *koanf.Koanf
	problems Problems
	origins  map[string]string
}

func newLoader(root *field, defaults any) *loader {
	l := &loader{root: root, ko: koanf.New(koanfDelimiter), origins: map[string]string{}}
	l.layer(root.treeOf(reflect.ValueOf(defaults)))
	return l
}

// newProfileLoader begins with a profile's defaults. They are the source of what they change.
func newProfileLoader[T Validator](root *field, defaults T, p *Profile[T]) *loader {
	l := newLoader(root, p.Defaults)
	for _, key := range Diff(defaults, p.Defaults) {
		l.origins[key] = "profile " + p.Name
	}
	return l
}

// layer puts a tree over what is there.
func (l *loader) layer(tree map[string]any) {
	_ = l.ko.Load(confmap.Provider(tree, ""), nil) // confmap returns no error, and koanf merges without StrictMerge
}

func (l *loader) decoder(source func(int) string) *decoder {
	return &decoder{source: source, origins: l.origins}
}

func (l *loader) file(path string) error {
	if path == "" {
		return nil
	}
	text, err := readFile(path)
	if err != nil {
		return err
	}
	source := fileSource(path)
	node, syntax := parseYAML(text)
	if syntax != nil {
		// Its key is empty: that keeps Validate from complaining about everything that the file would have set.
		l.problems = append(l.problems, Problem{Source: source(syntax.line), Allowed: "not valid YAML: " + syntax.text})
		return nil
	}
	if node == nil {
		return nil // an empty file sets nothing
	}
	d := l.decoder(source)
	v, ok := d.node(l.root, node, "")
	l.problems = append(l.problems, d.problems...)
	if ok {
		l.layer(v.(map[string]any))
	}
	return nil
}

func (l *loader) assign(a assignment) {
	d := l.decoder(func(int) string { return a.source })
	v, ok := assigner{d, a}.build(l.root, a.path, l.ko.Raw(), "")
	if a.path == "" {
		ok = false
		d.problems = Problems{{Source: a.source, Allowed: "no key is named; allowed: " + orList(l.root.keys())}}
	}
	l.problems = append(l.problems, d.problems...)
	if ok {
		l.layer(v.(map[string]any))
	}
}

// finish completes the elements of lists and maps, checks the limits of all values, and decodes into target.
func (l *loader) finish(target any) (map[string]any, error) {
	tree := l.ko.Raw()
	l.root.fill(tree)
	for _, leaf := range l.root.leaves(tree, "") {
		if wrong := leaf.field.check(leaf.value); wrong != "" && !l.problems.touches(leaf.key) {
			l.problems = append(l.problems, Problem{l.sourceOf(leaf.key), leaf.key, leaf.shown(), wrong})
		}
	}
	final := koanf.New(koanfDelimiter)
	if err := final.Load(confmap.Provider(tree, ""), nil); err != nil {
		return nil, errs.Wrap(errs.Internal, err, "config: completing the configuration")
	}
	// The tree has the struct's own types, so no hook is needed, and ErrorUnused (which would replace koanf's) can be on.
	conf := koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{ErrorUnused: true, Result: target,
		TagName: "koanf", MatchName: func(key, field string) bool { return key == field }}}
	if err := final.UnmarshalWithConf("", target, conf); err != nil {
		return nil, errs.Wrap(errs.Internal, err, "config: decoding the configuration")
	}
	return tree, nil
}

// addProblems takes over what Validate found, unless a problem about the same key is already known: the value that
// Validate saw is then not the one that was given.
func (l *loader) addProblems(found []Problem, tree map[string]any) {
	known := l.problems[:len(l.problems):len(l.problems)]
	leaves := make(map[string]leaf)
	for _, leaf := range l.root.leaves(tree, "") {
		leaves[leaf.key] = leaf
	}
	for _, p := range found {
		if known.touches(p.Key) {
			continue
		}
		p.Source = l.sourceOf(p.Key)
		if leaf, ok := leaves[p.Key]; ok {
			p.Value = leaf.shown()
		} else if leaf, ok := leaves[parentKey(p.Key)]; ok {
			p.Value = leaf.shownAt(p.Key)
		}
		l.problems = append(l.problems, p)
	}
}

// sourceOf is where key, or else the nearest that contains it, was set.
func (l *loader) sourceOf(key string) string {
	for key != "" {
		if s, ok := l.origins[key]; ok {
			return s
		}
		key = parentKey(key)
	}
	return SourceDefault
}

// sources gives the source of each value.
func (l *loader) sources(tree map[string]any) map[string]string {
	out := make(map[string]string)
	for _, leaf := range l.root.leaves(tree, "") {
		out[leaf.key] = SourceDefault
		if s, ok := l.origins[leaf.key]; ok {
			out[leaf.key] = s
		}
	}
	return out
}
