package testbed

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// children returns the ids of the living children of pid, as Linux's /proc tells; none on a system without it.
func children(pid int) []int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is well-formed, which is all that Glob can fail on
	var ids []int
	for _, path := range stats {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		id, state, parent, ok := parseStat(string(raw))
		if ok && parent == pid && state != "Z" {
			ids = append(ids, id)
		}
	}
	return ids
}

// parseStat reads process id, state and parent from a line of /proc/<pid>/stat. The command's name stands in
// parentheses and may hold spaces and parentheses itself, so the fields after it are counted from the last one.
func parseStat(line string) (pid int, state string, parent int, ok bool) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return 0, "", 0, false
	}
	fields := strings.Fields(line[end+1:])
	if len(fields) < 2 {
		return 0, "", 0, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line[:open]))
	if err != nil {
		return 0, "", 0, false
	}
	parent, err = strconv.Atoi(fields[1])
	return pid, fields[0], parent, err == nil
}

// catches reports whether a process handles a signal now, as Linux's /proc tells.
func catches(pid int, sig syscall.Signal) bool {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return false
	}
	return masked(string(raw), "SigCgt:", sig) && !masked(string(raw), "SigBlk:", sig)
}

// masked reports whether a signal is in one of the masks of /proc/<pid>/status, which are hexadecimal.
func masked(status, mask string, sig syscall.Signal) bool {
	_, rest, _ := strings.Cut(status, mask)
	line, _, _ := strings.Cut(rest, "\n")
	bits, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	return err == nil && bits&(1<<(uint(sig)-1)) != 0
}

// killTree kills a process, its process group and all descendants. sshd puts each connection into a session of its own,
// which a signal to the group does not reach. The tree is stopped from the top before it is killed, so that nothing
// forks while it is being listed.
func killTree(pid int) {
	tree := freeze(pid, nil)
	_ = syscall.Kill(-pid, syscall.SIGKILL) // errors mean that it is gone already
	for _, id := range tree {
		_ = syscall.Kill(id, syscall.SIGKILL)
	}
}

func freeze(pid int, tree []int) []int {
	_ = syscall.Kill(pid, syscall.SIGSTOP)
	tree = append(tree, pid)
	for _, child := range children(pid) {
		tree = freeze(child, tree)
	}
	return tree
}
