package limit

import (
	"time"
)

// buckets is what a tenant has used of its opens, one bucket for each limited tier that its tokens have named. An open is
// granted by the bucket of its own tier and counts in all of them, so that tokens of several tiers get no more together
// than the best of these tiers gives alone: in any time d, all opens of a tenant are at most burst + rate × d of one tier,
// and those of one tier at most that of this tier.
type buckets struct {
	all     []bucket
	at      time.Time // when they were as they are
	pending int       // opens that others decide about: they are kept free, and fill the buckets again when they are refused
}

type bucket struct {
	tier   string
	rate   float64 // per second
	burst  float64
	tokens float64
	// What all replicas together have used leaves nothing before shut, and not everything before whole.
	shut, whole time.Time
}

func newBucket(r Rate) bucket {
	return bucket{tier: r.Tier, rate: float64(r.PerMinute) / 60, burst: float64(r.Burst), tokens: float64(r.Burst)}
}

// advance fills the buckets up to now, with room for what is pending. A clock that goes back fills nothing.
func (b *buckets) advance(now time.Time) {
	if d := now.Sub(b.at).Seconds(); d > 0 {
		for i := range b.all {
			k := &b.all[i]
			k.tokens = min(k.burst+float64(b.pending), k.tokens+k.rate*d)
		}
		b.at = now
	}
}

// of finds the bucket of a limited tier, or adds it as if it had counted from the start, as far as that is known.
func (b *buckets) of(r Rate) *bucket {
	for i := range b.all {
		if b.all[i].tier == r.Tier {
			return &b.all[i]
		}
	}
	k := newBucket(r)
	for _, other := range b.all {
		k.tokens = min(k.tokens, k.burst-(other.burst-other.tokens))
		if other.rate > k.rate && k.burst > other.burst {
			k.tokens = min(k.tokens, 0) // what the other gave and has got back since is not known
		}
	}
	k.tokens = max(k.tokens, b.floor(k))
	b.all = append(b.all, k)
	return &b.all[len(b.all)-1]
}

// shut keeps the bucket of a tier from granting anything before until.
func (b *buckets) shut(tier string, until, whole time.Time) {
	for i := range b.all {
		if b.all[i].tier == tier {
			b.all[i].shut, b.all[i].whole = until, whole
		}
	}
}

// left is what the bucket still grants.
func (b *buckets) left(k *bucket) float64 { return k.tokens - float64(b.pending) }

// settle ends one that was pending, and counts it if it was granted.
func (b *buckets) settle(granted bool) {
	b.pending--
	if granted {
		b.count()
		return
	}
	for i := range b.all {
		k := &b.all[i]
		k.tokens = min(k.tokens, k.burst+float64(b.pending))
	}
}

// count takes one from all buckets. None gets so far below nothing that it would make its tier wait for longer than
// keeping the promise takes.
func (b *buckets) count() {
	for i := range b.all {
		b.all[i].tokens = max(b.all[i].tokens-1, b.floor(b.all[i]))
	}
}

// floor is the least that a bucket holds: nothing, but less where a slower tier has a larger burst. That burst and this
// rate together would be more than either tier gives.
func (b *buckets) floor(k bucket) float64 {
	least := 0.0
	for _, other := range b.all {
		if other.rate < k.rate {
			least = min(least, k.burst-other.burst)
		}
	}
	return least
}

// follow takes over changed tiers. What was used of a limit carries over; tiers that are gone are DefaultTier's from now
// on; those that became unlimited have no bucket.
func (b *buckets) follow(r *rules) {
	kept := b.all[:0]
	has := func(tier string) bool {
		for i := range kept {
			if kept[i].tier == tier {
				return true
			}
		}
		return false
	}
	for _, k := range b.all {
		name, limits := r.tier(k.tier)
		if limits.OpensPerMinute == 0 || has(name) {
			continue
		}
		changed := newBucket(limits.rate(name))
		changed.tokens = max(changed.burst-(k.burst-k.tokens), min(k.tokens, 0))
		kept = append(kept, changed)
	}
	b.all = kept
}

// wait is how long it takes until the bucket allows one more.
func (b *buckets) wait(k *bucket) time.Duration { return told((1 - b.left(k)) / k.rate) }

// told is a wait of s seconds in whole milliseconds, because that is what answers carry, rounded up; also if it is a hair
// below a millisecond, or who comes back then would be refused for the last bit of a sum.
func told(s float64) time.Duration {
	return (seconds(s) + time.Microsecond).Truncate(time.Millisecond) + time.Millisecond
}

// reset is how long it takes until the bucket is full.
func (k *bucket) reset() time.Duration { return seconds((k.burst - k.tokens) / k.rate) }

// full says whether nothing has to be remembered of what was used.
func (b *buckets) full(now time.Time) bool {
	b.advance(now)
	for i := range b.all {
		if k := &b.all[i]; b.left(k) < k.burst || now.Before(k.shut) {
			return false
		}
	}
	return true
}

// seconds is s as a duration; those too long for one are cut.
func seconds(s float64) time.Duration {
	const most = 1e9 // 30 years
	return time.Duration(min(max(s, 0), most) * float64(time.Second))
}
