package listener

import (
	"context"
	"log/slog"
	"time"

	"fairlead/shared/lifecycle"
	"fairlead/shared/logging"
)

// handOn lets Handle have a connection, and closes it after.
func (l *Listener) handOn(c *conn) {
	defer l.done(c)
	l.log.Info("connection accepted", logging.FieldPeer, c.peer())
	err := lifecycle.Guard(l.log, "handle", func() error { return l.cfg.Handle(l.ctx, c.Conn, func(n int) { c.read.Add(uint64(n)) }) })
	if err == nil {
		c.Close()
	} else {
		c.reset()
	}
	l.log.Log(context.Background(), levelOf(err), "connection ended", append([]any{logging.FieldPeer, c.peer(), "sent", c.read.Load(), "received", c.wrote.Load(),
		"duration_ms", time.Since(c.start).Milliseconds()}, l.failure(err)...)...)
}

// failure counts how a connection failed, and says so for the log; nothing when it did not.
func (l *Listener) failure(err error) []any {
	if err == nil {
		return nil
	}
	l.count.failed.Inc()
	reason := "failed"
	if cut := l.cutReason(); cut != nil {
		err, reason = cut, "cut"
	}
	return append([]any{logging.FieldReason, reason}, logging.Error(err)...)
}

func levelOf(err error) slog.Level {
	if err != nil {
		return slog.LevelWarn
	}
	return slog.LevelInfo
}
