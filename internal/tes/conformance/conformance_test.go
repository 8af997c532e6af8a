package conformance

import (
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/deckhand/deckhand/internal/tes"
)

// schemas are the types of package tes and what the specification calls them.
var schemas = map[string]reflect.Type{
	"tesTask":          reflect.TypeFor[tes.Task](),
	"tesInput":         reflect.TypeFor[tes.Input](),
	"tesOutput":        reflect.TypeFor[tes.Output](),
	"tesResources":     reflect.TypeFor[tes.Resources](),
	"tesExecutor":      reflect.TypeFor[tes.Executor](),
	"tesTaskLog":       reflect.TypeFor[tes.TaskLog](),
	"tesExecutorLog":   reflect.TypeFor[tes.ExecutorLog](),
	"tesOutputFileLog": reflect.TypeFor[tes.OutputFileLog](),
}

// Every field of the specification is a field here, of its type, and no other is.
func TestFields(t *testing.T) {
	for name, typ := range schemas {
		fields, err := properties(name)
		if err != nil {
			t.Fatal(err)
		}
		for i := range typ.NumField() {
			tag, options, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			want, ok := fields[tag]
			if !ok {
				t.Errorf("%s: the specification has no field %s", name, tag)
				continue
			}
			delete(fields, tag)
			if want.Required == strings.Contains(options, "omit") {
				t.Errorf("%s.%s: required is %t, and its options are %q", name, tag, want.Required, options)
			}
			if why := differs(want, typ.Field(i).Type, options); why != "" {
				t.Errorf("%s.%s: %s", name, tag, why)
			}
		}
		for missing := range fields {
			t.Errorf("%s.%s is missing", name, missing)
		}
	}
}

// differs says how a Go type does not hold what the specification allows.
func differs(want property, got reflect.Type, options string) string {
	if got.Kind() == reflect.Pointer {
		got = got.Elem()
	}
	kinds := map[string][]reflect.Kind{
		"string": {reflect.String}, "boolean": {reflect.Bool}, "array": {reflect.Slice}, "object": {reflect.Struct, reflect.Map},
		"integer": {reflect.Int, reflect.Float64}, // more than integers, for the fractional cores that clients send
		"number":  {reflect.Float64},
	}
	switch {
	case want.Type == "string" && (got == reflect.TypeFor[time.Time]() || got.Kind() == reflect.Int64 && options == "string"):
		return ""
	case !slices.Contains(kinds[want.Type], got.Kind()):
		return "the specification says " + want.Type + ", it is " + got.String()
	case want.Schema != "" && schemas[want.Schema] != got:
		return "the specification says " + want.Schema + ", it is " + got.String()
	case want.Of != nil:
		return differs(*want.Of, got.Elem(), "")
	}
	return ""
}

// The words of both enumerations are those of the specification.
func TestEnumerations(t *testing.T) {
	for schema, want := range map[string][]string{
		"tesTask": {
			string(tes.Unknown), string(tes.Queued), string(tes.Initializing), string(tes.Running), string(tes.Paused), string(tes.Complete),
			string(tes.ExecutorError), string(tes.SystemError), string(tes.Canceled), string(tes.Preempted), string(tes.Canceling),
		},
		"tesInput": {string(tes.File), string(tes.Directory)},
	} {
		fields, err := properties(schema)
		if err != nil {
			t.Fatal(err)
		}
		got := fields["state"].Enum
		if schema == "tesInput" {
			got = fields["type"].Enum
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: the specification has %q, here are %q", schema, got, want)
		}
	}
}

// property is a property of a schema.
type property struct {
	Name     string
	Required bool
	Type     string    // JSON's: object, array, string, number, integer, boolean
	Of       *property // of an array or a map, what it holds
	Schema   string    // the name of the schema of an object; empty for a map
	Enum     []string  // all values
}

// properties returns the properties of a schema of the specification, by name.
func properties(schema string) (map[string]property, error) {
	spec, err := load()
	if err != nil {
		return nil, err
	}
	ref := spec.Components.Schemas[schema]
	if ref == nil {
		return nil, fmt.Errorf("the specification has no schema %s", schema)
	}
	fields := map[string]property{}
	for name, p := range ref.Value.Properties {
		fields[name] = newProperty(name, p, ref.Value.Required)
	}
	return fields, nil
}

func newProperty(name string, ref *openapi3.SchemaRef, required []string) property {
	s := ref.Value
	f := property{Name: name, Type: (*s.Type)[0]}
	for _, r := range required {
		f.Required = f.Required || r == name
	}
	if len(s.Properties) > 0 {
		f.Schema = path.Base(ref.Ref)
	}
	for _, v := range s.Enum {
		f.Enum = append(f.Enum, fmt.Sprint(v))
	}
	items := s.Items
	if items == nil {
		items = s.AdditionalProperties.Schema
	}
	if items != nil {
		of := newProperty("", items, nil)
		f.Of = &of
	}
	return f
}

// good is an answer with everything in it.
const good = `{"id":"t","state":"COMPLETE","name":"n","description":"d","creation_time":"2026-01-02T03:04:05Z","volumes":["/v"],"tags":{"k":"null"},
	"inputs":[{"url":"u","path":"/i","type":"FILE"},{"content":"c","path":"/j","type":"FILE"}],
	"outputs":[{"url":"u","path":"/o*","path_prefix":"/","type":"DIRECTORY"}],
	"resources":{"cpu_cores":2,"ram_gb":1.5,"zones":["z"],"backend_parameters":{"p":"v"}},
	"executors":[{"image":"i","command":["c",""],"env":{"A":"b"}}],
	"logs":[{"start_time":"2026-01-02T03:04:05Z","end_time":"2026-01-02T03:04:06.5Z","metadata":{"host":"n"},"system_logs":["s"],
		"outputs":[{"url":"u","path":"/o/x","size_bytes":"12"}],
		"logs":[{"start_time":"2026-01-02T03:04:05Z","end_time":"2026-01-02T03:04:06Z","exit_code":3,"stdout":"o","stderr":"e"}]}]}`

func TestCheck(t *testing.T) {
	if err := Check([]byte(good)); err != nil {
		t.Errorf("what is right is refused: %v", err)
	}
	for _, change := range [][2]string{
		{`"COMPLETE"`, `"DONE"`}, {`"state":"COMPLETE",`, ``}, {`"id":"t",`, ``},
		{`"exit_code":3,`, ``}, {`"exit_code":3`, `"exit_code":"3"`}, {`"exit_code":3`, `"exit_code":3.5`}, {`"exit_code":3`, `"exitCode":3`},
		{`"size_bytes":"12"`, `"size_bytes":12`}, {`"size_bytes":"12"`, `"size_bytes":"many"`}, {`"size_bytes":"12"`, `"size_bytes":"-1"`},
		{`"/o/x"`, `"o/x"`}, {`"path":"/i","type":"FILE"`, `"path":"/i"`}, {`"type":"FILE"}]`, `"type":"file"}]`},
		{`"content":"c"`, `"content":"c","url":"u"`}, {`"content":"c"`, `"content":null`}, {`"path":"/j"`, `"path":"j"`},
		{`"host":"n"`, `"host":7`}, {`"k":"null"`, `"k":null`}, {`"A":"b"`, `"A":1`}, {`"system_logs":["s"]`, `"system_logs":"s"`},
		{`"outputs":[{"url":"u","path":"/o/x","size_bytes":"12"}],`, ``}, {`"zones":["z"]`, `"zones":"z"`},
		{`"cpu_cores":2`, `"cpu_cores":"2"`}, {`"image":"i",`, ``}, {`"command":["c",""]`, `"command":"c"`},
		{`"start_time":"2026-01-02T03:04:05Z","end_time":"2026-01-02T03:04:06Z"`, `"start_time":"2026-01-02T03:04:05Z","end_time":"2026-01-02T03:04:04Z"`},
		{`"start_time":"2026-01-02T03:04:05Z","end_time":"2026-01-02T03:04:06.5Z",`, ``}, {`"creation_time":"2026-01-02T03:04:05Z"`, `"creation_time":"2 January"`},
		{`"creation_time":"2026-01-02T03:04:05Z",`, ``}, {`"name":"n"`, `"name":"n","pid":1`}, {`"exit_code":3`, `"exit_code":3,"oom":true`},
		{`"executors":[{"image":"i","command":["c",""],"env":{"A":"b"}}]`, `"executors":[]`}, {good, `[]`}, {good, `{}`},
	} {
		text := strings.Replace(good, change[0], change[1], 1)
		if text == good {
			t.Fatalf("%s is not in the document", change[0])
		}
		if Check([]byte(text)) == nil {
			t.Errorf("%s in the place of %s passes", change[1], change[0])
		}
	}
}

func TestViews(t *testing.T) {
	// What a view leaves out is what the specification lists.
	type object = map[string]any
	task := func() object {
		return object{
			"id": "t", "state": "COMPLETE", "name": "n", "inputs": []any{object{"content": "c", "path": "/j"}},
			"logs": []any{object{"system_logs": []any{"s"}, "logs": []any{object{"exit_code": 0, "stdout": "o", "stderr": "e"}}}},
		}
	}
	for v, want := range map[view]object{
		minimal: {"id": "t", "state": "COMPLETE"},
		basic: {"id": "t", "state": "COMPLETE", "name": "n", "inputs": []any{object{"path": "/j"}},
			"logs": []any{object{"logs": []any{object{"exit_code": 0}}}}},
		full: task(),
	} {
		if got := show(task(), v); !reflect.DeepEqual(got, want) {
			t.Errorf("%s shows %v, want %v", v, got, want)
		}
	}
}
