package spool

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"

	"github.com/VictoriaMetrics/metrics"

	"fairlead/shared/errs"
)

// Offline opens the spool of a sidecar that does not run, to look at it and to drop connections: it takes the lock, receives
// nothing and delivers nothing. A directory that does not exist is an error, not made.
func Offline(dir, keyFile string, oldKeyFiles []string) (*Spool, error) {
	if _, err := os.Stat(dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errs.New(errs.SpoolUnusable, "there is no spool at %s", dir)
		}
		return nil, errs.Wrap(errs.SpoolUnusable, err, "the spool's directory %s cannot be read", dir)
	}
	return New(Config{Dir: dir, KeyFile: keyFile, OldKeyFiles: oldKeyFiles, Logger: slog.New(slog.DiscardHandler), Metrics: metrics.NewSet()})
}
