package limit

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// cgroups finds what the kernel says about the process's control groups, in a file system that has /proc and /sys at its
// root. Both versions and both together are understood.
type cgroups struct {
	files   fs.FS
	unified string            // directory of the version 2 group; "": none
	legacy  map[string]string // directories of the version 1 groups, by controller
}

const (
	cgroupRoot = "sys/fs/cgroup"
	unlimited  = 1 << 60 // version 1 writes a huge number where there is no limit
)

var errNoLimit = errors.New("no control group with a limit")

// newCgroups reads where the process is. In a container the path in /proc may be the host's, which is not to be seen: then
// the root of the mount is the group.
func newCgroups(files fs.FS) *cgroups {
	c := &cgroups{files: files, legacy: map[string]string{}}
	text, err := fs.ReadFile(files, "proc/self/cgroup")
	if err != nil {
		return c
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		if fields[1] == "" {
			for _, mount := range []string{cgroupRoot, path.Join(cgroupRoot, "unified")} {
				if c.exists(path.Join(mount, "cgroup.controllers")) {
					c.unified = c.group(mount, fields[2])
				}
			}
			continue
		}
		for controller := range strings.SplitSeq(fields[1], ",") {
			if mount := path.Join(cgroupRoot, controller); c.exists(mount) {
				c.legacy[controller] = c.group(mount, fields[2])
			}
		}
	}
	return c
}

func (c *cgroups) exists(name string) bool {
	_, err := fs.Stat(c.files, name)
	return err == nil
}

func (c *cgroups) group(mount, name string) string {
	if dir := path.Join(mount, path.Clean("/"+name)); c.exists(dir) {
		return dir
	}
	return mount
}

// memory is the limit of the group that is nearest to its limit, the process's own or one above it, and what is in use of
// it beyond the files that the kernel would drop.
func (c *cgroups) memory() (used, limit float64, err error) {
	if dir := c.unified; dir != "" {
		used, limit = c.nearest(dir, "memory.max", "memory.current", "inactive_file")
	}
	if dir := c.legacy["memory"]; limit == 0 && dir != "" {
		used, limit = c.nearest(dir, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
	}
	if limit == 0 {
		return 0, 0, errNoLimit
	}
	return used, limit, nil
}

func (c *cgroups) nearest(dir, limitFile, usedFile, droppable string) (used, limit float64) {
	for ; strings.HasPrefix(dir, cgroupRoot); dir = path.Dir(dir) {
		l, err := c.number(path.Join(dir, limitFile))
		if err != nil || l <= 0 || l >= unlimited {
			continue // "max", or the root, which has no such file
		}
		u, err := c.number(path.Join(dir, usedFile))
		if err != nil {
			continue
		}
		stat, _ := c.table(path.Join(dir, "memory.stat"))
		u = max(u-stat[droppable], 0)
		if limit == 0 || u/l > used/limit {
			used, limit = u, l
		}
	}
	return used, limit
}

// stalled is for how many seconds, since some time, all that wanted to run in the group had to wait.
func (c *cgroups) stalled() (float64, error) {
	if c.unified == "" {
		return 0, errNoLimit
	}
	text, err := fs.ReadFile(c.files, path.Join(c.unified, "cpu.pressure"))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) { // full avg10=0.00 avg60=0.00 avg300=0.00 total=12345
		if rest, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("full ")); ok {
			_, total, _ := bytes.Cut(rest, []byte("total="))
			us, err := strconv.ParseFloat(string(total), 64)
			return us / 1e6, err
		}
	}
	return 0, errNoLimit
}

// throttled counts the periods in which the group wanted to run, and those of them in which it had used up its quota.
func (c *cgroups) throttled() (periods, throttled float64, err error) {
	dir := c.unified
	if dir == "" || !c.exists(path.Join(dir, "cpu.max")) {
		dir = c.legacy["cpu"]
	}
	if dir == "" {
		return 0, 0, errNoLimit
	}
	stat, err := c.table(path.Join(dir, "cpu.stat"))
	return stat["nr_periods"], stat["nr_throttled"], err
}

func (c *cgroups) number(name string) (float64, error) {
	text, err := fs.ReadFile(c.files, name)
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(string(text)), 64)
}

// table reads lines of a word and a number.
func (c *cgroups) table(name string) (map[string]float64, error) {
	text, err := fs.ReadFile(c.files, name)
	if err != nil {
		return nil, err
	}
	all := map[string]float64{}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		word, number, _ := strings.Cut(s.Text(), " ")
		if n, err := strconv.ParseFloat(number, 64); err == nil {
			all[word] = n
		}
	}
	return all, nil
}
