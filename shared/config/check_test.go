package config_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"fairlead/shared/config"
)

func count(f func(*config.Check)) int {
	var c config.Check
	f(&c)
	return len(c.Problems)
}

func TestAddresses(t *testing.T) {
	for value, want := range map[string][3]bool{ // listen, listen with unix, dial
		"127.0.0.1:22": {true, true, true}, "[::1]:22": {true, true, true}, "git.internal:22": {true, true, true},
		":8443": {true, true, false}, "127.0.0.1:0": {true, true, false},
		"unix:/run/x.sock": {false, true, false}, "unix:x.sock": {}, "unix:": {},
		"": {}, "22": {}, "host": {}, "host:": {}, "host:ssh": {}, "host:65536": {}, "host:-1": {}, "::1:22": {}, "a b:22": {},
		"user@host:22": {}, "wss://host:22": {},
	} {
		assert.Equal(t, want[0], count(func(c *config.Check) { c.Listen("k", value, false) }) == 0, "listen %q", value)
		assert.Equal(t, want[1], count(func(c *config.Check) { c.Listen("k", value, true) }) == 0, "listen or unix %q", value)
		assert.Equal(t, want[2], count(func(c *config.Check) { c.Dial("k", value) }) == 0, "dial %q", value)
	}
}

func TestURLs(t *testing.T) {
	for value, want := range map[string]bool{
		"https://a": true, "http://a:1/b?c": true, "https://[::1]/": true,
		"": false, "a": false, "https://": false, "ftp://a": false, "https://:80": false, "https://a#b": false, "https://a b": false, "://": false,
	} {
		assert.Equal(t, want, count(func(c *config.Check) { c.URL("k", value, "http", "https") }) == 0, "%q", value)
	}
}

func TestLinkKeysFitTogether(t *testing.T) {
	assert.Zero(t, count(func(c *config.Check) { config.DefaultLink().Validate(c, "tunnel") }))
	l := config.DefaultLink()
	l.MaxWindow, l.Memory = l.Window/2, l.Window/4
	var c config.Check
	l.Validate(&c, "tunnel")
	assert.Equal(t, []config.Problem{
		{Key: "tunnel.max_window", Allowed: "allowed: at least window, which is 256KiB"},
		{Key: "tunnel.memory", Allowed: "allowed: at least max_window, which is 128KiB"}}, c.Problems)
}

func TestNames(t *testing.T) {
	for value, want := range map[string]bool{"git": true, "orders-db": true, "a.b_c": true, "0": true,
		"": false, "-a": false, "A": false, "a/b": false, "a\n": false, string(make([]byte, 64)): false} {
		assert.Equal(t, want, config.ValidName(value), "%q", value)
		assert.Equal(t, want, count(func(c *config.Check) { c.Name("k", value) }) == 0)
	}
}
