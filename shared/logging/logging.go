// Package logging sets up log/slog for both programs: levels that change at run time, one format for machines and one for
// people, the names of the fields, and a string type for secrets that no log line can reveal.
package logging

import (
	"errors"
	"io"
	"log/slog"
	"os"

	"fairlead/shared/errs"
)

// Formats of log lines.
const (
	FormatJSON = "json" // one JSON object a line
	FormatText = "text" // key=value pairs
	FormatAuto = "auto" // text when the writer is a terminal, else JSON
)

// Config says how a logger is made.
type Config struct {
	Level     string    // error, warn, info, debug or trace; "" is info
	Format    string    // json, text or auto; "" is auto
	Writer    io.Writer // where lines go, one Write each; nil is standard error
	Instance  string    // field of every line that tells instances apart; "" leaves it out
	Version   string    // field of every line; "" leaves it out
	Component string    // field of every line; "" leaves it out, for parts that set it with Logger.With
}

// New makes a logger and the level that governs it and all loggers derived from it. An unknown level or format is an
// errs.ConfigInvalid error. The writer stays the caller's to close.
func New(c Config) (*slog.Logger, *Level, error) {
	level, err := newLevel(c.Level)
	if err != nil {
		return nil, nil, err
	}
	if c.Writer == nil {
		c.Writer = os.Stderr
	}
	opts := &slog.HandlerOptions{Level: &level.v, ReplaceAttr: nameLevel}
	var h slog.Handler
	switch format(c.Format, c.Writer) {
	case FormatJSON:
		h = slog.NewJSONHandler(c.Writer, opts)
	case FormatText:
		h = slog.NewTextHandler(c.Writer, opts)
	default:
		return nil, nil, errs.New(errs.ConfigInvalid, "log format %q: allowed are json, text and auto", c.Format)
	}
	return slog.New(h).With(identity(c)...), level, nil
}

func format(name string, w io.Writer) string {
	if name != "" && name != FormatAuto {
		return name
	}
	if isTerminal(w) {
		return FormatText
	}
	return FormatJSON
}

// isTerminal takes every character device for a terminal: of those that a log is sent to, the other one is /dev/null.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func identity(c Config) []any {
	var attrs []any
	for _, f := range []struct{ name, value string }{
		{FieldInstance, c.Instance}, {FieldVersion, c.Version}, {FieldComponent, c.Component},
	} {
		if f.value != "" {
			attrs = append(attrs, slog.String(f.name, f.value))
		}
	}
	return attrs
}

// nameLevel prints the trace level by its name; slog alone would print "DEBUG-4".
func nameLevel(groups []string, a slog.Attr) slog.Attr {
	if len(groups) > 0 || a.Key != slog.LevelKey {
		return a
	}
	if l, ok := a.Value.Any().(slog.Level); ok && l == LevelTrace {
		a.Value = slog.StringValue("TRACE")
	}
	return a
}

// Error returns the attributes that describe err: its text, and the code, category and advice that shared/errs knows of
// it. An error that carries a stack (a method Stack() []byte) has it added. The result goes at the end of a log call:
//
//	log.Error("lane lost", append(logging.Error(err), logging.FieldTunnel, id)...)
//
// For a nil error there are no attributes.
func Error(err error) []any {
	if err == nil {
		return nil
	}
	e := errs.From(err)
	attrs := []any{
		slog.String(FieldError, err.Error()),
		slog.String(FieldCode, e.Code.String()),
		slog.String(FieldCategory, string(e.Category())),
		slog.String(FieldAdvice, e.Advice()),
	}
	var s interface{ Stack() []byte }
	if errors.As(err, &s) {
		attrs = append(attrs, slog.String(FieldStack, string(s.Stack())))
	}
	return attrs
}
