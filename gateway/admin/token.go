package admin

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"io"
	"os"
	"sync"
	"time"

	"fairlead/shared/errs"
)

// The sizes of a token that is worth guarding with, in bytes.
const (
	minToken = 16
	maxToken = 4096
)

// settled is how long a file must have been left alone before its time tells whether it has changed: clocks of file
// systems are coarse, and a file that is written twice within a tick looks as before.
const settled = 2 * time.Second

// tokenFile holds the hash of a token, as long as its file is the same.
type tokenFile struct {
	Token
	now func() time.Time

	mu   sync.Mutex
	info os.FileInfo // of the file when it was read; nil: read it
	read time.Time
	sum  [sha256.Size]byte
	err  error
}

// hash is the token's, or why there is none. A file that has not changed is not read again.
func (t *tokenFile) hash() ([sha256.Size]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	info, err := os.Stat(t.File)
	if err != nil {
		t.info, t.err = nil, errs.Wrap(errs.KeyUnreadable, err, "the admin token of %s", t.Name)
		return t.sum, t.err
	}
	if t.info != nil && same(t.info, info) && t.read.Sub(info.ModTime()) > settled {
		return t.sum, t.err
	}
	t.read, t.info = t.now(), info
	t.sum, t.err = readToken(t.Token)
	return t.sum, t.err
}

func same(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

func readToken(t Token) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(t.File)
	if err != nil {
		return sum, errs.Wrap(errs.KeyUnreadable, err, "the admin token of %s", t.Name)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return sum, errs.Wrap(errs.KeyUnreadable, err, "the admin token of %s", t.Name)
	}
	token := bytes.TrimSpace(raw)
	if len(raw) > maxToken || len(token) < minToken {
		return sum, errs.New(errs.KeyUnreadable, "the admin token of %s: %s does not hold %d to %d bytes", t.Name, t.File, minToken, maxToken)
	}
	return sha256.Sum256(token), nil
}

// tokens are all the callers who have one.
type tokens []*tokenFile

// newTokens reads every file once. Errors are errs.KeyUnreadable and errs.ConfigInvalid.
func newTokens(list []Token, now func() time.Time) (tokens, error) {
	all := tokens{}
	owner := map[[sha256.Size]byte]string{}
	for _, t := range list {
		f := &tokenFile{Token: t, now: now}
		sum, err := f.hash()
		if err != nil {
			return nil, err
		}
		if other, taken := owner[sum]; taken {
			return nil, errs.New(errs.ConfigInvalid, "admin.tokens: %s and %s have the same token; nobody could tell them apart", other, t.Name)
		}
		owner[sum] = t.Name
		all = append(all, f)
	}
	return all, nil
}

// find returns whose token it is; nil: nobody's. It compares with every token, so that the time it takes does not tell
// which one fits how well. err says which files cannot be used; the others count all the same.
func (all tokens) find(token string) (found *tokenFile, err error) {
	got := sha256.Sum256([]byte(token)) // of equal length, so that the comparison tells nothing about it
	index, matches := -1, 0
	for i, t := range all {
		want, problem := t.hash()
		if problem != nil {
			err = problem
			continue
		}
		equal := subtle.ConstantTimeCompare(got[:], want[:])
		index = subtle.ConstantTimeSelect(equal, i, index)
		matches += equal
	}
	switch {
	case matches == 1:
		return all[index], nil
	case matches > 1:
		return nil, errs.New(errs.KeyUnreadable, "two admin tokens have become the same; nobody can tell their owners apart")
	}
	return nil, err
}
