// Command openapi writes the schema of Kubernetes' batch/v1 as an API server gives it to
// kubectl: OpenAPI version 2 in protobuf. It is made of the version 3 that an API server has
// published, which k8s.io/client-go brings for tests.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"
	"k8s.io/client-go/openapi/openapitest"
)

func main() {
	b, err := schema()
	if err == nil {
		_, err = os.Stdout.Write(b)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func schema() ([]byte, error) {
	paths, err := openapitest.NewEmbeddedFileClient().Paths()
	if err != nil {
		return nil, err
	}
	published, err := paths["apis/batch/v1"].Schema("application/json")
	if err != nil {
		return nil, err
	}
	var v3 struct {
		Components struct{ Schemas map[string]any }
	}
	if err := json.Unmarshal([]byte(strings.ReplaceAll(string(published), "#/components/schemas/", "#/definitions/")), &v3); err != nil {
		return nil, err
	}
	// Demanded by mistake until Kubernetes 1.27.7, though a rule has this or exit codes.
	delete(v3.Components.Schemas["io.k8s.api.batch.v1.PodFailurePolicyRule"].(map[string]any), "required")
	v2, err := json.Marshal(map[string]any{
		"swagger": "2.0", "info": map[string]any{"title": "Kubernetes", "version": "v1"}, "paths": map[string]any{}, "definitions": inV2(v3.Components.Schemas),
	})
	if err != nil {
		return nil, err
	}
	document, err := openapi_v2.ParseDocument(v2)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(document)
}

// inV2 puts what version 2 lacks into its words: a reference beside other fields, which is a choice
// of one there, and one of two types, which is a string to an API server.
func inV2(v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = inV2(v[i])
		}
	case map[string]any:
		if all, ok := v["allOf"].([]any); ok && len(all) == 1 {
			return all[0]
		}
		if _, ok := v["oneOf"]; ok {
			delete(v, "oneOf")
			v["type"] = "string"
		}
		for name := range v {
			v[name] = inV2(v[name])
		}
	}
	return v
}
