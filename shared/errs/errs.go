// Package errs is fairlead's one vocabulary of failure: every error that leaves a package on its way to a person, a log,
// an HTTP answer, a RESET frame or a WebSocket close frame carries a Code of this package.
//
// A code is a number that fits a frame (u16) and reads as FL-<category letter><number>, such as FL-N101. Codes are errors
// themselves, so callers compare them with errors.Is and never match text:
//
//	if errors.Is(err, errs.TokenExpired) { … }
package errs

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Category says whose problem a failure is.
type Category string

// The categories of R2.1, in the order of their number ranges.
const (
	Network        Category = "network"        // 1xx: nothing answered, or the path broke
	Authentication Category = "authentication" // 2xx: a token or an identity was refused
	Configuration  Category = "configuration"  // 3xx: a file, key, value or environment is wrong
	Server         Category = "server"         // 4xx: the gateway or a backend said no
	Protocol       Category = "protocol"       // 5xx: a peer broke the rules of the link
	Unknown        Category = "unknown"        // 9xx: a fault of our own
)

// Code identifies one kind of failure; stable across versions.
type Code uint16

// String is the code as people see it, "FL-N101".
func (c Code) String() string { return fmt.Sprintf("FL-%c%03d", c.letter(), uint16(c)) }

// Error makes a Code usable as the target of errors.Is.
func (c Code) Error() string { return c.String() + ": " + c.Info().Title }

// Category is derived from the code's range; numbers outside every range are Unknown.
func (c Code) Category() Category {
	switch c / 100 {
	case 1:
		return Network
	case 2:
		return Authentication
	case 3:
		return Configuration
	case 4:
		return Server
	case 5:
		return Protocol
	}
	return Unknown
}

func (c Code) letter() byte {
	switch c.Category() {
	case Network:
		return 'N'
	case Authentication:
		return 'A'
	case Configuration:
		return 'C'
	case Server:
		return 'S'
	case Protocol:
		return 'P'
	}
	return 'U'
}

// Info returns what is known about the code; for a code this build does not know (a newer peer's), that of Internal
// with a neutral title.
func (c Code) Info() Info {
	if info, ok := table[c]; ok {
		return info
	}
	return Info{Title: "failed for a reason that this version does not know", Advice: "Compare the versions of sidecar and gateway.",
		HTTP: 500, Close: CloseInternal, Exit: ExitFailed}
}

// Error is a failure with its code, a sentence that says what failed and on what target, and its cause.
type Error struct {
	Code       Code
	Message    string        // what failed, on what target; no secrets
	RetryAfter time.Duration // when trying again may help; 0: not said
	Quota      *Quota        // the limit that was reached; nil: none was
	Err        error         // the cause, or nil
}

// Quota says where somebody stands with a limit.
type Quota struct {
	Limit     uint32 `json:"limit"`     // how many there may be
	Remaining uint32 `json:"remaining"` // how many are left now
	ResetMS   uint32 `json:"reset_ms"`  // until all of Limit are left again, in milliseconds; 0: when some are given back
}

// New makes an Error without a cause.
func New(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Wrap makes an Error with a cause.
func Wrap(code Code, cause error, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Err: cause}
}

// After sets when trying again may help, and returns e.
func (e *Error) After(d time.Duration) *Error {
	e.RetryAfter = d
	return e
}

// Within sets the limit that was reached, and returns e. reset is how long until all of limit are left again; 0: that
// takes somebody to give some back.
func (e *Error) Within(limit, remaining int, reset time.Duration) *Error {
	bound := func(n int64) uint32 { return uint32(min(max(n, 0), math.MaxUint32)) }
	e.Quota = &Quota{Limit: bound(int64(limit)), Remaining: bound(int64(remaining)), ResetMS: bound(reset.Milliseconds())}
	return e
}

// Error is one line: code, message, cause.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Code.String() + ": " + e.Message
	}
	return e.Code.String() + ": " + e.Message + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is this error's Code, or an Error of the same code.
func (e *Error) Is(target error) bool {
	switch t := target.(type) {
	case Code:
		return t == e.Code
	case *Error:
		return t.Code == e.Code
	}
	return false
}

// Category is the code's category.
func (e *Error) Category() Category { return e.Code.Category() }

// Advice says what to do next.
func (e *Error) Advice() string { return e.Code.Info().Advice }

// Text is the message with its cause but without the code: what goes into answers that carry the code separately.
func (e *Error) Text() string {
	if e.Err == nil {
		return e.Message
	}
	return e.Message + ": " + e.Err.Error()
}

// From returns the *Error in err's chain, or wraps err as Internal; nil for nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	var c Code
	if errors.As(err, &c) {
		return &Error{Code: c, Message: c.Info().Title}
	}
	return Wrap(Internal, err, "unexpected error")
}

// Outward is what a stranger may be told of err: of a fault of our own no more than that, because such an error speaks of
// files and code, and may carry a stack.
func Outward(err error) error {
	switch e := From(err); {
	case e == nil:
		return nil
	case e.Code == Internal, e.Code == Panicked, e.Code == KeyUnreadable, e.Code == AuditFailed:
		return New(e.Code, "%s", e.Code.Info().Title).After(e.RetryAfter)
	}
	return err
}

// CodeOf returns the code of err; 0 for nil, Internal when it carries none.
func CodeOf(err error) Code {
	if err == nil {
		return 0
	}
	return From(err).Code
}

// ParseCode reads a code as people see it, "FL-N101". The letter must fit the number.
func ParseCode(s string) (Code, bool) {
	if len(s) != len("FL-N101") {
		return 0, false
	}
	n, err := strconv.ParseUint(s[4:], 10, 16)
	if c := Code(n); err == nil && c.String() == s {
		return c, true
	}
	return 0, false
}

// FromCloseFrame is the error that a peer's close frame tells: by the code its reason begins with, as CloseFrame writes
// it, else by the close code. A normal end is Canceled.
func FromCloseFrame(code int, reason string) *Error {
	if word, rest, _ := strings.Cut(reason, " "); word != "" {
		if c, ok := ParseCode(word); ok {
			return New(c, "the peer closed the connection: %s", rest)
		}
	}
	byClose := map[int]Code{CloseNormal: Canceled, CloseProtocol: ProtocolViolation, CloseTooBig: MessageTooBig, ClosePolicy: RouteForbidden,
		CloseExpired: TokenExpired, CloseInvalid: TokenInvalid, CloseUnknown: TunnelUnknown, CloseDisplaced: Displaced, CloseLimit: StreamLimit}
	c, ok := byClose[code]
	if !ok {
		c = LaneLost
	}
	return New(c, "the peer closed the connection with code %d (%q)", code, reason)
}
