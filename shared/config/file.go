package config

import (
	"bytes"
	"errors"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"

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

var linePattern = regexp.MustCompile(`^(?:yaml: )?(?:unmarshal errors:\s*)?line (\d+):\s*`)

// parseYAML returns the root value of the only document in text; nil if there is none or it is null.
func parseYAML(text []byte) (*yaml.Node, *syntaxError) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, newSyntaxError(err)
	}
	var second yaml.Node
	switch err := dec.Decode(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		return nil, newSyntaxError(err)
	default:
		return nil, &syntaxError{second.Line, "a second document; allowed: one"}
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil, nil
	}
	return doc.Content[0], nil
}

func newSyntaxError(err error) *syntaxError {
	text := err.Error()
	m := linePattern.FindStringSubmatch(text)
	if m == nil {
		return &syntaxError{0, strings.TrimPrefix(text, "yaml: ")}
	}
	line, _ := strconv.Atoi(m[1]) // digits
	return &syntaxError{line, text[len(m[0]):]}
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
