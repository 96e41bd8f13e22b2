//go:build unix

package server

import "syscall"

// maxFiles is how many file descriptors the process may have; 0: not known.
func maxFiles() int {
	var r syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r) != nil {
		return 0
	}
	return int(min(r.Cur, 1<<30))
}
