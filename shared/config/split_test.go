package config

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSplitKeepsWholeWords(t *testing.T) {
	inside, outside := Split([]string{"policy[0].routes", "policyx", "log.level", "log.format", "tiers.default.burst", "tiers"}, []string{"policy", "tiers", "log.level"})
	require.Equal(t, []string{"policy[0].routes", "log.level", "tiers.default.burst", "tiers"}, inside)
	require.Equal(t, []string{"policyx", "log.format"}, outside)
}
