package admin

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"log/slog"
	"net/http"
	"os"
	"strings"

	"fairlead/shared/errs"
	"fairlead/shared/logging"
)

// minToken is the least length of a token that is worth guarding with, in bytes.
const minToken = 16

// operators are who has the token of a file.
type operators struct {
	file string
	log  *slog.Logger
}

// token reads the token anew, so that it can be changed without a restart.
func (o operators) token() ([]byte, error) {
	b, err := os.ReadFile(o.file)
	if err != nil {
		return nil, errs.Wrap(errs.KeyUnreadable, err, "admin.token_file")
	}
	if b = bytes.TrimSpace(b); len(b) < minToken {
		return nil, errs.New(errs.KeyUnreadable, "admin.token_file: %s holds %d bytes; at least %d are needed", o.file, len(b), minToken)
	}
	return b, nil
}

func (o operators) allow(r *http.Request) error {
	want, err := o.token()
	if err != nil {
		o.log.Error("the admin token cannot be read", logging.Error(err)...) // a stranger is not told of files
		return errs.New(errs.KeyUnreadable, "the gateway cannot read its admin token; its log says why")
	}
	got, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	a, b := sha256.Sum256([]byte(got)), sha256.Sum256(want) // of equal length, so that the comparison tells nothing about it
	if !ok || subtle.ConstantTimeCompare(a[:], b[:]) != 1 {
		return errs.New(errs.AdminDenied, "the admin token is missing or wrong")
	}
	return nil
}
