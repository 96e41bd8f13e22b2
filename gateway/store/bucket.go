package store

import "time"

// buckets is what a tenant has used of its opens: one bucket for each tier with a rate that its opens have named. An open is
// granted by the bucket of its own tier and counts in all of them, with the rules and for the reasons of package limit.
//
// A bucket is kept as GCRA does, by the time at which it is whole again. lua/take.lua is the same in Redis.
type buckets []bucket

type bucket struct {
	Rate
	whole time.Time // theoretical arrival time: when Burst opens are granted at once again
}

// remember is how long buckets that are whole are kept. Forgotten at once, a tenant that uses up what one tier gives would
// have the burst of another, slower one on top.
const remember = 10 * time.Minute

// maxTiers bounds a tenant's buckets. Beyond, the one that is whole the soonest is forgotten.
const maxTiers = 64

// perSecond is how many opens a second gives.
func (r Rate) perSecond() float64 { return float64(r.PerMinute) / 60 }

func (r Rate) burst() float64 { return float64(max(r.Burst, 1)) }

// tokens is how many opens the bucket grants now; less than 0 when the tenant is in debt.
func (b bucket) tokens(now time.Time) float64 {
	return b.burst() - max(0, b.whole.Sub(now).Seconds())*b.perSecond()
}

func (b *bucket) set(now time.Time, tokens float64) {
	b.whole = now.Add(seconds((b.burst() - tokens) / b.perSecond()))
}

// of finds the bucket of a rate, or adds it as if it had counted from the start, as far as that is known. Where the rate has
// changed, what was used of the former one carries over.
func (b *buckets) of(now time.Time, rate Rate) *bucket {
	for i := range *b {
		if k := &(*b)[i]; k.Tier == rate.Tier {
			if k.Rate != rate {
				had := k.tokens(now)
				used := k.burst() - had
				k.Rate = rate
				k.set(now, max(k.burst()-used, min(had, 0)))
			}
			return k
		}
	}
	k := bucket{Rate: rate}
	tokens := k.burst()
	for _, other := range *b {
		tokens = min(tokens, k.burst()-(other.burst()-other.tokens(now)))
		if other.perSecond() > k.perSecond() && k.burst() > other.burst() {
			tokens = min(tokens, 0) // what the other gave and has got back since is not known
		}
	}
	k.set(now, max(tokens, b.floor(k)))
	if len(*b) == maxTiers {
		b.forgetOne()
	}
	*b = append(*b, k)
	return &(*b)[len(*b)-1]
}

func (b *buckets) forgetOne() {
	first := 0
	for i := range *b {
		if (*b)[i].whole.Before((*b)[first].whole) {
			first = i
		}
	}
	*b = append((*b)[:first], (*b)[first+1:]...)
}

// count takes one open from all buckets.
func (b buckets) count(now time.Time) {
	for i := range b {
		k := &b[i]
		k.set(now, max(k.tokens(now)-1, b.floor(*k)))
	}
}

// floor is the least that a bucket holds: nothing, but less where a slower tier has a larger burst.
func (b buckets) floor(k bucket) float64 {
	least := 0.0
	for _, other := range b {
		if other.perSecond() < k.perSecond() {
			least = min(least, k.burst()-other.burst())
		}
	}
	return least
}

// forgotten says whether the tenant has all of its rates again, for long enough.
func (b buckets) forgotten(now time.Time) bool {
	for _, k := range b {
		if now.Before(k.whole.Add(remember)) {
			return false
		}
	}
	return true
}

// standing fills in where a tenant stands with a rate: tokens that it has, of the rate's burst.
func (g *Grant) standing(rate Rate, tokens float64) {
	g.Remaining = int(max(tokens+nearly, 0))
	if tokens+nearly < 1 {
		g.Wait = told((1 - tokens) / rate.perSecond())
	}
	g.Reset = seconds((rate.burst() - tokens) / rate.perSecond()).Round(time.Microsecond)
}

// nearly is what a sum of fractions may be off by: who waited for as long as was said is not refused for its last bit.
const nearly = 1e-6

// told is a wait of s seconds in whole milliseconds, which is what answers carry, rounded up.
func told(s float64) time.Duration {
	return (seconds(s) + time.Microsecond).Truncate(time.Millisecond) + time.Millisecond
}

// seconds is s as a duration; those too long for one are cut.
func seconds(s float64) time.Duration {
	const most = 1e9 // 30 years
	return time.Duration(min(max(s, 0), most) * float64(time.Second))
}
