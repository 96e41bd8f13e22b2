package logging

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Tamed writes lines that strangers cause: of each cause a few in a second, then one line that counts the others. A flood of
// refusals is in the log as what it is, and the disk does not become its victim.
type Tamed struct {
	mu     sync.Mutex
	causes map[string]*cause // those of this second
	closed bool
}

type cause struct {
	log   *slog.Logger // of the last line
	level slog.Level
	msg   string
	lines int // in this second
	more  int // that were not written
	last  []any
	timer *time.Timer
}

const (
	tameLines  = 20
	tameWindow = time.Second
)

// NewTamed makes a Tamed. Flush it at the end.
func NewTamed() *Tamed { return &Tamed{causes: map[string]*cause{}} }

// Say writes a line to log, unless there were too many of its cause in this second. A cause is a message and a name, of
// which there must not be more than a stranger's identity allows: a code, a tenant.
func (t *Tamed) Say(log *slog.Logger, level slog.Level, name, msg string, attrs ...any) {
	if !log.Enabled(context.Background(), level) {
		return
	}
	if t.passes(log, level, name, msg, attrs) {
		log.Log(context.Background(), level, msg, attrs...)
	}
}

func (t *Tamed) passes(log *slog.Logger, level slog.Level, name, msg string, attrs []any) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return true
	}
	name = msg + name
	c, ok := t.causes[name]
	if !ok {
		c = &cause{level: level, msg: msg}
		t.causes[name] = c
		c.timer = time.AfterFunc(tameWindow, func() { t.turnOver(name) })
	}
	if c.lines < tameLines {
		c.lines++
		return true
	}
	c.more++
	c.log, c.last = log, attrs
	return false
}

// turnOver begins a cause's next second, or forgets it.
func (t *Tamed) turnOver(name string) {
	t.mu.Lock()
	c, ok := t.causes[name]
	if !ok { // flushed
		t.mu.Unlock()
		return
	}
	summary := *c
	if c.lines, c.more, c.last = 0, 0, nil; summary.more == 0 {
		delete(t.causes, name)
	} else {
		c.timer.Reset(tameWindow)
	}
	t.mu.Unlock()
	summary.write()
}

// write tells how many lines were left out, with the fields of the last one.
func (c *cause) write() {
	if c.more > 0 {
		c.log.Log(context.Background(), c.level, c.msg, append([]any{"and_more", c.more}, c.last...)...)
	}
}

// Flush writes what is left, at the end. Lines after it are all written.
func (t *Tamed) Flush() {
	t.mu.Lock()
	t.closed = true
	all := t.causes
	t.causes = map[string]*cause{}
	t.mu.Unlock()
	for _, c := range all {
		c.timer.Stop()
		c.write()
	}
}
