package doctor

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"fairlead/shared/errs"
)

// Status is how a hop is.
type Status string

// What a hop can be.
const (
	OK      Status = "ok"
	Warn    Status = "warn"    // works, but somebody should look
	Fail    Status = "fail"    // does not work
	Skipped Status = "skipped" // was not tried
)

// The hops, in the order in which they are tried.
const (
	HopConfiguration = "configuration"
	HopFiles         = "files"
	HopTokenFile     = "token-file"
	HopDNS           = "dns"
	HopTCP           = "tcp"
	HopProxy         = "proxy"
	HopTLS           = "tls"
	HopClock         = "clock"
	HopUpgrade       = "upgrade"
	HopToken         = "token"
	HopTunnel        = "tunnel"
	HopRoundTrip     = "round-trip"
	HopTransfer      = "transfer"
	HopThroughput    = "throughput"
	HopPolicy        = "policy"
	HopBackend       = "backend"
	HopSSH           = "ssh"
	HopSSHLogin      = "ssh-login"
)

// Result is what was found out about one hop on its way to one target.
type Result struct {
	Hop    string         `json:"hop"`
	Target string         `json:"target"`
	Status Status         `json:"status"`
	TookMS float64        `json:"took_ms"`
	Detail string         `json:"detail"`
	Code   string         `json:"code"`   // FL-…; empty: none
	Advice string         `json:"advice"` // what to do; empty: nothing
	Data   map[string]any `json:"data"`   // by hop, see docs/doctor.md; never nil

	code    errs.Code
	told    bool   // Detail says already what an error would
	culprit string // a sentence that names the likely culprit; empty: the hop's usual one
}

func (r *Result) took(d time.Duration) {
	r.TookMS = millis(d)
}

// millis is d in milliseconds, to whole microseconds.
func millis(d time.Duration) float64 { return math.Round(d.Seconds()*1e6) / 1e3 }

// failed takes over an error: the hop failed by it, unless it has a status already.
func (r *Result) failed(err error) {
	var e *errs.Error
	if !errors.As(err, &e) && errors.Is(err, context.DeadlineExceeded) {
		e = errs.New(errs.OpenTimeout, "no answer in time")
	}
	if e == nil {
		e = errs.From(err)
	}
	if r.Status == "" {
		r.Status = Fail
	}
	r.code, r.Code = e.Code, e.Code.String()
	if !r.told {
		r.say("%s", e.Text())
	}
	if r.Advice == "" {
		r.Advice = e.Advice()
	}
}

// warn makes a hop that works worth a look. The first warning gives the advice.
func (r *Result) warn(advice, format string, args ...any) {
	r.Status = Warn
	r.say(format, args...)
	if r.Advice == "" {
		r.Advice = advice
	}
}

// say adds to the details.
func (r *Result) say(format string, args ...any) {
	if r.Detail != "" {
		r.Detail += "; "
	}
	r.Detail += fmt.Sprintf(format, args...)
}

// Report is the whole examination.
type Report struct {
	Version    string    `json:"version"`
	Started    time.Time `json:"started"`
	TookMS     float64   `json:"took_ms"`
	OK         bool      `json:"ok"`         // nothing failed, and nothing was interrupted
	Exit       int       `json:"exit"`       // exit code of the command
	Culprit    string    `json:"culprit"`    // hop that failed first; empty: none did
	Conclusion string    `json:"conclusion"` // one sentence
	Hops       []Result  `json:"hops"`
}

// report draws the conclusion.
func (r *run) report(start time.Time) Report {
	rep := Report{Version: r.cfg.Version, Started: start.UTC().Truncate(time.Millisecond), OK: true, Hops: r.results}
	rep.TookMS = millis(time.Since(start))
	var first *Result
	warnings := 0
	for i, res := range r.results {
		switch {
		case res.Status == Fail && first == nil:
			first = &r.results[i]
		case res.Status == Warn:
			warnings++
		}
	}
	switch {
	case first != nil:
		rep.OK, rep.Exit, rep.Culprit, rep.Conclusion = false, exitOf(first.code), first.Hop, first.conclusion()
		if r.routed && endpointHop(first.Hop) {
			rep.Conclusion += " Another endpoint works."
		}
	case r.cut && r.stopped() != nil:
		rep.OK, rep.Exit, rep.Conclusion = false, errs.ExitInterrupted, "Interrupted: what was tried works, the rest is not known."
	case r.cut:
		rep.OK, rep.Exit, rep.Conclusion = false, errs.ExitFailed, "What was tried works, but the time for all probes was over before the rest; raise --timeout."
	case warnings > 0:
		rep.Conclusion = fmt.Sprintf("Every hop that was tried works; %s should be looked at.", plural(warnings, "warning"))
	default:
		rep.Conclusion = "Every hop that was tried works."
	}
	return rep
}

// exitOf is the exit code for a failure: by its category, as scripts expect it.
func exitOf(code errs.Code) int {
	switch code.Category() {
	case errs.Configuration:
		return errs.ExitConfiguration
	case errs.Authentication:
		return errs.ExitAuthentication
	}
	return errs.ExitFailed
}

func endpointHop(hop string) bool {
	switch hop {
	case HopDNS, HopTCP, HopProxy, HopTLS, HopUpgrade, HopTunnel:
		return true
	}
	return false
}

// conclusion names the likely culprit of a failure.
func (r Result) conclusion() string {
	if r.culprit != "" {
		return r.culprit
	}
	switch r.Hop {
	case HopConfiguration:
		return "The likely culprit is the configuration: mend it first, since nothing was tried with it."
	case HopFiles:
		return "The likely culprit is a file that the configuration names: no tunnel can be made without it."
	case HopTokenFile, HopToken:
		return "The likely culprit is the token: " + r.Detail + "."
	case HopDNS:
		return fmt.Sprintf("The likely culprit is name resolution: %s is misspelt, or the resolver here does not know it.", r.Target)
	case HopTCP:
		return fmt.Sprintf("The likely culprit is the network between here and %s, or nothing listens there.", r.Target)
	case HopProxy:
		return "The likely culprit is the egress proxy: " + r.Detail + "."
	case HopTLS:
		return fmt.Sprintf("The likely culprit is TLS at %s: %s.", r.Target, r.Detail)
	case HopUpgrade:
		return fmt.Sprintf("The likely culprit is what answers at %s: %s.", r.Target, r.Detail)
	case HopTunnel, HopRoundTrip:
		return fmt.Sprintf("The likely culprit is the gateway at %s, or what is in front of it: tunnels do not work.", r.Target)
	case HopTransfer, HopThroughput:
		return "The likely culprit is something between here and the gateway that changes or holds back bytes of a WebSocket."
	case HopPolicy:
		return fmt.Sprintf("The likely culprit is the gateway's configuration: %s.", r.Detail)
	case HopBackend:
		return fmt.Sprintf("The likely culprit is the backend of route %s, or the way from the gateway to it; the way to the gateway works.", r.Target)
	case HopSSH:
		return fmt.Sprintf("The likely culprit is the SSH server of route %s; the way to it works.", r.Target)
	case HopSSHLogin:
		return fmt.Sprintf("The likely culprit is the login at the SSH server of route %s; everything before it works.", r.Target)
	}
	return fmt.Sprintf("The likely culprit is the hop %s to %s.", r.Hop, r.Target)
}
