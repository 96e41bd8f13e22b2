package spool

import (
	"os"
	"syscall"
)

// fdatasync makes a file's bytes and size durable. It holds on to the file meanwhile: another goroutine may close it.
func fdatasync(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Control(func(fd uintptr) {
		for {
			if result = syscall.Fdatasync(int(fd)); result != syscall.EINTR {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	return result
}
