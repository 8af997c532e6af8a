// Package conformance holds documents against the OpenAPI file of TES 1.1, for
// tests. The file is that of the tag v1.1 of ga4gh/task-execution-schemas
// (Apache License 2.0), unchanged.
package conformance

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/deckhand/deckhand/internal/tes"
)

//go:embed tes-1.1.0.openapi.yaml
var specification []byte

// serviceInfo stands for the one file that the specification refers to. It
// describes the server, not tasks.
const serviceInfo = `{"openapi":"3.0.1","info":{"title":"","version":""},"paths":{},
	"components":{"schemas":{"Service":{"type":"object"},"ServiceType":{"type":"object"}}}}`

// load reads the specification and closes its objects: a field that it does not
// know is a misspelt one, although it would allow them.
var load = sync.OnceValues(func() (*openapi3.T, error) {
	loader := openapi3.NewLoader()
	loader.IsExternalRefsAllowed = true
	loader.ReadFromURIFunc = func(_ *openapi3.Loader, at *url.URL) ([]byte, error) {
		if path.Base(at.Path) != "service-info.yaml" {
			return nil, fmt.Errorf("the specification refers to %s", at)
		}
		return []byte(serviceInfo), nil
	}
	spec, err := loader.LoadFromData(specification)
	if err != nil {
		return nil, fmt.Errorf("cannot read the specification: %w", err)
	}
	no := false
	for _, s := range spec.Components.Schemas {
		if len(s.Value.Properties) > 0 {
			s.Value.AdditionalProperties.Has = &no
		}
	}
	return spec, nil
})

// view is how much of a task a server tells.
type view string

const (
	minimal view = "MINIMAL"
	basic   view = "BASIC"
	full    view = "FULL"
)

// Check says everything that is wrong with text as the answer of GetTask in the
// view FULL, and with what follows from it in the view BASIC; the schema of the
// view MINIMAL is that of the whole task, which id and state alone never meet.
// Beside the schema it holds the document to what the specification says in words.
func Check(text []byte) error {
	spec, err := load()
	if err != nil {
		return err
	}
	answer := spec.Paths.Value("/tasks/{id}").Get.Responses.Status(200).Value.Content.Get("application/json").Schema.Value
	errs := []error{}
	for _, v := range []view{full, basic} {
		var task map[string]any
		if err := json.Unmarshal(text, &task); err != nil {
			return fmt.Errorf("it is no JSON object: %w", err)
		}
		err := answer.VisitJSON(show(task, v), openapi3.VisitAsResponse(), openapi3.MultiErrors(), openapi3.EnableFormatValidation())
		if err != nil {
			errs = append(errs, fmt.Errorf("in the view %s: %w", v, err))
		}
		if least := show(task, minimal); len(least) != 2 || least["id"] == "" || least["state"] == "" {
			errs = append(errs, fmt.Errorf("in the view %s: id or state is missing", minimal))
		}
	}
	var task tes.Task
	if err := json.Unmarshal(text, &task); err != nil {
		return errors.Join(append(errs, err)...)
	}
	return errors.Join(append(errs, words(text, &task)...)...)
}

// show returns a task, decoded from JSON, as a view shows it.
func show(task map[string]any, v view) map[string]any {
	shown := map[string]any{}
	for name, value := range task {
		if v != minimal || name == "id" || name == "state" {
			shown[name] = value
		}
	}
	if v != basic {
		return shown
	}
	without(shown["inputs"], "content")
	without(shown["logs"], "system_logs")
	for _, log := range list(shown["logs"]) {
		without(log["logs"], "stdout", "stderr")
	}
	return shown
}

func without(objects any, names ...string) {
	for _, o := range list(objects) {
		for _, name := range names {
			delete(o, name)
		}
	}
}

func list(v any) (objects []map[string]any) {
	values, _ := v.([]any) // nil when it is not there
	for _, v := range values {
		if o, ok := v.(map[string]any); ok {
			objects = append(objects, o)
		}
	}
	return objects
}

// words checks what the specification says in descriptions alone.
func words(text []byte, task *tes.Task) (errs []error) {
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if strings.Contains(string(text), "null") {
		var tree any
		if err := json.Unmarshal(text, &tree); err != nil || hasNull(tree) {
			wrong("it holds null, which the schema knows nowhere")
		}
	}
	for i, in := range task.Inputs {
		if in.Type == "" || !path.IsAbs(in.Path) || in.Content != nil && *in.Content != "" && in.URL != "" {
			wrong("inputs[%d]: the server fills in the type, the path is absolute, and content stands alone: %+v", i, in)
		}
	}
	for i, out := range task.Outputs {
		if out.Type == "" || !path.IsAbs(out.Path) {
			wrong("outputs[%d]: the server fills in the type, and the path is absolute: %+v", i, out)
		}
	}
	var raw struct {
		Created string `json:"creation_time"`
		Logs    []struct {
			Outputs []struct {
				Path string
				Size string `json:"size_bytes"`
			}
		}
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		wrong("%w", err)
	}
	if _, err := time.Parse(time.RFC3339, raw.Created); err != nil {
		wrong("creation_time: %w", err)
	}
	for i, log := range task.Logs {
		span := fmt.Sprintf("logs[%d]", i)
		inOrder(wrong, span, log.StartTime, log.EndTime)
		if len(log.Logs) > len(task.Executors) {
			wrong("%s: %d executors of %d have logs", span, len(log.Logs), len(task.Executors))
		}
		for j, e := range log.Logs {
			inOrder(wrong, fmt.Sprintf("%s.logs[%d]", span, j), e.StartTime, e.EndTime)
		}
		for j, out := range raw.Logs[i].Outputs {
			if _, err := strconv.ParseUint(out.Size, 10, 63); err != nil || !path.IsAbs(out.Path) {
				wrong("%s.outputs[%d] is %+v", span, j, out)
			}
		}
	}
	return errs
}

func inOrder(wrong func(string, ...any), what string, start, end time.Time) {
	if start.IsZero() || end.Before(start) {
		wrong("%s: it lasts from %s to %s", what, start, end)
	}
}

func hasNull(tree any) bool {
	switch v := tree.(type) {
	case nil:
		return true
	case map[string]any:
		for _, value := range v {
			if hasNull(value) {
				return true
			}
		}
	case []any:
		for _, value := range v {
			if hasNull(value) {
				return true
			}
		}
	}
	return false
}
