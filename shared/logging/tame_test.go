package logging

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"fairlead/shared/testbed"
)

func TestAFloodIsLoggedInFewLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &testbed.LogBuffer{}
		tame, to := NewTamed(), slog.New(slog.NewTextHandler(log, nil))
		count := func(s string) int { return strings.Count(log.String(), s) }
		for range 1000 {
			tame.Say(to, slog.LevelWarn, "a", "refused", "code", "a")
			tame.Say(to, slog.LevelDebug, "a", "not looked at")
		}
		tame.Say(to, slog.LevelWarn, "b", "refused", "code", "b")
		require.Equal(t, tameLines, count("code=a"))
		require.Equal(t, 1, count("code=b"), "other causes are told")
		<-time.After(tameWindow)
		synctest.Wait()
		require.Equal(t, 1, count("msg=refused and_more=980 code=a"))
		for range tameLines + 5 {
			tame.Say(to, slog.LevelWarn, "a", "refused", "code", "a")
		}
		<-time.After(tameWindow)
		synctest.Wait()
		require.Equal(t, 1, count("and_more=5"))
		<-time.After(tameWindow)
		synctest.Wait()
		require.Empty(t, tame.causes, "quiet causes are forgotten")
		require.Equal(t, 2*tameLines+2, count("code=a"))

		for range tameLines + 3 {
			tame.Say(to, slog.LevelWarn, "a", "refused", "code", "a")
		}
		tame.Flush()
		require.Equal(t, 1, count("and_more=3"), "nothing is lost at the end")
		tame.Say(to, slog.LevelWarn, "a", "refused", "code", "last")
		require.Equal(t, 1, count("code=last"))
	})
}
