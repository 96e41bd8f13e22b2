package config

import (
	"bytes"
	"errors"
	"io"
	"os"
	"regexp"
	"strconv"

	"go.yaml.in/yaml/v3"

	"fairlead/shared/errs"
)

// maxFile bounds a configuration file; a larger one is most likely another file.
const maxFile = 4 << 20

// readFile reads a configuration file; errs.ConfigUnreadable when that fails.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, errs.Wrap(errs.ConfigUnreadable, err, "configuration file")
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, errs.Wrap(errs.ConfigUnreadable, err, "configuration file")
	}
	if len(text) > maxFile {
		return nil, errs.New(errs.ConfigUnreadable, "configuration file %s: larger than %s", path, Bytes(maxFile))
	}
	return text, nil
}

// syntaxError is a YAML text that cannot be read.
type syntaxError struct {
	line int // 0 if the parser did not say
	text string
}

var (
	linePattern   = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)
	anchorPattern = regexp.MustCompile(`^unknown anchor '([^']*)'`)
	// The errors of yaml's parser, other than those of its scanner, count lines from 0.
	parserPattern = regexp.MustCompile(`^did not find expected (<|node content|'-' indicator|key|',' or)|^found (duplicate|incompatible|undefined)`)
)

// parseYAML returns the root value of the only document in text; nil if there is none or it is null.
func parseYAML(text []byte) (*yaml.Node, *syntaxError) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, newSyntaxError(text, err)
	}
	var second yaml.Node
	switch err := dec.Decode(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		return nil, newSyntaxError(text, err)
	default:
		return nil, &syntaxError{second.Line, "a second document; allowed: one"}
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil, nil
	}
	return doc.Content[0], nil
}

// newSyntaxError finds the line that yaml means; it names none in the first line, and none for an alias without an anchor.
func newSyntaxError(text []byte, err error) *syntaxError {
	m := linePattern.FindStringSubmatch(err.Error())
	if m == nil {
		return &syntaxError{0, err.Error()}
	}
	what, line := m[2], 1
	if m[1] != "" {
		line, _ = strconv.Atoi(m[1]) // digits
		if parserPattern.MatchString(what) {
			line++
		}
	}
	if a := anchorPattern.FindStringSubmatch(what); a != nil {
		before, _, _ := bytes.Cut(text, []byte("*"+a[1]))
		line = 1 + bytes.Count(before, []byte("\n"))
	}
	return &syntaxError{line, what}
}

// fileSource names a line of a file.
func fileSource(path string) func(line int) string {
	return func(line int) string {
		if line == 0 {
			return path
		}
		return path + ":" + strconv.Itoa(line)
	}
}
