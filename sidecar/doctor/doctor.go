// Package doctor tries every hop on the way from this machine to the backends, each on its own and in order, and says what
// works, what does not, and what to do about it. It goes the way of the tunnels, with their dialer; where that fails it asks
// again by itself to find out why. It listens nowhere and locks nothing, so it runs beside a live sidecar.
package doctor

import (
	"context"
	"fmt"
	"os"
	"time"

	"fairlead/shared/link"
	"fairlead/shared/ws"
	"fairlead/sidecar/config"
)

// Parts are what tunnels are made with.
type Parts struct {
	Dialer *ws.Dialer             // copied, and used with the doctor's own timeout
	Token  func() (string, error) // reads the token
	Link   link.Config
}

// Config says what to try.
type Config struct {
	Version string
	Load    func() (config.Config, error)      // reads and validates the configuration
	Source  string                             // where from, for people; may be empty
	Build   func(config.Config) (Parts, error) // makes the parts as tunnels do
	Routes  []string                           // to try; none: those of the listeners
	Timeout time.Duration                      // of each probe; 0: 10 s. All together have 12 times that, and a minute for the throughput
	Size    int64                              // bytes of the throughput, at most link.ProbeBytes; 0: it is not measured
	SSH     SSH                                // how to try SSH behind routes
	Each    func(Result)                       // told each result as it comes; nil: nobody is
	Environ func(string) string                // nil: os.Getenv
	Now     func() time.Time                   // the clock that is compared; nil: time.Now
}

const (
	defaultTimeout = 10 * time.Second
	wholeTimeouts  = 12 // how many times Timeout all probes together have
)

// run is one examination. One goroutine runs it.
type run struct {
	cfg      Config
	ctx      context.Context
	whole    time.Duration // that all probes have
	stopped  func() error  // by the caller
	results  []Result
	settings config.Config
	parts    Parts
	built    bool   // parts are there
	token    string // empty: there is none
	noToken  error  // why
	claims   claims
	routed   bool // the routes were tried
	cut      bool // something was not tried to the end
}

// Run tries every hop and returns what it found. It ends early, with what is known, when ctx does.
func Run(ctx context.Context, cfg Config) Report {
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.Environ == nil {
		cfg.Environ = os.Getenv
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	whole := wholeTimeouts * cfg.Timeout
	if cfg.Size > 0 {
		whole += link.ProbeTime
	}
	bounded, cancel := context.WithTimeout(ctx, whole)
	defer cancel()
	r := &run{cfg: cfg, ctx: bounded, whole: whole, stopped: ctx.Err}
	start := time.Now()
	if r.configuration() {
		r.files()
		r.tokenFile()
		for _, e := range r.settings.Gateway.Endpoints {
			r.endpoint(e)
		}
		if !r.routed {
			for _, route := range r.routes() {
				r.skip(HopPolicy, route, HopTunnel)
			}
		}
	}
	return r.report(start)
}

// probe has f find out about a hop, within its own time, and adds what it found. f fills in what it knows; with an error,
// the hop has failed unless f has set another status. The result is whether what needs the hop can be tried.
func (r *run) probe(hop, target string, f func(ctx context.Context, res *Result) error) bool {
	return r.probeWithin(r.cfg.Timeout, hop, target, f)
}

func (r *run) probeWithin(most time.Duration, hop, target string, f func(ctx context.Context, res *Result) error) bool {
	res := Result{Hop: hop, Target: target, Data: map[string]any{}}
	if r.over() {
		return r.interrupted(res)
	}
	ctx, cancel := context.WithTimeout(r.ctx, most)
	defer cancel()
	start := time.Now()
	err := f(ctx, &res)
	res.took(time.Since(start))
	if err != nil && r.over() {
		return r.interrupted(res)
	}
	if err != nil {
		res.failed(err)
	}
	return r.add(res)
}

// interrupted adds a hop that was not tried to the end.
func (r *run) interrupted(res Result) bool {
	r.cut = true
	res.Status, res.Detail = Skipped, "not tried: interrupted"
	if r.stopped() == nil {
		res.Detail = fmt.Sprintf("not tried: all probes together have %s, which are over", r.whole)
	}
	return r.add(res)
}

// over says whether the time of all probes is, or who asked does not want to wait any more. The timer of the context may be
// late, when a network connection has seen the same deadline already.
func (r *run) over() bool {
	deadline, ok := r.ctx.Deadline()
	return r.ctx.Err() != nil || ok && !time.Now().Before(deadline)
}

// skip adds a hop that cannot be tried for want of another.
func (r *run) skip(hop, target, needs string) { r.skipFor(hop, target, "not tried: needs "+needs) }

func (r *run) skipFor(hop, target, why string) {
	r.add(Result{Hop: hop, Target: target, Status: Skipped, Detail: why})
}

// add takes a result and says whether what needs the hop can be tried.
func (r *run) add(res Result) bool {
	if res.Status == "" {
		res.Status = OK
	}
	if res.Data == nil {
		res.Data = map[string]any{}
	}
	r.results = append(r.results, res)
	if r.cfg.Each != nil {
		r.cfg.Each(res)
	}
	return res.Status == OK || res.Status == Warn
}

// routes are the ones to try, each once.
func (r *run) routes() []string {
	if len(r.cfg.Routes) > 0 {
		return r.cfg.Routes
	}
	var all []string
	seen := map[string]bool{}
	for _, l := range r.settings.Listeners {
		if !seen[l.Route] {
			seen[l.Route] = true
			all = append(all, l.Route)
		}
	}
	return all
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}
