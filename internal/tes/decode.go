package tes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxBytes is the size of the largest document that Decode reads.
const MaxBytes = 64 << 20

// Decode reads one task document. It takes what real clients send: field names
// in snake_case or in the camelCase of protojson, null for what is absent,
// numbers as strings, fields that TES does not know. The fields that only a
// server sets (state, logs, creation_time) are dropped; id is kept.
//
// What is not JSON is refused with its line and column; values of the wrong
// type come back as FieldErrors, all at once.
func Decode(r io.Reader) (*Task, error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxBytes+1))
	if err != nil {
		return nil, err
	}
	if len(text) > MaxBytes {
		return nil, fmt.Errorf("it is longer than %d MiB; give large inputs by url", MaxBytes>>20)
	}
	tree, err := parse(text)
	if err != nil {
		return nil, err
	}
	fields, ok := tree.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("it must be a JSON object, not %s", nameOf(tree))
	}
	for _, name := range []string{"state", "logs", "creation_time"} {
		delete(fields, name)
		delete(fields, camelCase(name))
	}
	var t Task
	var d decoder
	d.object("", reflect.ValueOf(&t).Elem(), fields)
	if len(d.errs) > 0 {
		return nil, d.errs
	}
	return &t, nil
}

// parse reads text as exactly one JSON value; its numbers keep their spelling.
func parse(text []byte) (any, error) {
	if i := invalidUTF8(text); i >= 0 {
		return nil, syntaxError(text, i, "a byte that is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var tree any
	err := dec.Decode(&tree)
	var syntax *json.SyntaxError
	switch {
	case errors.Is(err, io.EOF):
		return nil, errors.New("it is empty")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, syntaxError(text, len(text), "the document ends too soon")
	case errors.As(err, &syntax):
		return nil, syntaxError(text, int(syntax.Offset)-1, syntax.Error())
	case err != nil:
		return nil, err
	}
	end := int(dec.InputOffset())
	if more := bytes.TrimLeft(text[end:], " \t\r\n"); len(more) > 0 {
		return nil, syntaxError(text, len(text)-len(more), "something follows the end of the document; give one task only")
	}
	return tree, nil
}

// invalidUTF8 returns the offset of the first byte that is not UTF-8, or -1.
// The JSON decoder would replace it, and so change a path or an argument.
func invalidUTF8(text []byte) int {
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRune(text[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}

// syntaxError says where in text the byte at offset is; columns count characters.
func syntaxError(text []byte, offset int, problem string) error {
	before := text[:min(max(offset, 0), len(text))]
	line := bytes.Count(before, []byte("\n")) + 1
	column := utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:]) + 1
	return fmt.Errorf("line %d, column %d: %s", line, column, problem)
}

// decoder fills Go values from a JSON tree, following their types, and collects
// what does not fit.
type decoder struct{ errs FieldErrors }

// value sets dst from src; field names the place in the document. Null leaves
// dst as it is.
func (d *decoder) value(field string, dst reflect.Value, src any) {
	if src == nil {
		return
	}
	switch dst.Kind() {
	case reflect.Pointer:
		dst.Set(reflect.New(dst.Type().Elem()))
		d.value(field, dst.Elem(), src)
	case reflect.Struct:
		if fields, ok := src.(map[string]any); ok {
			d.object(field, dst, fields)
			return
		}
		d.mismatch(field, "an object", src)
	case reflect.Map:
		d.stringMap(field, dst, src)
	case reflect.Slice:
		d.list(field, dst, src)
	case reflect.String:
		if s, ok := src.(string); ok {
			dst.SetString(s)
			return
		}
		d.mismatch(field, "a string", src)
	case reflect.Bool:
		if b, ok := src.(bool); ok {
			dst.SetBool(b)
			return
		}
		d.mismatch(field, "true or false", src)
	case reflect.Float64:
		d.number(field, dst, src)
	default:
		panic("tes: no rule to decode " + dst.Type().String())
	}
}

// object fills a struct. A field goes by its JSON name in snake_case or in camelCase.
func (d *decoder) object(field string, dst reflect.Value, src map[string]any) {
	for i := range dst.NumField() {
		name, _, _ := strings.Cut(dst.Type().Field(i).Tag.Get("json"), ",")
		value := src[name]
		if camel := camelCase(name); camel != name && src[camel] != nil {
			if value != nil {
				d.errs.add(join(field, name), "is given twice, as %s and as %s; keep one", name, camel)
				continue
			}
			value = src[camel]
		}
		d.value(join(field, name), dst.Field(i), value)
	}
}

// stringMap fills a map of strings; its keys belong to the client and stay as
// they are. An empty one is as good as none.
func (d *decoder) stringMap(field string, dst reflect.Value, src any) {
	values, ok := src.(map[string]any)
	if !ok {
		d.mismatch(field, "an object", src)
		return
	}
	m := map[string]string{}
	for _, key := range sortedKeys(values) {
		var value string
		d.value(join(field, key), reflect.ValueOf(&value).Elem(), values[key])
		if values[key] != nil {
			m[key] = value
		}
	}
	if len(m) > 0 {
		dst.Set(reflect.ValueOf(m))
	}
}

// list fills a slice. Null elements are left out, except among the arguments of
// a command, where every argument after it would move.
func (d *decoder) list(field string, dst reflect.Value, src any) {
	values, ok := src.([]any)
	if _, bare := src.(string); bare && dst.Type() == reflect.TypeFor[Zones]() {
		values, ok = []any{src}, true
	}
	if !ok {
		d.mismatch(field, "a list", src)
		return
	}
	for i, v := range values {
		at := fmt.Sprintf("%s[%d]", field, i)
		if v == nil {
			if dst.Type() == reflect.TypeFor[Arguments]() {
				d.mismatch(at, "a string", v)
			}
			continue
		}
		element := reflect.New(dst.Type().Elem()).Elem()
		d.value(at, element, v)
		dst.Set(reflect.Append(dst, element))
	}
}

func (d *decoder) number(field string, dst reflect.Value, src any) {
	var text string
	switch v := src.(type) {
	case json.Number:
		text = v.String()
	case string:
		text = v
		// ParseFloat would take hexadecimal, infinities and underscores too.
		if !json.Valid([]byte(text)) {
			d.errs.add(field, "must be a number, not the string %q", text)
			return
		}
	default:
		d.mismatch(field, "a number", src)
		return
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		d.errs.add(field, "must be a number that fits a double, not %s", text)
		return
	}
	dst.SetFloat(f)
}

func (d *decoder) mismatch(field, want string, got any) {
	d.errs.add(field, "must be %s, not %s", want, nameOf(got))
}

// nameOf names a JSON value for an error; it never quotes it, for values of
// env may be secret.
func nameOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "true or false"
	case string:
		return "a string"
	case json.Number:
		return "a number"
	case []any:
		return "a list"
	default:
		return "an object"
	}
}

// camelCase is the name that protojson gives to a field.
func camelCase(snake string) string {
	var b strings.Builder
	upper := false
	for _, r := range snake {
		if r == '_' {
			upper = true
			continue
		}
		if upper {
			r, upper = unicode.ToUpper(r), false
		}
		b.WriteRune(r)
	}
	return b.String()
}

func join(field, name string) string {
	if field == "" {
		return name
	}
	return field + "." + name
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
