package errs

import (
	"strconv"
	"time"
)

// Headers are the HTTP headers that tell what an answer's body says about err to programs that do not read it: when to try
// again, the limit that was reached, and how to authenticate. Pairs of name and value.
func Headers(err error) [][2]string {
	e := From(err)
	if e == nil {
		return nil
	}
	var h [][2]string
	if e.RetryAfter > 0 {
		h = append(h, [2]string{"Retry-After", seconds(e.RetryAfter)})
	}
	if e.Quota != nil {
		h = append(h, e.Quota.Headers()...)
	}
	if e.Code.Info().HTTP == 401 {
		h = append(h, [2]string{"WWW-Authenticate", `Bearer realm="fairlead"`})
	}
	return h
}

// Headers are the HTTP headers that tell a quota; X-RateLimit-Reset is in seconds from now, and left out when it is not known.
func (q *Quota) Headers() [][2]string {
	h := [][2]string{{"X-RateLimit-Limit", number(q.Limit)}, {"X-RateLimit-Remaining", number(q.Remaining)}}
	if q.ResetMS > 0 {
		h = append(h, [2]string{"X-RateLimit-Reset", seconds(time.Duration(q.ResetMS) * time.Millisecond)})
	}
	return h
}

func number(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// seconds is d in whole seconds, rounded up: who comes after that long is not too early.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}
