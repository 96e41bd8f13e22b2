//go:build race

package link

// raced: the race detector lets pools forget at random.
const raced = true
