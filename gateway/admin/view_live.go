package admin

// Present is the figures of the present and of the last minutes, and who looks at them.
type Present struct {
	Live
	Role Role `json:"role" enum:"viewer,operator" doc:"the caller's"`
}
