package doctor

import (
	"encoding/base64"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func jwt(payload string) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"HS256"}`)) + "." + encode([]byte(payload)) + "." + encode([]byte("signature"))
}

// A token is looked into with our clock, and what it says is shown, but for itself.
//
// Verifies: R2.6
func TestTokensAreLookedInto(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for payload, c := range map[string]struct {
		status Status
		detail string
	}{
		`{"iss":"i","aud":"fairlead","sub":"s","exp":1795525200}`:               {OK, "issuer i, audience fairlead, subject s; expires in 1h0m"},
		`{"iss":"i","aud":["a","b"],"exp":1795521600}`:                          {Warn, "issuer i, audience a, b, subject (none); by this machine's clock it expired 0s ago"},
		`{"exp":1795525200,"nbf":1795521660}`:                                   {Warn, "valid only in 1m"},
		`{"exp":1795525200,"iat":1795521660.5}`:                                 {Warn, "valid only in 1m"},
		`{"iss":"i"}`:                                                           {Warn, "it never expires"},
		`{"exp":1e300}`:                                                         {OK, "expires in"},
		`{"iss":"` + strings.Repeat("x", 500) + `\u001b[31m","exp":1795525200}`: {OK, "issuer " + strings.Repeat("x", 120) + "…"},
	} {
		c0, ok := parseClaims(jwt(payload))
		require.True(t, ok, payload)
		var res Result
		res.Data = map[string]any{}
		c0.describe(&res, now)
		if res.Status == "" {
			res.Status = OK
		}
		assert.Equal(t, c.status, res.Status, payload)
		assert.Contains(t, res.Detail, c.detail)
	}
	for _, none := range []string{"", "a.b", "a.!.c", "a.e30.c.d", jwt("not json"), jwt(`{"exp":"soon"}`), jwt(`{"aud":7}`)} {
		_, ok := parseClaims(none)
		assert.False(t, ok, none)
	}
}

// kexInit is a packet with ten lists (RFC 4253 section 7.1).
func kexInit(lists ...string) []byte {
	p := append([]byte{msgKexInit}, make([]byte, cookieSize)...)
	for _, l := range lists {
		p = binary.BigEndian.AppendUint32(p, uint32(len(l)))
		p = append(p, l...)
	}
	p = append(p, 0, 0, 0, 0, 0)
	const padding = 4
	head := binary.BigEndian.AppendUint32(nil, uint32(1+len(p)+padding))
	return append(append(append(head, padding), p...), make([]byte, padding)...)
}

func TestOffersAreParsed(t *testing.T) {
	packet := kexInit("kex-a,kex-b", "key-a", "c-up", "c-down", "m-up", "m-down", "none", "none", "", "")
	for _, before := range []string{"SSH-2.0-x\r\n", "hello\r\nSSH-2.0-x\n"} {
		o, ok := parseOffer(append([]byte(before), packet...))
		require.True(t, ok)
		assert.Equal(t, offer{KeyExchange: []string{"kex-a", "kex-b"}, HostKey: []string{"key-a"}, Cipher: []string{"c-down"}, MAC: []string{"m-down"}}, o)
	}
	whole := append([]byte("SSH-2.0-x\r\n"), packet...)
	for n := range len(whole) {
		_, ok := parseOffer(whole[:n])
		assert.False(t, ok, n)
	}
	assert.Equal(t, "b", chosen([]string{"a", "b", "c"}, []string{"c", "b"}))
	assert.Empty(t, chosen([]string{"a"}, nil))
}

func FuzzParseOffer(f *testing.F) {
	f.Add(append([]byte("SSH-2.0-x\r\n"), kexInit("a,b", "c", "d", "e", "f", "g", "", "", "", "")...))
	f.Add([]byte("SSH-2.0-x\n\xff\xff\xff\xff\xff"))
	f.Add([]byte("SSH-2.0-x\n\x00\x00\x00\x12\x00\x14"))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, ok := parseOffer(b)
		if !ok {
			return
		}
		for _, list := range [][]string{o.KeyExchange, o.HostKey, o.Cipher, o.MAC} {
			require.LessOrEqual(t, len(list), mostNames)
			for _, name := range list {
				require.Equal(t, name, clip(name, 81))
			}
		}
	})
}

func FuzzParseClaims(f *testing.F) {
	f.Add(jwt(`{"iss":"i","aud":["a"],"exp":1,"nbf":2,"iat":3}`))
	f.Add("a.e30.c")
	f.Fuzz(func(t *testing.T, token string) {
		if c, ok := parseClaims(token); ok {
			res := Result{Data: map[string]any{}}
			c.describe(&res, time.Unix(1, 0))
			require.NotContains(t, res.Detail, "\x1b")
		}
	})
}

func TestSizesAndTimesForPeople(t *testing.T) {
	assert.Equal(t, "64 MiB", size(64<<20))
	assert.Equal(t, "1.5 KiB", size(1536))
	assert.Equal(t, "7 B", size(7))
	assert.Equal(t, "13 days", rough(13*24*time.Hour+time.Hour))
	assert.Equal(t, "25h0m", rough(25*time.Hour))
	assert.Equal(t, "59s", rough(-59*time.Second))
	assert.Equal(t, "a b…", clip("a\nbcd", 3))
}
