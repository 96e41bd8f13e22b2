package auth

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"fairlead/shared/logging"
)

// filePoll is how often key files are looked at. They are polled by content, because a mounted secret is replaced by
// renaming directories, which watchers lose.
const filePoll = 5 * time.Second

// fileKeys are keys from a file, read when built, on Reload, and when the file has changed. All but the loads of the
// atomic values happens with Verifier.reload held.
type fileKeys struct {
	kind   string // as IssuerStatus has it
	load   func() (*keySet, error)
	keys   atomic.Pointer[keySet]
	state  atomic.Pointer[IssuerStatus]
	failed string // what was said about the file last
}

func openFileKeys(cfg Issuer) (*fileKeys, error) {
	f := &fileKeys{kind: "file", load: func() (*keySet, error) { return loadKeySet(cfg) }}
	if cfg.HMACSecretFile != "" {
		f.kind, f.load = "secret", func() (*keySet, error) { return loadSecret(cfg) }
	}
	keys, err := f.load()
	if err != nil {
		return nil, err
	}
	f.use(keys)
	return f, nil
}

func (f *fileKeys) current() *keySet                         { return f.keys.Load() }
func (f *fileKeys) missing(context.Context, *keySet) *keySet { return f.keys.Load() }
func (f *fileKeys) start()                                   {}
func (f *fileKeys) stop()                                    {}

func (f *fileKeys) status() IssuerStatus {
	s := *f.state.Load()
	s.Source, s.Keys = f.kind, f.keys.Load().size
	return s
}

// use puts keys in place, unless they are the same: then tokens that are remembered stay so. It reports a change.
func (f *fileKeys) use(keys *keySet) bool {
	f.failed = ""
	f.state.Store(&IssuerStatus{Fetched: time.Now()})
	if now := f.keys.Load(); now != nil && now.sum == keys.sum {
		return false
	}
	f.keys.Store(keys)
	return true
}

// note remembers why the file cannot be used, and reports whether that is news.
func (f *fileKeys) note(err error) bool {
	s := *f.state.Load()
	s.Error, s.ErrorAt = err.Error(), time.Now()
	f.state.Store(&s)
	news := f.failed != err.Error()
	f.failed = err.Error()
	return news
}

// watchFiles looks at the key files until ctx ends.
func (v *Verifier) watchFiles(ctx context.Context) {
	defer close(v.done)
	tick := time.NewTicker(filePoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			v.pollFiles()
		}
	}
}

// pollFiles takes each changed file, whole or not at all.
func (v *Verifier) pollFiles() {
	v.reload.Lock()
	defer v.reload.Unlock()
	for name, iss := range *v.issuers.Load() {
		file, ok := iss.source.(*fileKeys)
		if !ok {
			continue
		}
		log := v.log.With(logging.FieldComponent, "auth", "issuer", name)
		keys, err := file.load()
		switch {
		case err != nil && file.note(err): // said once, not at every look
			log.Error("the changed key file cannot be used; the keys before stay in use", logging.Error(err)...)
		case err == nil && file.use(keys):
			log.Info("key file reloaded", "keys", keys.size)
		}
	}
}

// readFiles reads the key files of all issuers, of which none may be unusable; then errs.KeyUnreadable tells of all that are.
func (all issuers) readFiles() (map[*fileKeys]*keySet, error) {
	read := make(map[*fileKeys]*keySet)
	var problems []error
	for _, iss := range all {
		file, ok := iss.source.(*fileKeys)
		if !ok {
			continue
		}
		keys, err := file.load()
		if err != nil {
			file.note(err)
			problems = append(problems, err)
			continue
		}
		read[file] = keys
	}
	return read, errors.Join(problems...)
}
