package admin

import "fairlead/shared/errs"

// Role is what a caller may do.
type Role string

// The roles; each may do what the one before may.
const (
	Anyone   Role = "anyone"   // who can connect: health, metrics, the page without what it shows
	Viewer   Role = "viewer"   // sees
	Operator Role = "operator" // sees, changes, and takes profiles
)

// may says whether somebody with the role may do what needs another.
func (r Role) may(need Role) bool {
	rank := map[Role]int{Anyone: 0, Viewer: 1, Operator: 2}
	have, known := rank[r]
	wants, meant := rank[need]
	return known && meant && have >= wants
}

// Token is who may call with the content of a file.
type Token struct {
	Name string // by which logs and the audit log know the caller; unique
	Role Role   // Viewer or Operator
	File string // holds the bearer token; read anew when it has changed
}

const (
	maxName = 64 // bytes of a token's name
	local   = "local"
	nobody  = "" // the actor of a request without a token that is known
)

// OperatorName is the name of the caller whose token is in Config.TokenFile.
const OperatorName = "operator"

func checkTokens(tokens []Token) error {
	names := map[string]bool{local: true} // which those without a token have
	for i, t := range tokens {
		switch {
		case !validName(t.Name):
			return errs.New(errs.ConfigInvalid, "admin.tokens[%d].name: %.70q is not a name of letters, digits, and . _ @ - of at most %d bytes", i, t.Name, maxName)
		case names[t.Name]:
			return errs.New(errs.ConfigInvalid, "admin.tokens[%d].name: %q is taken already", i, t.Name)
		case t.Role != Viewer && t.Role != Operator:
			return errs.New(errs.ConfigInvalid, "admin.tokens[%d].role: %.32q; allowed are %s and %s", i, t.Role, Viewer, Operator)
		}
		names[t.Name] = true
	}
	return nil
}

func validName(s string) bool {
	for _, c := range s {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '@', c == '-':
		default:
			return false
		}
	}
	return s != "" && len(s) <= maxName
}
