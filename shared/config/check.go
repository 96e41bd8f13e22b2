package config

import (
	"fmt"
	"net"
	"net/url"
	"path"
	"strconv"
	"strings"
)

// Check gathers the problems that a Validate method finds. The zero value is ready.
type Check struct{ Problems []Problem }

// Refuse adds a problem about key; the loader adds its value and source. The text says what is allowed, or what is wrong.
func (c *Check) Refuse(key, format string, args ...any) {
	c.Problems = append(c.Problems, Problem{Key: key, Allowed: fmt.Sprintf(format, args...)})
}

// Required refuses an empty string.
func (c *Check) Required(key, value string) bool {
	if value == "" {
		c.Refuse(key, "required")
	}
	return value != ""
}

// Name refuses what does not follow NameRule.
func (c *Check) Name(key, value string) {
	if !ValidName(value) {
		c.Refuse(key, "allowed: a name such as git or orders-db: %s", NameRule)
	}
}

// Listen refuses what is no address to listen on: host:port (the host may be empty, port 0 takes any), or, if unix is
// set, unix: and an absolute path.
func (c *Check) Listen(key, value string, unix bool) {
	file, isUnix := strings.CutPrefix(value, "unix:")
	switch {
	case unix && isUnix && path.IsAbs(file):
	case validHostPort(value, true):
	case unix:
		c.Refuse(key, "allowed: host:port or unix:/absolute/path")
	default:
		c.Refuse(key, "allowed: host:port")
	}
}

// Dial refuses what is no address to connect to: host:port, both of them.
func (c *Check) Dial(key, value string) {
	if !validHostPort(value, false) {
		c.Refuse(key, "allowed: host:port")
	}
}

func validHostPort(s string, listen bool) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil || strings.ContainsAny(host, " /@") {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && (listen || (host != "" && n > 0))
}

// URL refuses what is no absolute URL with a host and one of the schemes, or has a fragment; it returns the URL or nil.
func (c *Check) URL(key, value string, schemes ...string) *url.URL {
	u, err := url.Parse(value)
	if err == nil && u.Hostname() != "" && u.Fragment == "" {
		for _, s := range schemes {
			if u.Scheme == s {
				return u
			}
		}
	}
	c.Refuse(key, "allowed: a URL that begins with %s://", strings.Join(schemes, ":// or "))
	return nil
}
