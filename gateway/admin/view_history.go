package admin

import "fairlead/gateway/admin/history"

// What the page's charts and lists are made from.
type (
	Live   = history.Live
	Events = history.Events
)
