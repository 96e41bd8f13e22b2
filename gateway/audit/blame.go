package audit

import (
	"encoding/hex"
	"fmt"
)

// blame says what is wrong around c, which does not follow the last good line p, under the assumption that one thing was
// done to the log. What gives it away is who fits whom: a line names its number and the hash of the line before it.
func (v *verifier) blame(c, next *raw) error {
	seq := v.expected()
	switch {
	case !c.whole:
		return v.damage(c, Torn, "the line has no end, and no gateway has declared that")
	case next.follows(seq, v.last) && c.line != nil && next.hash == c.prevHash():
		return v.damage(c, Reordered, fmt.Sprintf("it belongs behind %s", next.place()))
	case next.follows(seq, v.last):
		return v.damage(c, Inserted, fmt.Sprintf("without it, line %d follows as it should", seq))
	case v.isRivalOfLast(c):
		return v.rival(c, next)
	case v.prev != nil && next.kind() == kindRecover && next.line.Prev == hexOf(c.hash) && next.line.Log.Torn == c.length:
		return v.besideTorn(c, next)
	case c.line == nil || next.kind() == kindRecover && v.prev != nil && next.line.Log.After == hexOf(v.prev.hash):
		return v.noLine(c, next)
	case c.kind() == kindRecover && v.prev != nil && c.line.Log.After == hexOf(v.prev.hash):
		return v.damage(c, Removed, "the torn line that it speaks of is not before it")
	case c.line.Seq == seq && v.prev == nil:
		return v.damage(c, Edited, "a log begins otherwise")
	case c.line.Seq == seq:
		return v.unequal(c, next)
	case v.prev != nil && c.line.Prev == hexOf(v.last), v.prev == nil && next.seq() == 2:
		return v.damage(c, Edited, fmt.Sprintf("it is line %d, but says %d", seq, c.line.Seq))
	case c.line.Seq < seq:
		return v.damage(c, Reordered, fmt.Sprintf("line %d should be here, and not one from before", seq))
	}
	return v.gap(c, seq)
}

// isRivalOfLast reports whether c claims the place that the last good line has.
func (v *verifier) isRivalOfLast(c *raw) bool {
	return v.prev != nil && c.follows(v.prev.line.Seq, v.before)
}

// rival decides between two lines for one place: the one that the next line follows is the genuine one.
func (v *verifier) rival(c, next *raw) error {
	if v.witness(next) == hexOf(c.hash) && c.hash != v.prev.hash {
		return v.damage(v.prev, Inserted, fmt.Sprintf("%s is genuine in its place", c.place()))
	}
	return v.damage(c, Inserted, fmt.Sprintf("%s has its place", v.prev.place()))
}

// unequal is for a line with the right number whose prev is not the hash of the line before it: one of the two was edited.
func (v *verifier) unequal(c, next *raw) error {
	witness := v.witness(next)
	confirmed := witness == hexOf(c.hash)
	refuted := witness != "" && !confirmed
	if key, ok := v.keys[logKey(c)]; ok && next == nil {
		confirmed = v.genuine(c, key)
		refuted = !confirmed
	}
	if v.last != v.prev.hash { // a declared torn line is in between: it was checked
		confirmed, refuted = false, true
	}
	if refuted && !confirmed {
		return v.damage(c, Edited, "its prev is not the hash of the line before it, and what vouches for it does not fit")
	}
	text := fmt.Sprintf("%s says that its hash is %s, but it is %s", c.place(), c.line.Prev, hexOf(v.last))
	if !confirmed {
		text += "; or that line was edited"
	}
	return v.damage(v.prev, Edited, text)
}

// besideTorn is for a torn line that is as it was declared, but not behind the line that the declaration names: that line
// was edited or is missing, or the declaration was edited.
func (v *verifier) besideTorn(c, declaration *raw) error {
	switch {
	case !v.confirmed(declaration):
		return v.damage(declaration, Edited, "the line behind it does not follow")
	case declaration.line.Log.After == hexOf(v.before):
		return v.damage(v.prev, Inserted, "the torn line behind it belongs to the line before it")
	case declaration.seq() > v.expected():
		return v.damage(c, Removed, fmt.Sprintf("lines %d to %d are missing before it", v.expected(), declaration.seq()-1))
	}
	return v.damage(v.prev, Edited, fmt.Sprintf("%s says that its hash is %s, but it is %s", declaration.place(), declaration.line.Log.After, hexOf(v.last)))
}

// noLine is for something that is no line: an edited one, or a torn one whose declaration was edited.
func (v *verifier) noLine(c, next *raw) error {
	if next != nil && !v.confirmed(next) {
		return v.damage(next, Edited, "neither does the line behind it follow, nor does it declare the one before it as torn")
	}
	text := "it is not what was left of a torn line"
	if c.err != nil {
		text = c.err.Error()
	}
	return v.damage(c, Edited, text)
}

// confirmed reports whether the line after next speaks for next; true when there is none that could.
func (v *verifier) confirmed(next *raw) bool {
	after := v.after()
	return after.seq() == 0 || after.line.Prev == hexOf(next.hash)
}

// witness is the hash that the lines behind c say c has; "" when they say nothing.
func (v *verifier) witness(next *raw) string {
	if next.seq() > 0 {
		return next.line.Prev
	}
	if next == nil {
		return ""
	}
	// What is left of a torn line says nothing, but the line that declares it does.
	if after := v.after(); after.kind() == kindRecover && after.line.Prev == hexOf(next.hash) {
		return after.line.Log.After
	}
	return ""
}

// after is the line behind next, when blame needs a third witness.
func (v *verifier) after() *raw {
	if v.third == nil {
		v.third, _ = v.more.next()
	}
	return v.third
}

func logKey(c *raw) string {
	if c.line.Log == nil {
		return ""
	}
	return c.line.Log.Key
}

// gap is for a line that comes too early. Only the rest of the log shows whether the missing one is further behind.
func (v *verifier) gap(c *raw, seq uint64) error {
	for later := v.after(); later != nil; later, _ = v.more.next() { // one that cannot be read ends it, too
		if later.follows(seq, v.last) {
			return v.damage(c, Reordered, fmt.Sprintf("line %d should be here: it is %s", seq, later.place()))
		}
	}
	if c.line.Seq == seq+1 {
		return v.damage(c, Removed, fmt.Sprintf("line %d is missing before it", seq))
	}
	return v.damage(c, Removed, fmt.Sprintf("lines %d to %d are missing before it", seq, c.line.Seq-1))
}

// prevHash is the hash that the line says the one before it has. parseLine has seen that it is one.
func (r *raw) prevHash() (h hash) {
	_, _ = hex.Decode(h[:], []byte(r.line.Prev))
	return h
}
