package app

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"fairlead/gateway/store"
)

func TestTwinOf(t *testing.T) {
	self := store.Replica{ID: "gw/1", Name: "gw"}
	_, ok := twinOf(self, []store.Replica{self, {ID: "other/1", Name: "other"}})
	assert.False(t, ok)
	twin, ok := twinOf(self, []store.Replica{self, {ID: "gw/2", Name: "gw", Address: "10.0.0.2:8444"}})
	assert.True(t, ok)
	assert.Equal(t, "10.0.0.2:8444", twin.Address)
}
