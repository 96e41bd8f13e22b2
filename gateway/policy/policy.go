// Package policy decides which tenants may use which routes. What no rule allows is denied.
package policy

import (
	"fmt"
	"path"
	"strings"

	"fairlead/shared/errs"
)

// Rule allows every tenant that one of the patterns names every one of the routes.
type Rule struct {
	// Tenants are patterns. Tenant and pattern are compared part by part between the slashes, each part by path.Match
	// (*, ?, [a-z]); both must have the same number of parts. The pattern "*" alone matches every tenant.
	Tenants []string
	// Routes are exact names; "*" alone means all routes.
	Routes []string
}

const (
	all       = "*"
	noRule    = -1
	maxQuoted = 128 // bytes of a name in a message
)

// Policy is a compiled list of rules. It never changes: to apply another list, build another Policy and swap the pointer.
type Policy struct {
	byRoute map[string][]grant // the grants of routes that are named, in the order of the rules
	anyway  []grant            // the grants of all routes
}

// grant is one tenant pattern of one rule.
type grant struct {
	rule    int
	pattern string
	route   string   // as the rule writes it
	parts   []string // nil: every tenant
}

// Decision says how a question was answered, for the audit log and for people who run the gateway. It is not for
// tenants: it shows the rules.
type Decision struct {
	Allowed bool   `json:"allowed"`
	Rule    int    `json:"rule"`    // index of the rule that allows it, from 0; -1: none
	Tenants string `json:"tenants"` // the rule's pattern that matched; empty: none
	Route   string `json:"route"`   // the rule's route that matched; empty: none
	Reason  string `json:"reason"`  // one sentence
}

// New compiles the rules. No rules are fine: then everything is denied. Errors are errs.ConfigInvalid and name the rule
// by its index.
func New(rules []Rule) (*Policy, error) {
	p := &Policy{byRoute: make(map[string][]grant)}
	for i, rule := range rules {
		if len(rule.Tenants) == 0 || len(rule.Routes) == 0 {
			return nil, errs.New(errs.ConfigInvalid, "policy[%d] needs at least one of tenants and one of routes", i)
		}
		for _, pattern := range rule.Tenants {
			parts, err := compile(i, pattern)
			if err != nil {
				return nil, err
			}
			if err := p.add(grant{rule: i, pattern: pattern, parts: parts}, rule.Routes); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

func compile(rule int, pattern string) ([]string, error) {
	if pattern == all {
		return nil, nil
	}
	parts := strings.Split(pattern, "/")
	for _, part := range parts {
		if part == "" {
			return nil, errs.New(errs.ConfigInvalid, "policy[%d].tenants: %s has an empty part, which no tenant is meant by", rule, quote(pattern))
		}
		if _, err := path.Match(part, ""); err != nil {
			return nil, errs.Wrap(errs.ConfigInvalid, err, "policy[%d].tenants: %s is not a pattern", rule, quote(pattern))
		}
	}
	return parts, nil
}

func (p *Policy) add(g grant, routes []string) error {
	for _, route := range routes {
		g.route = route
		switch {
		case route == all:
			p.anyway = append(p.anyway, g)
		case route == "" || strings.ContainsAny(route, `*?[]\`):
			return errs.New(errs.ConfigInvalid, "policy[%d].routes: %s is not a route's name; only \"*\" alone stands for all routes", g.rule, quote(route))
		default:
			p.byRoute[route] = append(p.byRoute[route], g)
		}
	}
	return nil
}

// Allow returns nil when a rule allows the route to the tenant, else errs.RouteForbidden. The error is the same whether
// the route exists or not, so that a tenant cannot find out what others have.
func (p *Policy) Allow(tenant, route string) error {
	if p.find(tenant, route) == nil {
		return errs.New(errs.RouteForbidden, "tenant %s may not use route %s", quote(tenant), quote(route))
	}
	return nil
}

// Explain answers like Allow and says by which rule.
func (p *Policy) Explain(tenant, route string) Decision {
	g := p.find(tenant, route)
	if g == nil {
		return Decision{Rule: noRule, Reason: fmt.Sprintf("no rule gives tenant %s the route %s", quote(tenant), quote(route))}
	}
	return Decision{Allowed: true, Rule: g.rule, Tenants: g.pattern, Route: g.route,
		Reason: fmt.Sprintf("policy[%d] gives tenants %s the route %s", g.rule, quote(g.pattern), quote(g.route))}
}

// find returns the grant of the earliest rule; nil when there is none.
func (p *Policy) find(tenant, route string) *grant {
	if tenant == "" || route == "" {
		return nil // nobody, or nothing: not even "*" means these
	}
	named, anyway := first(p.byRoute[route], tenant), first(p.anyway, tenant)
	if named == nil || (anyway != nil && anyway.rule < named.rule) {
		return anyway
	}
	return named
}

func first(grants []grant, tenant string) *grant {
	for i := range grants {
		if grants[i].matches(tenant) {
			return &grants[i]
		}
	}
	return nil
}

func (g *grant) matches(tenant string) bool {
	if g.parts == nil {
		return true
	}
	rest, more := tenant, true
	for _, pattern := range g.parts {
		if !more {
			return false // the tenant has fewer parts
		}
		var part string
		part, rest, more = strings.Cut(rest, "/")
		if part == "" {
			return false // "a/" and "a//b" are no tenants of "a/*"
		}
		if ok, err := path.Match(pattern, part); err != nil || !ok {
			return false
		}
	}
	return !more
}

func quote(s string) string {
	if len(s) > maxQuoted {
		return fmt.Sprintf("%q…", s[:maxQuoted])
	}
	return fmt.Sprintf("%q", s)
}
