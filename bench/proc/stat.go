package proc

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of the times in /proc/PID/stat. The kernel scales them to 100 a second for user space on every
// architecture that Go supports (USER_HZ), whatever its own timer runs at.
const tick = time.Second / 100

// Stat is the part of /proc/PID/stat that measuring needs.
type Stat struct {
	PID, PPID int
	// CPU is user and system time of the process itself; Reaped is that of children that ended and were waited for.
	CPU, Reaped time.Duration
}

// ParseStat reads one line in the form of /proc/PID/stat (proc(5)).
func ParseStat(line []byte) (Stat, error) {
	// The second field is the command in parentheses and may itself hold blanks and parentheses: cut at the last one.
	open, end := bytes.IndexByte(line, '('), bytes.LastIndexByte(line, ')')
	if open < 1 || end < open {
		return Stat{}, fmt.Errorf("process status %.40q has no command in parentheses", line)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(line[:open])))
	if err != nil {
		return Stat{}, fmt.Errorf("process status has a bad process id: %w", err)
	}
	const first, ppid, utime, cstime = 3, 4, 14, 17 // field numbers of proc(5); the rest starts with field 3
	rest := strings.Fields(string(line[end+1:]))
	if len(rest) <= cstime-first {
		return Stat{}, fmt.Errorf("process status of %d has only %d fields after the command", pid, len(rest))
	}
	s := Stat{PID: pid}
	if s.PPID, err = strconv.Atoi(rest[ppid-first]); err != nil {
		return Stat{}, fmt.Errorf("process status of %d has a bad parent: %w", pid, err)
	}
	var ticks [4]int64 // utime, stime, cutime, cstime
	for i := range ticks {
		if ticks[i], err = strconv.ParseInt(rest[utime-first+i], 10, 64); err != nil {
			return Stat{}, fmt.Errorf("process status of %d has a bad time: %w", pid, err)
		}
	}
	s.CPU = time.Duration(ticks[0]+ticks[1]) * tick
	s.Reaped = time.Duration(ticks[2]+ticks[3]) * tick
	return s, nil
}

// ParsePSS reads the proportional set size in bytes from text in the form of /proc/PID/smaps_rollup.
func ParsePSS(text []byte) (int64, error) {
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		value, found := strings.CutPrefix(lines.Text(), "Pss:")
		if !found {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("memory map has a bad Pss line: %w", err)
		}
		return kib << 10, nil
	}
	return 0, errors.New("memory map has no Pss line")
}

// Usage is what a set of processes has used.
type Usage struct {
	CPU time.Duration // user and system, descendants included, also those that ended
	PSS int64         // bytes; memory that n processes share counts for each with its nth part
}

// Measure sums up the processes roots and all that descend from them. A root that has ended is an error, for its
// figures would be missing; a descendant that ends meanwhile is counted by its parent.
func Measure(roots ...int) (Usage, error) {
	tree, err := descend(roots)
	if err != nil {
		return Usage{}, err
	}
	var sum Usage
	for _, s := range tree {
		sum.CPU += s.CPU + s.Reaped
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", s.PID))
		if gone(err) {
			continue
		}
		if err != nil {
			return Usage{}, fmt.Errorf("read the memory of process %d: %w", s.PID, err)
		}
		pss, err := ParsePSS(text)
		if err != nil {
			continue // a process that is ending has an empty map
		}
		sum.PSS += pss
	}
	return sum, nil
}

// CPU is Measure without the memory: cheap enough to poll.
func CPU(roots ...int) (time.Duration, error) {
	tree, err := descend(roots)
	var sum time.Duration
	for _, s := range tree {
		sum += s.CPU + s.Reaped
	}
	return sum, err
}

// descend lists roots and their descendants.
func descend(roots []int) ([]Stat, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	children := make(map[int][]Stat, len(paths))
	byPID := make(map[int]Stat, len(paths))
	for _, path := range paths {
		line, err := os.ReadFile(path)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read a process status: %w", err)
		}
		s, err := ParseStat(line)
		if err != nil {
			return nil, err
		}
		byPID[s.PID] = s
		children[s.PPID] = append(children[s.PPID], s)
	}
	var tree []Stat
	for _, root := range roots {
		s, ok := byPID[root]
		if !ok {
			return nil, fmt.Errorf("process %d has ended", root)
		}
		tree = append(tree, s)
	}
	for i := 0; i < len(tree); i++ { // grows while it is walked
		tree = append(tree, children[tree[i].PID]...)
	}
	return tree, nil
}

// gone says whether a read under /proc failed because the process ended.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNoProcess)
}
