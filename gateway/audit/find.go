package audit

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"fairlead/shared/errs"
)

// Stdin names the standard input in place of a file.
const Stdin = "-"

// Found is one log: its files in their order.
type Found struct {
	Name    string
	Sources []Source
	Partial bool // only older files were named, so that the log's beginning need not be there

	held *os.File // the current file, so that a rotation meanwhile does not exchange it
}

// Close gives back what Find holds.
func (f *Found) Close() {
	if f.held != nil {
		f.held.Close()
	}
}

// Find turns what a person names into logs: a log's file stands for all of its files, a folder for all logs in it, older
// files for themselves, "-" for stdin. The error is errs.ConfigInvalid when there is no such log.
func Find(paths []string, stdin io.Reader) ([]*Found, error) {
	var found []*Found
	older := make(map[string]*Found) // by base
	for _, path := range paths {
		base, number := splitNumber(path)
		info, err := os.Stat(path)
		switch {
		case path == Stdin:
			found = append(found, &Found{Name: "stdin", Sources: []Source{{Name: "stdin", Stream: true, Open: func() (io.ReadCloser, error) { return io.NopCloser(stdin), nil }}}})
		case err == nil && info.IsDir():
			logs, err := findIn(path)
			if err != nil {
				return found, err
			}
			found = append(found, logs...)
		case number > 0 && err == nil:
			if older[base] == nil {
				older[base] = &Found{Name: base, Partial: true}
				found = append(found, older[base])
			}
			older[base].add(path, number)
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return found, errs.Wrap(errs.ConfigInvalid, err, "the audit log")
		default:
			one, err := findLog(path)
			if err != nil {
				return found, err
			}
			found = append(found, one)
		}
	}
	return found, nil
}

// splitNumber tells an older file's log and number; 0 when the name is not one of an older file.
func splitNumber(path string) (base string, number uint64) {
	i := strings.LastIndexByte(path, '.')
	if i < 0 {
		return path, 0
	}
	n, ok := numberOf(path[:i], path)
	if !ok {
		return path, 0
	}
	return path[:i], n
}

func (f *Found) add(path string, number uint64) {
	f.Sources = append(f.Sources, Source{Name: path, Number: number, Open: func() (io.ReadCloser, error) { return os.Open(path) }})
	slices.SortFunc(f.Sources, func(a, b Source) int { return int(a.Number) - int(b.Number) })
}

// findLog finds the files of one log. The current one is opened first: what a rotation then makes of it is recognized.
func findLog(base string) (*Found, error) {
	f := &Found{Name: base}
	held, err := os.Open(base)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errs.Wrap(errs.ConfigInvalid, err, "the audit log")
	}
	numbers, err := olderFiles(base)
	if err != nil {
		return nil, errs.Wrap(errs.ConfigInvalid, err, "the folder of the audit log")
	}
	for _, n := range numbers {
		if held != nil && n >= numberIn(held) {
			break // what was the current file a moment ago, or is newer still
		}
		f.add(numbered(base, n), n)
	}
	if held != nil {
		f.held = held
		f.Sources = append(f.Sources, Source{Name: base, Open: func() (io.ReadCloser, error) {
			_, err := os.Stat(base + lockSuffix)
			return newSettled(held, err == nil)
		}})
	}
	if len(f.Sources) == 0 {
		return nil, errs.New(errs.ConfigInvalid, "there is no audit log %s", base)
	}
	return f, nil
}

// numberIn is the number that a file's first line gives it; the largest there is when that cannot be read.
func numberIn(f *os.File) uint64 {
	b := make([]byte, maxLine+1)
	n, _ := f.ReadAt(b, 0)
	line, _, _ := bytes.Cut(b[:n], []byte("\n"))
	if first, err := parseLine(line); err == nil && first.Log != nil && first.Log.File > 0 {
		return first.Log.File
	}
	return math.MaxUint64
}

// findIn finds the logs of a folder: every file that begins as one, with those that only older files are left of.
func findIn(folder string) ([]*Found, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, errs.Wrap(errs.ConfigInvalid, err, "the folder of audit logs")
	}
	var bases []string
	for _, e := range entries {
		path := filepath.Join(folder, e.Name())
		base, number := splitNumber(path)
		if e.Type().IsRegular() && (number > 0 || isLog(path)) && !slices.Contains(bases, base) {
			bases = append(bases, base)
		}
	}
	if len(bases) == 0 {
		return nil, errs.New(errs.ConfigInvalid, "there is no audit log in %s", folder)
	}
	var found []*Found
	for _, base := range bases {
		f, err := findLog(base)
		if err != nil {
			return found, err
		}
		found = append(found, f)
	}
	return found, nil
}

// isLog reports whether a file looks like the current one of a log. One whose beginning was damaged must be found, too.
func isLog(path string) bool {
	if strings.HasSuffix(path, nextSuffix) || strings.HasSuffix(path, lockSuffix) {
		return false
	}
	first, err := firstLine(path)
	if err == nil && first.Log != nil {
		return true
	}
	_, err = os.Stat(path + lockSuffix)
	return err == nil
}
