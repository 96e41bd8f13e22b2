package policy

import (
	"fmt"
	"slices"
	"strings"

	"fairlead/shared/glob"
)

// Decision says how a question was answered, for the audit log and for people who run the gateway. It is not for
// tenants: it shows the rules.
type Decision struct {
	Allowed bool   `json:"allowed"`
	Rule    int    `json:"rule"`    // index of the rule that allows it, from 0; -1: none
	Tenants string `json:"tenants"` // the rule's pattern that matched; empty: none
	Route   string `json:"route"`   // the rule's route that matched; empty: none
	Reason  string `json:"reason"`  // one sentence
	// Near are the rules that name one of both but not the other, a sentence each; only where nothing allows it.
	Near []string `json:"near,omitempty"`
}

// maxNear bounds how many rules are shown that come close.
const maxNear = 10

// Explain answers like Allow and says by which rule.
func (p *Policy) Explain(tenant, route string) Decision {
	g := p.find(tenant, route)
	if g == nil {
		return Decision{Rule: noRule, Reason: fmt.Sprintf("no rule gives tenant %s the route %s", quote(tenant), quote(route)), Near: p.near(tenant, route)}
	}
	return Decision{Allowed: true, Rule: g.rule, Tenants: g.tenants.String(), Route: g.route,
		Reason: fmt.Sprintf("policy[%d] gives tenants %s the route %s", g.rule, quote(g.tenants.String()), quote(g.route))}
}

// near says which rules would allow it, were it another tenant or another route.
func (p *Policy) near(tenant, route string) []string {
	var near []string
	for i, rule := range p.rules {
		var why string
		switch {
		case slices.Contains(rule.Routes, route) || slices.Contains(rule.Routes, all):
			why = fmt.Sprintf("policy[%d] has the route, but its tenants are %s", i, strings.Join(rule.Tenants, ", "))
		case rule.has(tenant):
			why = fmt.Sprintf("policy[%d] has the tenant, but its routes are %s", i, strings.Join(rule.Routes, ", "))
		default:
			continue
		}
		if len(near) == maxNear {
			return append(near, "and more")
		}
		near = append(near, why)
	}
	return near
}

func (r Rule) has(tenant string) bool {
	return slices.ContainsFunc(r.Tenants, func(pattern string) bool {
		p, err := glob.Compile(pattern)
		return err == nil && p.Match(tenant)
	})
}

// String is the answer for a terminal.
func (d Decision) String() string {
	var b strings.Builder
	word := "refused"
	if d.Allowed {
		word = "allowed"
	}
	fmt.Fprintf(&b, "%s: %s\n", word, d.Reason)
	for _, n := range d.Near {
		fmt.Fprintf(&b, "  %s\n", n)
	}
	return b.String()
}
