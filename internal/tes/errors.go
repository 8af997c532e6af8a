package tes

import (
	"fmt"
	"strings"
)

// FieldError is what is wrong with one field of a document.
type FieldError struct {
	Field   string // such as executors[0].image
	Problem string // what must hold and, where it is not plain, what to do
}

func (e FieldError) Error() string { return e.Field + ": " + e.Problem }

// FieldErrors is everything that is wrong with a document, in its order; as
// text, one line each.
type FieldErrors []FieldError

func (e FieldErrors) Error() string {
	lines := make([]string, len(e))
	for i, f := range e {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap makes each FieldError known to errors.As.
func (e FieldErrors) Unwrap() []error {
	errs := make([]error, len(e))
	for i, f := range e {
		errs[i] = f
	}
	return errs
}

func (e *FieldErrors) add(field, format string, args ...any) {
	*e = append(*e, FieldError{field, fmt.Sprintf(format, args...)})
}
