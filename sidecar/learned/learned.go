// Package learned keeps what a sidecar has learned across restarts, in a small file: which endpoint worked, affinity
// cookies, how often a path wants heartbeats. Losing it costs time, never correctness, so a file that cannot be used is said
// and replaced, and nothing waits for a disk.
package learned

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// Config is what a File needs.
type Config struct {
	Path   string        // of the file; its directory must exist. Empty: nothing is kept
	Settle time.Duration // how long changes gather before they are written; 0: 1 s
	Logger *slog.Logger
}

const (
	// Version of the file's format. A file of another version is not used.
	Version = 1
	// maxSize bounds the file, in bytes.
	maxSize       = 1 << 20
	defaultSettle = time.Second
)

// File is the state file. It holds named sections, each of which belongs to one part of the sidecar.
type File struct {
	cfg   Config
	dirty chan struct{}

	mu       sync.Mutex
	sections map[string]json.RawMessage
	failed   bool // the last write, which was said
}

// format is what the file holds.
type format struct {
	Version  int                        `json:"version"`
	Saved    time.Time                  `json:"saved"`
	Sections map[string]json.RawMessage `json:"sections"`
}

// Open reads the file. One that is not there yet is fine; one that cannot be used is said, kept aside as PATH.bad, and
// replaced. The error is of a path that can never be written.
func Open(cfg Config) (*File, error) {
	if cfg.Settle == 0 {
		cfg.Settle = defaultSettle
	}
	f := &File{cfg: cfg, dirty: make(chan struct{}, 1), sections: map[string]json.RawMessage{}}
	if cfg.Path == "" {
		return f, nil
	}
	if st, err := os.Stat(filepath.Dir(cfg.Path)); err != nil || !st.IsDir() {
		return nil, errs.New(errs.ConfigInvalid, "state_file: the directory of %s does not exist", cfg.Path)
	}
	sections, err := read(cfg.Path)
	switch {
	case err == nil:
		f.sections = sections
	case !errors.Is(err, fs.ErrNotExist):
		cfg.Logger.Warn("the state file cannot be used: what was learned is forgotten", "file", cfg.Path, logging.FieldError, err.Error())
		_ = os.Rename(cfg.Path, cfg.Path+".bad") // for whoever wonders; it may be not ours to move
	}
	return f, nil
}

// read returns the sections of a file.
func read(path string) (map[string]json.RawMessage, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("it is %v, not a regular file", st.Mode().Type())
	}
	raw, err := io.ReadAll(io.LimitReader(file, maxSize+1))
	if err != nil {
		return nil, err
	}
	return parse(raw)
}

// parse returns the sections of a file's content.
func parse(raw []byte) (map[string]json.RawMessage, error) {
	if len(raw) > maxSize {
		return nil, fmt.Errorf("it is larger than %d bytes", maxSize)
	}
	var c format
	d := json.NewDecoder(bytes.NewReader(raw))
	if err := d.Decode(&c); err != nil {
		return nil, fmt.Errorf("it is damaged: %w", err)
	}
	if d.More() {
		return nil, errors.New("it is damaged: something follows its end")
	}
	if c.Version != Version {
		return nil, fmt.Errorf("it is of version %d, not %d", c.Version, Version)
	}
	if c.Sections == nil {
		c.Sections = map[string]json.RawMessage{}
	}
	return c.Sections, nil
}

// Load reads a section into v, and says whether there is one that fits.
func (f *File) Load(section string, v any) bool {
	f.mu.Lock()
	raw, ok := f.sections[section]
	f.mu.Unlock()
	if !ok {
		return false
	}
	if err := json.Unmarshal(raw, v); err != nil {
		f.cfg.Logger.Warn("a section of the state file cannot be used", "file", f.cfg.Path, "section", section, logging.FieldError, err.Error())
		return false
	}
	return true
}

// Save keeps v as a section. Run writes it.
func (f *File) Save(section string, v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		f.cfg.Logger.Error("a section of the state file cannot be kept", "section", section, logging.FieldError, err.Error())
		return
	}
	f.mu.Lock()
	same := bytes.Equal(f.sections[section], raw)
	f.sections[section] = raw
	f.mu.Unlock()
	if same {
		return
	}
	select {
	case f.dirty <- struct{}{}:
	default:
	}
}

// Run writes what changes until ctx ends, and then what is left. A write that fails is said once, and tried again with the
// next change.
func (f *File) Run(ctx context.Context) error {
	if f.cfg.Path == "" {
		<-ctx.Done()
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			f.Flush()
			return nil
		case <-f.dirty:
		}
		timer := time.NewTimer(f.cfg.Settle)
		select {
		case <-ctx.Done():
			timer.Stop()
			f.write()
			f.Flush()
			return nil
		case <-timer.C:
			f.write()
		}
	}
}

// Flush writes what has changed and is not written yet. It is for the end, after everything that saves has ended.
func (f *File) Flush() {
	select {
	case <-f.dirty:
		f.write()
	default:
	}
}

func (f *File) write() {
	f.mu.Lock()
	sections := maps.Clone(f.sections)
	f.mu.Unlock()
	if f.cfg.Path == "" {
		return
	}
	err := replace(f.cfg.Path, sections)
	f.mu.Lock()
	again := f.failed
	f.failed = err != nil
	f.mu.Unlock()
	if err != nil && !again {
		f.cfg.Logger.Warn("the state file cannot be written: what is learned is forgotten at a restart", "file", f.cfg.Path, logging.FieldError, err.Error())
	}
}

// replace writes the file anew beside the old one and then takes its place, so that a crash leaves one or the other.
func replace(path string, sections map[string]json.RawMessage) (err error) {
	raw, err := json.MarshalIndent(format{Version: Version, Saved: time.Now().UTC().Truncate(time.Second), Sections: sections}, "", "  ")
	if err != nil {
		return err
	}
	if len(raw) > maxSize {
		return fmt.Errorf("%d bytes; allowed are %d", len(raw), maxSize)
	}
	dir := filepath.Dir(path)
	file, err := os.CreateTemp(dir, filepath.Base(path)+".*.tmp") // 0600: affinity cookies
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(file.Name())
		}
	}()
	_, err = file.Write(append(raw, '\n'))
	if err == nil {
		err = file.Sync()
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return err
	}
	if d, openErr := os.Open(dir); openErr == nil { // not every file system can sync a directory
		_ = d.Sync()
		_ = d.Close()
	}
	return nil
}
