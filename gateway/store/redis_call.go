package store

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"fairlead/shared/errs"
)

// tryTimeout is for calls that are tried although Redis is down.
const tryTimeout = 100 * time.Millisecond

// chunk is how many scripts are sent together.
const chunk = 500

// op is a call of the store.
type op struct {
	name   string        // in metrics and errors
	within time.Duration // 0: CallTimeout
	once   bool          // not repeated, also if the connection breaks
	anyway bool          // tried also while Redis is down
}

// invocation of a script.
type invocation struct {
	keys []string
	args []any
}

// run runs one script.
func (r *Redis) run(ctx context.Context, o op, script string, keys []string, args ...any) (answer any, err error) {
	err = r.call(ctx, o, func(ctx context.Context, c redis.UniversalClient) (err error) {
		if answer, err = r.scripts[script].Run(ctx, c, keys, args...).Result(); errors.Is(err, redis.Nil) {
			answer, err = nil, nil
		}
		return err
	})
	return answer, err
}

// runAll runs a script many times, and hands each answer to got.
func (r *Redis) runAll(ctx context.Context, o op, script string, all []invocation, got func(i int, answer any)) error {
	for begin := 0; begin < len(all); begin += chunk {
		some := all[begin:min(begin+chunk, len(all))]
		var answers []any
		err := r.call(ctx, o, func(ctx context.Context, c redis.UniversalClient) (err error) {
			answers, err = pipeline(ctx, c, r.scripts[script], some)
			return err
		})
		if err != nil {
			return err
		}
		for i, answer := range answers {
			got(begin+i, answer)
		}
	}
	return nil
}

// pipeline sends a script many times in one round trip, and in another one those whose node does not have the script.
func pipeline(ctx context.Context, c redis.UniversalClient, script *redis.Script, all []invocation) ([]any, error) {
	answers := make([]any, len(all))
	todo := make([]int, len(all))
	for i := range todo {
		todo[i] = i
	}
	for _, send := range []func(p redis.Pipeliner, in invocation) *redis.Cmd{
		func(p redis.Pipeliner, in invocation) *redis.Cmd { return script.EvalSha(ctx, p, in.keys, in.args...) },
		func(p redis.Pipeliner, in invocation) *redis.Cmd { return script.Eval(ctx, p, in.keys, in.args...) },
	} {
		p := c.Pipeline()
		sent := make([]*redis.Cmd, len(todo))
		for i, n := range todo {
			sent[i] = send(p, all[n])
		}
		_, failed := p.Exec(ctx)
		var missing []int
		for i, n := range todo {
			answer, err := sent[i].Result()
			switch {
			case err == nil:
				answers[n] = answer
			case errors.Is(err, redis.Nil):
			case noScript(err):
				missing = append(missing, n)
			default:
				return nil, err
			}
		}
		if failed != nil && !errors.Is(failed, redis.Nil) && !noScript(failed) {
			return nil, failed // before anything was sent, of which the commands know nothing
		}
		if todo = missing; len(todo) == 0 {
			return answers, nil
		}
	}
	return nil, redis.ErrNoScript
}

func noScript(err error) bool { return redis.HasErrorPrefix(err, "NOSCRIPT") }

// call makes a call, within its time, and tells health and metrics what came of it. Errors are as in Store.
func (r *Redis) call(ctx context.Context, o op, do func(context.Context, redis.UniversalClient) error) error {
	if ctx.Err() != nil {
		return canceled(ctx)
	}
	if r.closed() {
		return errs.New(errs.StoreUnavailable, "the store is closed")
	}
	within := or(o.within, r.cfg.CallTimeout)
	if h := r.health.now(); !h.Up {
		if !o.anyway || !r.mayTry() {
			return errs.New(errs.StoreUnavailable, "%s: the store is down: %s", o.name, h.Error)
		}
		defer func() { <-r.anyway }()
		within = min(within, tryTimeout)
	}
	bounded, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	l, began := r.link.Load(), time.Now()
	err := do(bounded, l.client)
	if err != nil && !o.once && broken(err) && bounded.Err() == nil {
		err = do(bounded, l.client)
	}
	r.meter.took(o.name, time.Since(began))
	if err == nil {
		r.health.answered()
		return nil
	}
	f := classify(err)
	if ctx.Err() != nil {
		if f.kind == kindTimeout && errors.Is(ctx.Err(), context.DeadlineExceeded) && time.Since(began) >= r.cfg.Timeout && r.link.Load() == l {
			r.health.failed(f, began) // the caller's patience was shorter than ours, but as long as Take's
		}
		return canceled(ctx)
	}
	r.meter.failed(o.name, f.kind)
	if r.link.Load() == l { // else it is of a time that is over
		r.health.failed(f, began)
	}
	return errs.New(errs.StoreUnavailable, "%s: %s", o.name, f.text)
}

// mayTry takes one of the places for calls while Redis is down.
func (r *Redis) mayTry() bool {
	select {
	case r.anyway <- struct{}{}:
		return true
	default:
		return false
	}
}
