package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	sharedconfig "fairlead/shared/config"
	"fairlead/shared/errs"
	"fairlead/sidecar/config"
)

// configuration loads and validates, and reports all problems.
func (r *run) configuration() bool {
	return r.probe(HopConfiguration, r.cfg.Source, func(_ context.Context, res *Result) error {
		var err error
		r.settings, err = r.cfg.Load()
		var problems sharedconfig.Problems
		if errors.As(err, &problems) {
			list := make([]string, len(problems))
			for i, p := range problems {
				list[i] = p.String()
			}
			res.Data["problems"] = list
			res.say("%s: %s", plural(len(list), "problem"), strings.Join(list, "; "))
			res.told = true
		}
		if err != nil {
			return err
		}
		endpoints, listeners := len(r.settings.Gateway.Endpoints), len(r.settings.Listeners)
		res.Data["endpoints"], res.Data["listeners"] = endpoints, listeners
		res.say("%s, %s", plural(endpoints, "endpoint"), plural(listeners, "listener"))
		return nil
	})
}

// files makes the parts of tunnels, which reads the files that the configuration names.
func (r *run) files() {
	g := r.settings.Gateway
	r.built = r.probe(HopFiles, fileNames(g), func(_ context.Context, res *Result) error {
		var err error
		if r.parts, err = r.cfg.Build(r.settings); err != nil {
			return err
		}
		if g.CAFile == "" {
			res.say("the gateway's certificate is checked against the system's authorities")
		} else {
			res.say("the gateway's certificate is checked against gateway.ca_file")
		}
		return nil
	})
}

func fileNames(g config.Gateway) string {
	var names []string
	for _, f := range []string{g.CAFile, g.ClientCertFile, g.ClientKeyFile} {
		if f != "" {
			names = append(names, f)
		}
	}
	return strings.Join(names, " ")
}

// tokenFile reads the token and looks at what it says of itself. Whether it is good is the gateway's to say, later.
func (r *run) tokenFile() {
	target := r.settings.Gateway.TokenFile
	if target == "" {
		target = "gateway.token"
	}
	if !r.built {
		r.skip(HopTokenFile, target, HopFiles)
		return
	}
	r.probe(HopTokenFile, target, func(_ context.Context, res *Result) error {
		if r.token, r.noToken = r.parts.Token(); r.noToken != nil {
			return r.noToken
		}
		var ok bool
		if r.claims, ok = parseClaims(r.token); !ok {
			res.say("readable; not a JWT, so that it cannot be looked into")
			return nil
		}
		r.claims.describe(res, r.cfg.Now())
		return nil
	})
}

// describe says what a token says of itself, by our clock.
func (c claims) describe(res *Result, now time.Time) {
	res.Data["issuer"], res.Data["audience"], res.Data["subject"] = c.Issuer, []string(c.Audience), c.Subject
	for name, at := range map[string]time.Time{"expires": c.Expires.Time, "not_before": c.NotBefore.Time, "issued": c.Issued.Time} {
		if !at.IsZero() {
			res.Data[name] = at.UTC().Format(time.RFC3339)
		}
	}
	res.say("issuer %s, audience %s, subject %s", orNone(c.Issuer), orNone(strings.Join(c.Audience, ", ")), orNone(c.Subject))
	switch from := latest(c.NotBefore.Time, c.Issued.Time); {
	case c.Expires.IsZero():
		res.warn("Have tokens issued with an expiry (exp): gateways refuse those without.", "it never expires")
	case !now.Before(c.Expires.Time):
		res.warn(errs.TokenExpired.Info().Advice, "by this machine's clock it expired %s ago", rough(now.Sub(c.Expires.Time)))
	case from.After(now):
		res.warn(errs.TokenNotYet.Info().Advice, "by this machine's clock it is valid only in %s", rough(from.Sub(now)))
	default:
		res.say("expires in %s", rough(c.Expires.Sub(now)))
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func orNone(s string) string {
	if s == "" {
		return "(none)"
	}
	return clip(s, 120)
}

// rough is a duration for people.
func rough(d time.Duration) string {
	switch d = d.Abs(); {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	case d >= time.Minute:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return d.Round(time.Second).String()
}

// clip makes text of others fit to be shown: short, and without what a terminal would obey.
func clip(s string, most int) string {
	s = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c >= 0x80 && c < 0xa0 {
			return ' '
		}
		return c
	}, strings.ToValidUTF8(s, "?"))
	if runes := []rune(s); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return s
}
