package auth

import (
	"time"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// mergeBatch is how many are merged without anybody being checked in between.
const mergeBatch = 1000

// merge makes the store's list and ours the same: what is new there is taken over, what is missing there is marked to be
// told. What was removed anywhere stays so.
func (r *Revocations) merge(list []SharedRevocation, version string) (changed bool, err error) {
	now := r.cfg.Now()
	ended := r.endListed(list, now) // first: it makes room
	fresh, problem := r.unknown(list, now)
	var added []Revocation
	full := false
	for start := 0; start < len(fresh); start += mergeBatch {
		in, err := r.takeOver(fresh[start:min(start+mergeBatch, len(fresh))], now)
		added = append(added, in...)
		if err != nil {
			problem, full = err, true
		}
	}
	r.markMissing(list, now)
	r.mu.Lock()
	r.common.version, r.common.full = version, full
	r.mu.Unlock()
	for _, n := range added {
		r.cfg.Logger.Info("tokens revoked at another replica", logging.FieldComponent, "auth", "revocation", n.ID, logging.FieldTenant, n.Tenant,
			logging.FieldSubject, n.Subject, "token_id", n.TokenID, "issuer", n.Issuer, "by", n.By)
		r.listeners.Tell(n)
	}
	if len(added)+ended == 0 {
		return false, problem
	}
	_ = r.save() // logs and counts it; they are in force all the same
	return true, problem
}

// unknown reads those of a list that we do not have.
func (r *Revocations) unknown(list []SharedRevocation, now time.Time) (fresh []Revocation, problem error) {
	var unread []SharedRevocation
	r.mu.RLock()
	for _, each := range list {
		_, removed := r.common.removed[each.ID]
		if !each.Removed && !removed && r.byID[each.ID] == nil && now.Before(each.Until) {
			unread = append(unread, each)
		}
	}
	r.mu.RUnlock()
	for _, each := range unread {
		n, err := each.decode(now)
		if err != nil {
			e := errs.Wrap(errs.Internal, err, "the shared revocation %s cannot be understood, and is not in force at this replica", quote(each.ID))
			r.cfg.Logger.Error("a revocation of another replica is not in force", append(logging.Error(e), logging.FieldComponent, "auth")...)
			problem = e
			continue
		}
		fresh = append(fresh, n)
	}
	return fresh, problem
}

// takeOver puts some into force. The error says that there was no room for all.
func (r *Revocations) takeOver(batch []Revocation, now time.Time) (in []Revocation, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range batch {
		_, removed := r.common.removed[n.ID] // meanwhile
		if removed || r.byID[n.ID] != nil {
			continue
		}
		if cause := r.insertLocked(n, now, commonRoom); cause != nil {
			err = errs.Wrap(errs.RequestLimit, cause, "not all revocations of other replicas are in force here")
			continue
		}
		in = append(in, n)
	}
	return in, err
}

// endListed ends those that were removed elsewhere, and returns how many.
func (r *Revocations) endListed(list []SharedRevocation, now time.Time) (ended int) {
	var news []SharedRevocation
	r.mu.RLock()
	for _, each := range list {
		if _, known := r.common.removed[each.ID]; each.Removed && now.Before(each.Until) && (!known || r.byID[each.ID] != nil) {
			news = append(news, each)
		}
	}
	r.mu.RUnlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, each := range news {
		until := each.Until
		if n := r.byID[each.ID]; n != nil {
			r.drop(n)
			ended++
			if n.Until.After(until) {
				until = n.Until
			}
			r.cfg.Logger.Info("revocation removed at another replica", logging.FieldComponent, "auth", "revocation", n.ID)
		}
		if len(r.common.removed) < commonRoom*r.cfg.Max && len(each.ID) <= maxTokenIDBytes {
			r.common.removed[each.ID] = until
		}
	}
	return ended
}

// aboutToEnd is when it is not worth telling anybody of a revocation any more.
const aboutToEnd = time.Second

// markMissing finds what the store must be told, and what it knows by now.
func (r *Revocations) markMissing(list []SharedRevocation, now time.Time) {
	removed := make(map[string]bool, len(list))
	for _, each := range list {
		removed[each.ID] = each.Removed
	}
	var missing []string
	there := map[string]uint64{} // with the mark that has been seen to
	r.mu.RLock()
	look := func(id string, known bool, until time.Time) {
		if !known && until.Sub(now) > aboutToEnd {
			missing = append(missing, id)
		} else if mark, pending := r.common.pending[id]; known && pending {
			there[id] = mark
		}
	}
	for id, until := range r.common.removed {
		look(id, removed[id], until)
	}
	for id, n := range r.byID {
		_, listed := removed[id]
		look(id, listed, n.Until)
	}
	r.mu.RUnlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range missing {
		r.markLocked(id)
	}
	for id, mark := range there {
		if r.common.pending[id] == mark {
			r.unmarkLocked(id)
		}
	}
}
