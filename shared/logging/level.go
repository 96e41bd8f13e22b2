package logging

import (
	"log/slog"

	"fairlead/shared/errs"
)

// LevelTrace is more detailed than slog.LevelDebug: single frames and wake-ups.
const LevelTrace = slog.Level(-8)

// Level is a level that can be changed while loggers use it, from any goroutine.
type Level struct{ v slog.LevelVar }

func newLevel(name string) (*Level, error) {
	l := &Level{} // the zero LevelVar is info
	if name == "" {
		return l, nil
	}
	return l, l.Set(name)
}

// Set changes the level to error, warn, info, debug or trace. Any other name is an errs.ConfigInvalid error and changes
// nothing.
func (l *Level) Set(name string) error {
	level, ok := levelOf(name)
	if !ok {
		return errs.New(errs.ConfigInvalid, "log level %q: allowed are error, warn, info, debug and trace", name)
	}
	l.v.Set(level)
	return nil
}

// String is the level's name as Set takes it.
func (l *Level) String() string {
	switch level := l.v.Level(); {
	case level >= slog.LevelError:
		return "error"
	case level >= slog.LevelWarn:
		return "warn"
	case level >= slog.LevelInfo:
		return "info"
	case level >= slog.LevelDebug:
		return "debug"
	}
	return "trace"
}

// Level implements slog.Leveler.
func (l *Level) Level() slog.Level { return l.v.Level() }

func levelOf(name string) (slog.Level, bool) {
	switch name {
	case "error":
		return slog.LevelError, true
	case "warn":
		return slog.LevelWarn, true
	case "info":
		return slog.LevelInfo, true
	case "debug":
		return slog.LevelDebug, true
	case "trace":
		return LevelTrace, true
	}
	return 0, false
}
