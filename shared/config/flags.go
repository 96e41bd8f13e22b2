package config

import (
	"os"
	"regexp"
	"strings"

	"github.com/spf13/pflag"

	"fairlead/shared/errs"
)

var (
	servicePattern = regexp.MustCompile(`^([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)
	indexPattern   = regexp.MustCompile(`\[([0-9]+)\]`)
)

// Flags is what the command line says about the configuration. The zero value says nothing.
type Flags struct {
	File string // --config; empty: the environment's FAIRLEAD_CONFIG, or no file

	assignments []assignment // in the order of the command line: the last one wins
}

// Register adds --config, --set, --log-level and --log-format to fs.
func (f *Flags) Register(fs *pflag.FlagSet) {
	fs.StringVar(&f.File, "config", "", "configuration file (YAML); default: "+EnvFile)
	fs.Var(assignFlag{f, "--set", "", "path=value"}, "set", "set one key, as in --set gateway.token_file=/run/token; may be repeated")
	fs.Var(assignFlag{f, "--log-level", "log.level", "level"}, "log-level", "error, warn, info, debug or trace")
	fs.Var(assignFlag{f, "--log-format", "log.format", "format"}, "log-format", "json, text or auto")
}

// Set adds an assignment, as --set path=value does. It is an errs.ConfigInvalid error if there is no "=".
func (f *Flags) Set(text string) error {
	path, value, ok := strings.Cut(text, "=")
	if !ok || path == "" {
		return errs.New(errs.ConfigInvalid, "--set: allowed is path=value, as in --set log.level=debug")
	}
	f.assign("--set "+path, path, value)
	return nil
}

func (f *Flags) assign(source, path, value string) {
	path = indexPattern.ReplaceAllString(path, ".$1")
	f.assignments = append(f.assignments, assignment{source: source, path: path, value: value, form: flagForm()})
}

// file is the configuration file to read; empty for none.
func (f *Flags) file(environ []string) string {
	if f.File != "" {
		return f.File
	}
	for _, e := range environ {
		if path, ok := strings.CutPrefix(e, EnvFile+"="); ok {
			return path
		}
	}
	return ""
}

// assignFlag is a flag that sets a key. It keeps no value, so that the command line's order is kept across flags.
type assignFlag struct {
	flags      *Flags
	name, path string // an empty path: the text holds it
	kind       string
}

// String implements pflag.Value; there is no default to show.
func (assignFlag) String() string { return "" }

// Type implements pflag.Value.
func (a assignFlag) Type() string { return a.kind }

// Set implements pflag.Value.
func (a assignFlag) Set(text string) error {
	if a.path == "" {
		return a.flags.Set(text)
	}
	a.flags.assign(a.name, a.path, text)
	return nil
}

func environOr(environ []string) []string {
	if environ == nil {
		return os.Environ()
	}
	return environ
}
