package main

import (
	"encoding/json"
	"slices"

	"github.com/deckhand/deckhand/machine"
)

// priorities of records, the most urgent first, by the names that syslog has for them.
var priorities = []string{"err", "warning", "info", "debug"}

// priorityOf is how urgent a record is: a failure, what stopped or disturbed an attempt,
// a step on its way, and each thing that it made.
func priorityOf(r machine.Record) string {
	switch r.Kind {
	case machine.KindResume:
		return "warning"
	case machine.KindTransition:
		switch {
		case r.Event == machine.StepFailed, r.Event == machine.ExecutorFailed, r.To == machine.SystemError:
			return "err"
		case r.Event == machine.CanceledByUser, r.Event == machine.InterruptedByUs, r.To == machine.Canceled, r.To == machine.Interrupted:
			return "warning"
		}
		return "info"
	}
	var fact struct {
		What string `json:"what"`
	}
	if json.Unmarshal(r.Detail, &fact) == nil && fact.What == machine.WhatWarning {
		return "warning"
	}
	return "debug"
}

// asUrgent says whether a record is at least that urgent; every one is as urgent as
// nothing.
func asUrgent(r machine.Record, priority string) bool {
	return priority == "" || slices.Index(priorities, priorityOf(r)) <= slices.Index(priorities, priority)
}
