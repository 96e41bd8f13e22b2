package matrix

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// idPattern is the form of a criterion's id.
const idPattern = `R\d+\.\d+|N\d+`

// Criteria reads the criteria from a document. An id that stands there twice is an error, as is a document without any.
func Criteria(path string) ([]Criterion, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	item := regexp.MustCompile(`^- (` + idPattern + `) (.+)$`)
	var criteria []Criterion
	seen := make(map[string]bool)
	section, within := "", false // within: the line before was part of a criterion
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimRight(line, "\r\n")
		match := item.FindStringSubmatch(line)
		switch {
		case match != nil:
			if seen[match[1]] {
				return nil, fmt.Errorf("%s: criterion %s stands there twice", path, match[1])
			}
			seen[match[1]], within = true, true
			criteria = append(criteria, Criterion{ID: match[1], Section: section, Text: match[2]})
		case strings.HasPrefix(line, "## "):
			section, within = strings.TrimPrefix(line, "## "), false
		case within && strings.HasPrefix(line, "  "):
			criteria[len(criteria)-1].Text += " " + strings.TrimSpace(line)
		default:
			within = false
		}
	}
	if len(criteria) == 0 {
		return nil, fmt.Errorf("%s: no criteria (list items as \"- R1.1 text\")", path)
	}
	return criteria, nil
}
