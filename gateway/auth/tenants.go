package auth

import (
	"maps"
	"slices"
	"strings"

	"fairlead/shared/errs"
)

// apartFromEachOther refuses issuers that could speak for each other's tenants, unless both are meant to: policy, limits
// and pools know a tenant by its name alone, so whoever can get a token of the weakest issuer would have what the
// strongest one's tenants may reach.
func apartFromEachOther(all issuers) error {
	names := slices.Sorted(maps.Keys(all))
	for n, one := range names {
		for _, other := range names[n+1:] {
			a, b := all[one], all[other]
			if a.cfg.SharedTenants && b.cfg.SharedTenants || a.tenant.apart(b.tenant) {
				continue
			}
			return errs.New(errs.ConfigInvalid, "issuers %s and %s can speak for the same tenants: begin both tenant templates with text of their own, such as dev:{sub}, or set shared_tenants on both if whoever one of them trusts may be the other's tenant",
				quote(one), quote(other))
		}
	}
	return nil
}

// apart reports whether two templates can be seen to never give the same name: by how the names begin or end, or by how
// many slashes they have, which values of joined claims cannot hold.
func (t *template) apart(o *template) bool {
	first, last := t.literals[0], t.literals[len(t.claims)]
	otherFirst, otherLast := o.literals[0], o.literals[len(o.claims)]
	switch {
	case len(t.claims) == 0 && len(o.claims) == 0:
		return first != otherFirst
	case !strings.HasPrefix(first, otherFirst) && !strings.HasPrefix(otherFirst, first):
		return true
	case !strings.HasSuffix(last, otherLast) && !strings.HasSuffix(otherLast, last):
		return true
	case t.single() || o.single():
		return false
	}
	return t.slashes() != o.slashes()
}

func (t *template) slashes() int { return strings.Count(strings.Join(t.literals, ""), "/") }
