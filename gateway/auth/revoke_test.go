package auth

import (
	"crypto"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"fairlead/shared/errs"
)

func newRevocations(t testing.TB, clock *clock, cfg RevocationsConfig) *Revocations {
	cfg.Now = clock.now
	r, err := NewRevocations(cfg)
	require.NoError(t, err)
	return r
}

func TestRevocationsHitWhatTheyName(t *testing.T) {
	clock := newClock()
	now := clock.now()
	who := Identity{Tenant: "payments/api", Subject: "alice", Issuer: testIssuer, TokenID: "id-1", IssuedAt: now.Add(-time.Minute), Expires: now.Add(time.Hour)}
	cases := map[string]struct {
		revocation Revocation
		refused    bool
	}{
		"token":                          {Revocation{TokenID: "id-1"}, true},
		"token of the issuer":            {Revocation{TokenID: "id-1", Issuer: testIssuer}, true},
		"token of another issuer":        {Revocation{TokenID: "id-1", Issuer: "other"}, false},
		"another token":                  {Revocation{TokenID: "id-2"}, false},
		"subject":                        {Revocation{Subject: "alice"}, true},
		"subject of another issuer":      {Revocation{Subject: "alice", Issuer: "other"}, false},
		"subject with the tenant's name": {Revocation{Subject: "payments/api"}, false},
		"tenant":                         {Revocation{Tenant: "payments/api"}, true},
		"part of the tenant":             {Revocation{Tenant: "payments"}, false},
		"tenant in another case":         {Revocation{Tenant: "Payments/api"}, false},
		"issued before now":              {Revocation{Tenant: "payments/api", IssuedBefore: now}, true},
		"issued at that very time":       {Revocation{Tenant: "payments/api", IssuedBefore: who.IssuedAt}, false},
		"issued later":                   {Revocation{Tenant: "payments/api", IssuedBefore: now.Add(-time.Hour)}, false},
		"within the second of issue":     {Revocation{Tenant: "payments/api", IssuedBefore: who.IssuedAt.Add(time.Millisecond)}, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := newRevocations(t, clock, RevocationsConfig{})
			require.NoError(t, r.Check(who))
			added, err := r.Add(c.revocation)
			require.NoError(t, err)
			require.NotEmpty(t, added.ID)
			require.Equal(t, now, added.At)
			err = r.Check(who)
			if !c.refused {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, errs.TokenRevoked)
			require.ErrorContains(t, err, added.ID)
			removed, err := r.Remove(added.ID)
			require.NoError(t, err)
			require.Equal(t, added, removed)
			require.NoError(t, r.Check(who))
			require.Empty(t, r.List())
			_, err = r.Remove(added.ID)
			require.ErrorIs(t, err, errs.NotFound)
		})
	}
	var none *Revocations
	require.NoError(t, none.Check(who))
	r := newRevocations(t, clock, RevocationsConfig{})
	_, err := r.Add(Revocation{Tenant: "payments/api", IssuedBefore: now.Add(-time.Hour)})
	require.NoError(t, err)
	who.IssuedAt = time.Time{}
	require.ErrorIs(t, r.Check(who), errs.TokenRevoked, "a token that does not say when it was issued")
	require.NoError(t, r.Check(Identity{Tenant: "other"}), "tokens without id and subject are not hit by empty names")
}

func TestTheStrongerRevocationStays(t *testing.T) {
	clock := newClock()
	r := newRevocations(t, clock, RevocationsConfig{})
	who := Identity{Tenant: "t", Issuer: "i", IssuedAt: clock.now().Add(time.Minute)}
	plain, err := r.Add(Revocation{Tenant: "t"})
	require.NoError(t, err)
	_, err = r.Add(Revocation{Tenant: "t", IssuedBefore: clock.now()})
	require.NoError(t, err)
	require.ErrorIs(t, r.Check(who), errs.TokenRevoked)
	_, err = r.Remove(plain.ID)
	require.NoError(t, err)
	require.NoError(t, r.Check(who))
}

func TestRevocationsEnd(t *testing.T) {
	clock := newClock()
	r := newRevocations(t, clock, RevocationsConfig{Keep: time.Hour})
	who := Identity{Tenant: "t", Expires: clock.now().Add(30 * time.Minute)}
	added, err := r.Add(Revocation{Tenant: "t"})
	require.NoError(t, err)
	require.Equal(t, clock.now().Add(time.Hour), added.Until)
	_, err = r.Add(Revocation{Tenant: "t", Until: clock.now().Add(time.Minute)})
	require.NoError(t, err)
	clock.move(time.Hour - time.Second)
	require.ErrorIs(t, r.Check(who), errs.TokenRevoked)
	require.Len(t, r.List(), 1)
	clock.move(time.Second)
	require.NoError(t, r.Check(who))
	require.Empty(t, r.List())

	// By default it lasts as long as the longest token that was accepted, but no longer than a year.
	require.NoError(t, r.Check(Identity{Tenant: "long", Expires: clock.now().Add(30 * 24 * time.Hour)}))
	added, err = r.Add(Revocation{Tenant: "t"})
	require.NoError(t, err)
	require.Equal(t, clock.now().Add(30*24*time.Hour+time.Minute).Unix(), added.Until.Unix())
	require.NoError(t, r.Check(Identity{Tenant: "for ever", Expires: time.Unix(maxDate, 0)}))
	added, err = r.Add(Revocation{Tenant: "t"})
	require.NoError(t, err)
	require.Equal(t, clock.now().Add(longestKeep+time.Minute).Unix(), added.Until.Unix())
}

func TestRevocationsThatMakeNoSense(t *testing.T) {
	clock := newClock()
	r := newRevocations(t, clock, RevocationsConfig{})
	for name, bad := range map[string]Revocation{
		"nothing":              {},
		"issuer alone":         {Issuer: testIssuer},
		"two":                  {TokenID: "a", Tenant: "b"},
		"past":                 {Tenant: "t", Until: clock.now()},
		"spared after its end": {Tenant: "t", Until: clock.now().Add(time.Hour), IssuedBefore: clock.now().Add(2 * time.Hour)},
		"line break":           {Tenant: "t\n"},
		"reason":               {Tenant: "t", Reason: strings.Repeat("x", maxReasonBytes+1)},
		"who":                  {Tenant: "t", By: "a\x1b[2J"},
	} {
		_, err := r.Add(bad)
		require.ErrorIs(t, err, errs.BadRequest, name)
	}
	require.Empty(t, r.List())
}

func TestRevocationsAreBounded(t *testing.T) {
	clock := newClock()
	set := metrics.NewSet()
	r := newRevocations(t, clock, RevocationsConfig{Max: 100, Metrics: set})
	for i := range 100 {
		_, err := r.Add(Revocation{TokenID: fmt.Sprint(i), Until: clock.now().Add(time.Hour + time.Duration(i))})
		require.NoError(t, err)
	}
	_, err := r.Add(Revocation{TokenID: "one more"})
	require.ErrorIs(t, err, errs.RequestLimit)
	require.EqualValues(t, 100, errs.From(err).Quota.Limit)
	require.Contains(t, text(set), "fairlead_gateway_revocations 100\n")
	clock.move(time.Hour + 50)
	_, err = r.Add(Revocation{TokenID: "one more"})
	require.NoError(t, err, "those that have ended make room")
	require.Len(t, r.List(), 50)
	require.Contains(t, text(set), "fairlead_gateway_revocations 50\n")
	require.Len(t, r.tokens, 50)

	for range maxSame {
		_, err := r.Add(Revocation{Tenant: "t"})
		require.NoError(t, err)
	}
	_, err = r.Add(Revocation{Tenant: "t"})
	require.ErrorIs(t, err, errs.BadRequest)
	_, err = r.Add(Revocation{ID: r.List()[0].ID, Tenant: "u"})
	require.ErrorIs(t, err, errs.BadRequest)
}

func text(set *metrics.Set) string {
	var b strings.Builder
	set.WritePrometheus(&b)
	return b.String()
}

func TestRevocationsOutliveARestart(t *testing.T) {
	clock := newClock()
	file := filepath.Join(t.TempDir(), "revocations.json")
	r := newRevocations(t, clock, RevocationsConfig{File: file})
	kept, err := r.Add(Revocation{Tenant: "t", Issuer: "i", Reason: "left", By: "ops", IssuedBefore: clock.now()})
	require.NoError(t, err)
	short, err := r.Add(Revocation{TokenID: "x", Until: clock.now().Add(time.Minute)})
	require.NoError(t, err)
	removed, err := r.Add(Revocation{Subject: "s"})
	require.NoError(t, err)
	_, err = r.Remove(removed.ID)
	require.NoError(t, err)
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())

	again := newRevocations(t, clock, RevocationsConfig{File: file})
	list := again.List()
	require.Len(t, list, 2)
	require.ElementsMatch(t, []string{kept.ID, short.ID}, []string{list[0].ID, list[1].ID})
	require.ErrorIs(t, again.Check(Identity{Tenant: "t", Issuer: "i"}), errs.TokenRevoked)
	clock.move(time.Hour)
	require.Len(t, newRevocations(t, clock, RevocationsConfig{File: file}).List(), 1, "what has ended is not taken back")

	left, err := os.ReadDir(filepath.Dir(file))
	require.NoError(t, err)
	require.Len(t, left, 1, "nothing lies about")
	for _, bad := range []string{"", "[]", `{"revocations":[{"id":"a","until":"2100-01-01T00:00:00Z"}]}`, `{"revocations":[{`} {
		require.NoError(t, os.WriteFile(file, []byte(bad), 0o600))
		_, err := NewRevocations(RevocationsConfig{File: file, Now: clock.now})
		require.ErrorIs(t, err, errs.ConfigUnreadable, bad)
	}
}

func TestRevocationsHoldWithoutADisk(t *testing.T) {
	clock := newClock()
	dir := filepath.Join(t.TempDir(), "gone")
	require.NoError(t, os.Mkdir(dir, 0o700))
	set := metrics.NewSet()
	r := newRevocations(t, clock, RevocationsConfig{File: filepath.Join(dir, "r.json"), Metrics: set})
	require.NoError(t, os.Remove(dir))
	added, err := r.Add(Revocation{Tenant: "t"})
	require.ErrorIs(t, err, errs.Internal)
	require.NotEmpty(t, added.ID)
	require.ErrorIs(t, r.Check(Identity{Tenant: "t"}), errs.TokenRevoked, "in force all the same")
	require.Contains(t, text(set), "fairlead_gateway_revocations_unsaved 1\n")
	require.NoError(t, os.Mkdir(dir, 0o700))
	_, err = r.Add(Revocation{Tenant: "u"})
	require.NoError(t, err)
	require.Contains(t, text(set), "fairlead_gateway_revocations_unsaved 0\n")
	require.Len(t, newRevocations(t, clock, RevocationsConfig{File: filepath.Join(dir, "r.json")}).List(), 2, "the next write makes up for it")
}

func TestRevocationAsTheAPIShowsIt(t *testing.T) {
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	full := Revocation{ID: "r1", TokenID: "j", Subject: "s", Tenant: "t", Issuer: "i", Reason: "r", By: "b", At: at, Until: at.Add(time.Hour), IssuedBefore: at}
	data, err := json.Marshal(full)
	require.NoError(t, err)
	require.JSONEq(t, `{"id":"r1","token_id":"j","subject":"s","tenant":"t","issuer":"i","reason":"r","by":"b","at":"2026-11-01T12:00:00Z","until":"2026-11-01T13:00:00Z","issued_before":"2026-11-01T12:00:00Z"}`, string(data))
	data, err = json.Marshal(Revocation{ID: "r1", Tenant: "t", At: at, Until: at})
	require.NoError(t, err)
	require.JSONEq(t, `{"id":"r1","tenant":"t","at":"2026-11-01T12:00:00Z","until":"2026-11-01T12:00:00Z"}`, string(data))
}

func TestRememberedTokensAreRevokedAtOnce(t *testing.T) {
	clock, secret := newClock(), newSecret()
	revoked := newRevocations(t, clock, RevocationsConfig{})
	v, err := New(Config{Issuers: []Issuer{secretIssuer(t, secret)}, Now: clock.now, Metrics: metrics.NewSet(), Revocations: revoked})
	require.NoError(t, err)
	defer v.Close()
	told := make(chan Revocation, 1)
	cancel := revoked.Subscribe(func(n Revocation) { told <- n })
	token := sign(t, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now()))
	id, err := v.Verify(t.Context(), token)
	require.NoError(t, err)
	require.NoError(t, v.Check(t.Context(), id))

	added, err := revoked.Add(Revocation{TokenID: "id-1", Issuer: testIssuer, Reason: "stolen laptop of Bob"})
	require.NoError(t, err)
	require.Equal(t, added, <-told, "told before Add returns")
	_, err = v.Verify(t.Context(), token)
	requireRefused(t, err, errs.TokenRevoked, added.ID, token)
	require.NotContains(t, err.Error(), "Bob", "why is nobody's business")
	require.ErrorIs(t, v.Check(t.Context(), id), errs.TokenRevoked)
	code, _ := errs.CloseFrame(err)
	require.Equal(t, 4003, code)
	require.EqualValues(t, 1, v.counts.refused[errs.TokenRevoked].Get())

	// Another token of the same subject is good; logging everybody out spares those who log in again.
	other := sign(t, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now(), "jti", "id-2"))
	_, err = v.Verify(t.Context(), other)
	require.NoError(t, err)
	clock.move(time.Second)
	_, err = revoked.Add(Revocation{Tenant: "payments", IssuedBefore: clock.now()})
	require.NoError(t, err)
	<-told
	_, err = v.Verify(t.Context(), other)
	require.ErrorIs(t, err, errs.TokenRevoked)
	_, err = v.Verify(t.Context(), sign(t, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now(), "jti", "id-3")))
	require.NoError(t, err)
	cancel()
	_, err = revoked.Add(Revocation{Tenant: "payments"})
	require.NoError(t, err)
	require.Empty(t, told)
}

func TestRevocationsTogether(t *testing.T) {
	clock := newClock()
	file := filepath.Join(t.TempDir(), "r.json")
	r := newRevocations(t, clock, RevocationsConfig{File: file})
	var workers sync.WaitGroup
	for w := range 4 {
		workers.Go(func() {
			for i := range 20 {
				added, err := r.Add(Revocation{Tenant: fmt.Sprint(w, "-", i)})
				if err != nil {
					t.Error(err)
				}
				_ = r.Check(Identity{Tenant: fmt.Sprint(w, "-", i)})
				if i%2 == 0 {
					if _, err := r.Remove(added.ID); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	workers.Wait()
	require.Len(t, r.List(), 40)
	require.Equal(t, ids(r), ids(newRevocations(t, clock, RevocationsConfig{File: file})), "the file holds the last state")
}

func ids(r *Revocations) []string {
	var all []string
	for _, n := range r.List() {
		all = append(all, n.ID)
	}
	return all
}

func BenchmarkVerifyRevocations(b *testing.B) {
	clock := newClock()
	for _, n := range []int{0, 10_000, 100_000} {
		revoked := newRevocations(b, clock, RevocationsConfig{})
		for i := range n {
			each := Revocation{TokenID: fmt.Sprint("id-", i+2)}
			switch i % 3 {
			case 1:
				each = Revocation{Subject: fmt.Sprint("subject-", i), Issuer: testIssuer}
			case 2:
				each = Revocation{Tenant: fmt.Sprint("tenant-", i)}
			}
			_, err := revoked.Add(each)
			require.NoError(b, err)
		}
		v, err := New(Config{Issuers: []Issuer{fileIssuer(b, map[string]crypto.Signer{"r": rsaKey()})}, Now: clock.now, Revocations: revoked})
		require.NoError(b, err)
		token := sign(b, jwt.SigningMethodRS256, "r", rsaKey(), goodClaims(clock.now()))
		b.Run(fmt.Sprintf("cached/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(b.Context(), token); err != nil {
					b.Fatal(err)
				}
			}
		})
		require.NoError(b, v.Close())
	}
}

// What every stream open and every upgrade pays must not grow.
func TestRememberedTokenCostsNoAllocation(t *testing.T) {
	clock, secret := newClock(), newSecret()
	revoked := newRevocations(t, clock, RevocationsConfig{})
	_, err := revoked.Add(Revocation{Tenant: "somebody"})
	require.NoError(t, err)
	v, err := New(Config{Issuers: []Issuer{secretIssuer(t, secret)}, Now: clock.now, Revocations: revoked})
	require.NoError(t, err)
	defer v.Close()
	token := sign(t, jwt.SigningMethodHS256, "", secret, goodClaims(clock.now()))
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if _, err := v.Verify(t.Context(), token); err != nil {
			t.Fatal(err)
		}
	}))
}
