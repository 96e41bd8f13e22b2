package logging

// Names of the fields that log lines carry. A field keeps its name in both programs, so that lines of many instances can
// be joined.
const (
	FieldComponent = "component" // the package or part that speaks, such as "tunnel"
	FieldTunnel    = "tunnel"    // tunnel id
	FieldStream    = "stream"    // stream id inside its tunnel
	FieldRoute     = "route"     // route name
	FieldBackend   = "backend"   // backend name
	FieldTenant    = "tenant"    // tenant that a token speaks for
	FieldSubject   = "subject"   // the token's subject
	FieldPeer      = "peer"      // address of the other side
	FieldEndpoint  = "endpoint"  // gateway URL that a sidecar dials
	FieldAttempt   = "attempt"   // number of the attempt, from 1
	FieldDelayMS   = "delay_ms"  // wait before the next attempt, in milliseconds
	FieldCode      = "code"      // code of shared/errs, such as "FL-N101"
	FieldCategory  = "category"  // category of the code
	FieldAdvice    = "advice"    // what to do about the error
	FieldReason    = "reason"    // reason code of an event, such as "signal_term"
	FieldState     = "state"     // state of a state machine
	FieldError     = "error"     // text of an error
	FieldStack     = "stack"     // goroutine stack of a panic
	FieldInstance  = "instance"  // which process speaks
	FieldVersion   = "version"   // version of the program
	FieldTrace     = "trace"     // trace id
	FieldStep      = "step"      // step of a start or stop
)
