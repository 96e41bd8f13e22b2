// Package policy decides which tenants may use which routes. What no rule allows is denied.
package policy

import (
	"fmt"
	"slices"
	"strings"

	"fairlead/shared/errs"
	"fairlead/shared/glob"
)

// Rule allows every tenant that one of the patterns names every one of the routes.
type Rule struct {
	// Tenants are patterns; see glob.Pattern. The pattern "*" alone matches every tenant.
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
	rules   []Rule             // as they were written
}

// grant is one tenant pattern of one rule.
type grant struct {
	rule    int
	tenants glob.Pattern
	route   string // as the rule writes it
}

// New compiles the rules. No rules are fine: then everything is denied. Errors are errs.ConfigInvalid and name the rule
// by its index.
func New(rules []Rule) (*Policy, error) {
	p := &Policy{byRoute: make(map[string][]grant), rules: slices.Clone(rules)}
	for i, rule := range rules {
		if len(rule.Tenants) == 0 || len(rule.Routes) == 0 {
			return nil, errs.New(errs.ConfigInvalid, "policy[%d] needs at least one of tenants and one of routes", i)
		}
		for _, pattern := range rule.Tenants {
			tenants, err := glob.Compile(pattern)
			if err != nil {
				return nil, errs.Wrap(errs.ConfigInvalid, err, "policy[%d].tenants", i)
			}
			if err := p.add(grant{rule: i, tenants: tenants}, rule.Routes); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
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
		if grants[i].tenants.Match(tenant) {
			return &grants[i]
		}
	}
	return nil
}

func quote(s string) string {
	if len(s) > maxQuoted {
		return fmt.Sprintf("%q…", s[:maxQuoted])
	}
	return fmt.Sprintf("%q", s)
}
