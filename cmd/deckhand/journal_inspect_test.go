package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/deckhand/deckhand/machine"
)

// A warning is a sentence, and is not cut where other details are left out.
func TestInspectTellsWarnings(t *testing.T) {
	said := strings.Repeat("it is still there; ", 20)
	detail, err := json.Marshal(map[string]string{"step": "Scrub", "what": machine.WhatWarning, "name": "1", "message": said})
	if err != nil {
		t.Fatal(err)
	}
	if line := recordLine(machine.Record{Task: "t", Kind: machine.KindDone, Detail: detail}); !strings.HasSuffix(line, "warning: "+said) {
		t.Errorf("the line is %q", line)
	}
}
