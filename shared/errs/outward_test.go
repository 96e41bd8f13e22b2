package errs

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestStrangersAreNotToldOfFilesAndCode(t *testing.T) {
	for _, c := range []Code{Internal, Panicked, KeyUnreadable, AuditFailed} {
		err := Outward(Wrap(c, errors.New("open /etc/key: goroutine 1"), "the key_file /etc/key").After(time.Second))
		assert.ErrorIs(t, err, c)
		assert.NotContains(t, err.Error(), "/etc")
		assert.NotContains(t, err.Error(), "goroutine")
		assert.Equal(t, time.Second, From(err).RetryAfter)
	}
	assert.NotContains(t, Outward(errors.New("open /etc/key")).Error(), "/etc")
	limit := New(StreamLimit, "too many").Within(3, 0, 0)
	assert.Same(t, limit, Outward(limit))
	assert.NoError(t, Outward(nil))
}
