package queue

import (
	"slices"

	"fairlead/shared/link"
)

// line is who waits: by priority, then by arrival.
type line []*Ticket

// add puts t behind its equals.
func (l *line) add(t *Ticket) {
	at, _ := slices.BinarySearchFunc(*l, t.prio, func(o *Ticket, p link.Priority) int {
		if o.prio <= p {
			return -1
		}
		return 1
	})
	*l = slices.Insert(*l, at, t)
}

// last is the newest of the lowest priority; nil when nobody waits.
func (l line) last() *Ticket {
	if len(l) == 0 {
		return nil
	}
	return l[len(l)-1]
}

func (l line) has(t *Ticket) bool { return slices.Contains(l, t) }

// before is how many are served before t.
func (l line) before(t *Ticket) int { return max(slices.Index(l, t), 0) }

func (l *line) remove(t *Ticket) {
	if i := slices.Index(*l, t); i >= 0 {
		*l = slices.Delete(*l, i, i+1)
	}
}

// of counts those of a priority.
func (l line) of(prio link.Priority) int {
	n := 0
	for _, t := range l {
		if t.prio == prio {
			n++
		}
	}
	return n
}
