package auth

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// revocationFile is the form of RevocationsConfig.File.
type revocationFile struct {
	Revocations []Revocation         `json:"revocations"`
	Removed     map[string]time.Time `json:"removed,omitempty"` // until when other replicas may have to be reminded
}

// load takes what the file holds, before anybody else has r. A file that cannot be understood is an error: a gateway that forgot what was revoked
// would let in who was thrown out.
func (r *Revocations) load() error {
	if r.cfg.File == "" {
		return nil
	}
	data, err := os.ReadFile(r.cfg.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var content revocationFile
	if err == nil {
		err = json.Unmarshal(data, &content)
	}
	if err != nil {
		return errs.Wrap(errs.ConfigUnreadable, err, "the file of revocations %s", quote(r.cfg.File))
	}
	now := r.cfg.Now()
	for n, each := range content.Revocations {
		if !now.Before(each.Until) {
			continue
		}
		if err := each.problem(now); err != nil {
			return errs.Wrap(errs.ConfigUnreadable, err, "the file of revocations %s: entry %d", quote(r.cfg.File), n)
		}
		// Room for what other replicas have added, as in Sync.
		if err := r.insertLocked(each, now, commonRoom); err != nil {
			return errs.Wrap(errs.ConfigUnreadable, err, "the file of revocations %s: entry %d", quote(r.cfg.File), n)
		}
		r.markLocked(each.ID)
	}
	if r.cfg.Shared != nil {
		for id, until := range content.Removed {
			if now.Before(until) && len(r.common.removed) < commonRoom*r.cfg.Max {
				r.common.removed[id] = until
				r.markLocked(id)
			}
		}
	}
	return nil
}

// save writes all that are in force. Whoever comes later writes what is newer.
func (r *Revocations) save() error {
	if r.cfg.File == "" {
		return nil
	}
	r.saving.Lock()
	defer r.saving.Unlock()
	data, err := json.Marshal(revocationFile{r.List(), r.removed()})
	if err == nil {
		err = replaceFile(r.cfg.File, data)
	}
	r.unsaved.Store(err != nil)
	if err == nil {
		return nil
	}
	e := errs.Wrap(errs.Internal, err, "what was revoked could not be written to %s: it is in force, but a restart forgets it", quote(r.cfg.File))
	r.cfg.Logger.Error("revocations not saved", append(logging.Error(e), logging.FieldComponent, "auth")...)
	return e
}

// replaceFile puts data in place of a file in one step, and returns when it is on disk: also after a loss of power there
// is the old content or the new one.
func replaceFile(path string, data []byte) error {
	next, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".next-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(next.Name()) // fails once it is renamed
	_, err = next.Write(data)
	if err == nil {
		err = next.Sync()
	}
	if err = errors.Join(err, next.Close()); err != nil {
		return err
	}
	if err := os.Rename(next.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
