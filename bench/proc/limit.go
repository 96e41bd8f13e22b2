package proc

import (
	"fmt"
	"syscall"
)

// RaiseFiles raises this process's limit of open files, which its children inherit, to want or as far as it may, and
// tells what it is now.
func RaiseFiles(want uint64) (uint64, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	// Set it even if it is high enough: the Go runtime raised the soft limit for itself alone and gives children the
	// old one, unless the program has set a limit of its own.
	next := syscall.Rlimit{Cur: max(want, limit.Cur), Max: max(want, limit.Max)}
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &next) == nil {
		return next.Cur, nil
	}
	next = syscall.Rlimit{Cur: limit.Max, Max: limit.Max} // only a privileged process may raise the hard limit
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &next); err != nil {
		return limit.Cur, fmt.Errorf("raise the limit of open files to %d: %w", next.Cur, err)
	}
	return next.Cur, nil
}

// Files is the limit of open files that children inherit.
func Files() (uint64, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	return limit.Cur, nil
}
