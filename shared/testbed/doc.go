// Package testbed starts the real things that fairlead is tested against: OpenSSH's server, a Redis server, nginx and
// HAProxy as ingress, tinyproxy, an issuer of tokens, a certificate authority; and, in its package fault, a TCP proxy that misbehaves on demand.
//
// Only tests and bench import it. Everything returns errors, so that it also serves a command (the demo); the functions
// of tb.go wrap the same things for tests and clean up after them.
package testbed
