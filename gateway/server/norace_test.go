//go:build !race

package server_test

// slowdown is how many times slower everything is with the race detector, roughly.
const slowdown = 1
