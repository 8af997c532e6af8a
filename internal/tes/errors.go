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

// FieldErrors is everything that is wrong with a document, in its order.
type FieldErrors []FieldError

func (e FieldErrors) Error() string {
	if len(e) == 1 {
		return "the task document is not valid: " + e[0].Error()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "the task document is not valid (%d problems):", len(e))
	for _, f := range e {
		b.WriteString("\n  " + f.Error())
	}
	return b.String()
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
