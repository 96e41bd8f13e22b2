package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Profile is a named set of defaults.
type Profile[T Validator] struct {
	Name     string
	Doc      string // one sentence: what it is for
	Defaults T
}

// Profiled is a configuration that has profiles.
type Profiled[T Validator] interface {
	// ProfileName is the profile that the configuration asks for; "" is none.
	ProfileName() string
	// Profiles are all that there are.
	Profiles() []Profile[T]
}

// profileOf returns the profile that the configuration asks for; nil if it asks for none, or for one that there is not.
func profileOf[T Validator](config T) *Profile[T] {
	p, ok := any(config).(Profiled[T])
	if !ok || p.ProfileName() == "" {
		return nil
	}
	for _, profile := range p.Profiles() {
		if profile.Name == p.ProfileName() {
			return &profile
		}
	}
	return nil
}

// writeProfiles writes what each profile changes, as a table.
func writeProfiles[T Validator](b *strings.Builder, root *field, defaults T) {
	p, ok := any(defaults).(Profiled[T])
	if !ok {
		return
	}
	b.WriteString("\n## Profiles\n\nA profile changes defaults; whatever is set in the file, the environment or the command line counts more.\n\n")
	header, rule := "| key | default |", "| --- | --- |"
	rows := make(map[string]string)
	for _, profile := range p.Profiles() {
		fmt.Fprintf(b, "- `%s`: %s\n", profile.Name, profile.Doc)
		header, rule = header+" "+profile.Name+" |", rule+" --- |"
		for _, key := range Diff(defaults, profile.Defaults) {
			rows[key] = ""
		}
	}
	fmt.Fprintf(b, "\n%s\n%s\n", header, rule)
	sets := []map[string]string{root.written(defaults)}
	for _, profile := range p.Profiles() {
		sets = append(sets, root.written(profile.Defaults))
	}
	for _, key := range slices.Sorted(maps.Keys(rows)) {
		if key == "profile" {
			continue
		}
		fmt.Fprintf(b, "| `%s` |", key)
		for i, set := range sets {
			if i > 0 && set[key] == sets[0][key] {
				b.WriteString(" |")
				continue
			}
			fmt.Fprintf(b, " `%s` |", set[key])
		}
		b.WriteString("\n")
	}
}

// written gives each key's value as the reference writes defaults.
func (f *field) written(config any) map[string]string {
	out := make(map[string]string)
	for _, l := range f.leaves(f.treeOf(reflect.ValueOf(config)), "") {
		out[l.key] = l.field.describeDefault(l.value)
	}
	return out
}
