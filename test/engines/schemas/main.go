// Command schemas holds an example of docs/engines against the types that the
// engine's own Go packages have for it: every name must be one of theirs, and
// every value of its type. It is a module of its own, so that these packages are
// no dependencies of deckhand.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/batch"
	"github.com/aws/aws-sdk-go-v2/service/batch/types"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	nomad "github.com/hashicorp/nomad/api"
	batchv1 "k8s.io/api/batch/v1"
	"sigs.k8s.io/yaml"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: schemas kubernetes.yaml|nomad.hcl|aws-batch.json")
		os.Exit(2)
	}
	text, err := os.ReadFile(os.Args[1])
	if err == nil {
		err = check(filepath.Base(os.Args[1]), text)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func check(name string, text []byte) error {
	switch name {
	case "kubernetes.yaml":
		if err := yaml.UnmarshalStrict(text, new(batchv1.Job)); err != nil {
			return err
		}
		sent, err := yaml.YAMLToJSON(text) // for a comparison with what kubectl sends
		if err == nil {
			_, err = os.Stdout.Write(sent)
		}
		return err
	case "nomad.hcl":
		return checkNomad(name, text)
	case "aws-batch.json":
		return checkAWS(text)
	}
	return fmt.Errorf("no schema for %s", name)
}

// checkAWS takes the input of RegisterJobDefinition, whose Go names differ from
// those of the service by the case of their first letter.
func checkAWS(text []byte) error {
	var input batch.RegisterJobDefinitionInput
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&input); err != nil {
		return err
	}
	if !slices.Contains(input.Type.Values(), input.Type) {
		return fmt.Errorf("type %q", input.Type)
	}
	for _, p := range input.PlatformCapabilities {
		if !slices.Contains(p.Values(), p) {
			return fmt.Errorf("platformCapabilities %q", p)
		}
	}
	for _, e := range input.RetryStrategy.EvaluateOnExit {
		if !slices.Contains(e.Action.Values(), e.Action) {
			return fmt.Errorf("action %q", e.Action)
		}
	}
	for _, r := range input.ContainerProperties.ResourceRequirements {
		if !slices.Contains(types.ResourceType("").Values(), r.Type) {
			return fmt.Errorf("resource %q", r.Type)
		}
	}
	return nil
}

func checkNomad(name string, text []byte) error {
	file, diags := hclsyntax.ParseConfig(text, name, hcl.InitialPos)
	if diags.HasErrors() {
		return diags
	}
	body := file.Body.(*hclsyntax.Body)
	if len(body.Attributes) != 0 || len(body.Blocks) != 1 || body.Blocks[0].Type != "job" || len(body.Blocks[0].Labels) != 1 {
		return fmt.Errorf("%s is not one job", name)
	}
	return checkBody(body.Blocks[0].Body, reflect.TypeFor[nomad.Job]())
}

// checkBody holds a body of HCL against the type that Nomad decodes it into.
func checkBody(body *hclsyntax.Body, t reflect.Type) error {
	if t.Kind() == reflect.Map { // the driver's own
		return nil
	}
	fields := map[string]reflect.Type{}
	for i := range t.NumField() {
		name, kind, _ := strings.Cut(t.Field(i).Tag.Get("hcl"), ",")
		fields[name+" "+kind] = t.Field(i).Type
	}
	for _, a := range body.Attributes {
		field, known := fields[a.Name+" optional"]
		if !known {
			return fmt.Errorf("%s: %s has no %s", a.SrcRange, t.Name(), a.Name)
		}
		value := reflect.New(field)
		if field == reflect.TypeFor[time.Duration]() || field == reflect.TypeFor[*time.Duration]() {
			var text string
			if diags := gohcl.DecodeExpression(a.Expr, nil, &text); diags.HasErrors() {
				return diags
			}
			if _, err := time.ParseDuration(text); err != nil {
				return fmt.Errorf("%s: %w", a.SrcRange, err)
			}
		} else if diags := gohcl.DecodeExpression(a.Expr, nil, value.Interface()); diags.HasErrors() {
			return diags
		}
	}
	for _, b := range body.Blocks {
		field, known := fields[b.Type+" block"]
		if !known {
			return fmt.Errorf("%s: %s has no block %s", b.DefRange(), t.Name(), b.Type)
		}
		for field.Kind() == reflect.Pointer || field.Kind() == reflect.Slice {
			field = field.Elem()
		}
		if err := checkBody(b.Body, field); err != nil {
			return err
		}
	}
	return nil
}
