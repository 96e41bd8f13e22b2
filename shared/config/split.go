package config

import "strings"

// Split parts changed keys, as Diff lists them, into those that are in one of the blocks (or are the block), and the others.
func Split(changed, blocks []string) (inside, outside []string) {
	for _, key := range changed {
		if inBlocks(key, blocks) {
			inside = append(inside, key)
		} else {
			outside = append(outside, key)
		}
	}
	return inside, outside
}

func inBlocks(key string, blocks []string) bool {
	for _, b := range blocks {
		rest, ok := strings.CutPrefix(key, b)
		if ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			return true
		}
	}
	return false
}
