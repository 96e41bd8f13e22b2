package link

import "fmt"

// Priority orders streams: in the sidecar's queue, and byte by byte on a lane.
type Priority uint8

// The priorities, first served first.
const (
	High   Priority = iota // interactive: a shell
	Normal                 // batch: git, scp
	Low                    // background: log shipping, backups

	priorities = 3
)

// String is the priority's name in configuration.
func (p Priority) String() string {
	switch p {
	case High:
		return "high"
	case Normal:
		return "normal"
	case Low:
		return "low"
	}
	return fmt.Sprintf("priority %d", uint8(p))
}

// ParsePriority reads a name in configuration; the empty one is Normal.
func ParsePriority(s string) (Priority, error) {
	switch s {
	case "high":
		return High, nil
	case "normal", "":
		return Normal, nil
	case "low":
		return Low, nil
	}
	return Normal, fmt.Errorf("priority %q: allowed are high, normal and low", s)
}
