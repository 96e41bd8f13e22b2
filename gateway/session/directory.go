package session

import (
	"context"
	"slices"
	"time"

	"fairlead/gateway/store"
	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

const (
	// missed is how long a replica is remembered that the directory does not list any more: it may be cut off from the store only.
	missed = time.Minute
	// unseen is how much of the time counts for that in which there was no directory: when a store that was away is back, others
	// enter themselves after this one, and until then are as likely to be there as they were.
	unseen = 10 * time.Second
)

// Know takes the directory of replicas. It returns how many there are, with those that are missing in it for no longer than a
// moment: a store that was emptied does not make this one the only one.
func (r *Registry) Know(replicas []store.Replica) int {
	if r.leases == nil {
		return len(replicas)
	}
	r.leases.know(replicas)
	d := r.leases.directory()
	return len(d.listed) + len(d.missing)
}

// know takes the directory, and keeps those that are missing in it for a while, unless another process has their name.
func (l *leases) know(replicas []store.Replica) {
	now := l.r.cfg.Now()
	next := directory{at: now, listed: replicas, seen: map[string]time.Time{}}
	for _, r := range replicas {
		next.seen[r.ID] = now
	}
	if was := l.known.Load(); was != nil {
		skipped := max(now.Sub(was.at)-unseen, 0)
		for _, r := range slices.Concat(was.listed, was.missing) {
			_, listed := next.seen[r.ID]
			renamed := slices.ContainsFunc(replicas, func(other store.Replica) bool { return other.Name == r.Name })
			if seen := was.seen[r.ID].Add(skipped); !listed && !renamed && now.Sub(seen) < missed {
				next.missing = append(next.missing, r)
				next.seen[r.ID] = seen
			}
		}
	}
	l.known.Store(&next)
	l.lookForTwin(replicas, now)
}

// lookForTwin tells a live process with this one's name from the one that had it before: that one began earlier, and what is left
// of it in the directory is gone soon.
func (l *leases) lookForTwin(replicas []store.Replica, now time.Time) {
	i := slices.IndexFunc(replicas, func(r store.Replica) bool {
		return r.Name == l.self.Name && r.ID != l.self.ID && (r.Started.After(l.self.Started) || now.Sub(l.self.Started) > missed)
	})
	if was := l.twin.Swap(i >= 0); i >= 0 && !was {
		l.log.Error("ANOTHER REPLICA HAS THE NAME OF THIS ONE: logs and metrics of both are mixed up; give each an instance name of its own",
			logging.FieldCode, errs.ConfigInvalid.String(), "name", l.self.Name, "address", replicas[i].Address, "started", replicas[i].Started)
	}
}

// directory is who is there.
type directory struct {
	at      time.Time // when it was taken
	listed  []store.Replica
	missing []store.Replica // that were listed a while ago
	seen    map[string]time.Time
}

// directory lists the replicas that were seen lately, this one too.
func (l *leases) directory() directory {
	if known := l.known.Load(); known != nil {
		return *known
	}
	return directory{}
}

// replaced says whether the owner's name is another process's now. The directory that was seen last may be older than the owner,
// so the store is asked; without an answer the owner is.
func (l *leases) replaced(ctx context.Context, t store.Tunnel) bool {
	if t.Name == l.self.Name && t.Owner != l.self.ID {
		return !l.twin.Load()
	}
	if there, named := present(l.directory().listed, t); there || !named {
		return false
	}
	list, err := l.replicas(ctx)
	there, named := present(list, t)
	return err == nil && named && !there
}

// alive says whether the owner has been heard of lately.
func (l *leases) alive(ctx context.Context, t store.Tunnel) bool {
	list, err := l.replicas(ctx)
	if err != nil {
		list = l.directory().listed
	}
	there, _ := present(list, t)
	return there
}

func (l *leases) replicas(ctx context.Context) ([]store.Replica, error) {
	ctx, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	return l.store.Replicas(ctx)
}

// present says whether a tunnel's owner is in a list, and whether its name is.
func present(list []store.Replica, t store.Tunnel) (owner, name bool) {
	for _, r := range list {
		owner, name = owner || r.ID == t.Owner, name || r.Name == t.Name
	}
	return owner, name
}
