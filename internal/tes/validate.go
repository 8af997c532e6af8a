package tes

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/deckhand/deckhand/internal/storage/glob"
)

// Validate checks a task against TES 1.1 and puts it into the form that a
// runner can rely on:
//
//   - every path is absolute and clean, without a slash at its end;
//   - every Type is set, FILE when the client did not say;
//   - an input has exactly one of URL and Content, and a path of its own;
//   - of the backend parameters only the supported ones are left, with their
//     keys spelled as in supported, which are compared without regard to case.
//     What is not supported is a warning, or an error in a task that is strict.
//
// It finds everything that is wrong: err is FieldErrors. Warnings are sentences
// for the task's system logs; they name fields and never hold values that may
// be secret. A second call changes nothing.
func (t *Task) Validate(supported ...Parameter) (warnings []string, err error) {
	v := validator{}
	if t.ID != "" {
		if err := ValidID(t.ID); err != nil {
			v.errs.add("id", "%v", err)
		}
	}
	v.executors(t.Executors)
	last := v.inputs(t.Inputs)
	v.outputs(t.Outputs)
	v.volumes(t.Volumes)
	if len(v.errs) == 0 { // else some paths are unusable
		v.belowFiles(t, last)
		onePerPath(t, last)
	}
	v.resources(&t.Resources, supported)
	if len(v.errs) > 0 {
		return v.warnings, v.errs
	}
	return v.warnings, nil
}

// Parameter is a backend parameter that is supported.
type Parameter struct {
	Key string
	// Check says what values are supported when this one is not, without
	// repeating it; nil takes every value.
	Check func(value string) error
}

type validator struct {
	errs     FieldErrors
	warnings []string
}

func (v *validator) warn(field, format string, args ...any) {
	v.warnings = append(v.warnings, field+": "+fmt.Sprintf(format, args...))
}

func (v *validator) executors(executors []Executor) {
	if len(executors) == 0 {
		v.errs.add("executors", "must not be empty; name at least one image and command to run")
	}
	for i := range executors {
		e, field := &executors[i], fmt.Sprintf("executors[%d]", i)
		if strings.TrimSpace(e.Image) == "" {
			v.errs.add(field+".image", "must not be empty; name the image to run")
		}
		v.noNUL(field+".image", e.Image)
		if len(e.Command) == 0 {
			v.errs.add(field+".command", "must not be empty; give the program and its arguments")
		}
		for j, arg := range e.Command {
			v.noNUL(fmt.Sprintf("%s.command[%d]", field, j), arg)
			v.argument(fmt.Sprintf("%s.command[%d]", field, j), arg)
		}
		if v.optionalPath(field+".workdir", &e.Workdir, Directory) {
			v.names(field+".workdir", e.Workdir)
		}
		v.optionalPath(field+".stdin", &e.Stdin, File)
		if v.optionalPath(field+".stdout", &e.Stdout, File) {
			v.place(field+".stdout", e.Stdout)
		}
		if v.optionalPath(field+".stderr", &e.Stderr, File) {
			v.place(field+".stderr", e.Stderr)
		}
		for _, name := range sortedKeys(e.Env) {
			if name == "" || strings.ContainsAny(name, "=\x00") {
				v.errs.add(field+".env", "the name %q must not be empty nor hold = or NUL", name)
			}
			v.noNUL(join(field+".env", name), e.Env[name])
			v.argument(join(field+".env", name), name+"="+e.Env[name])
		}
	}
}

// inputs checks the inputs and says which is the last at each path.
func (v *validator) inputs(inputs []Input) (last map[string]int) {
	last = map[string]int{}
	for i := range inputs {
		in, field := &inputs[i], fmt.Sprintf("inputs[%d]", i)
		v.fileType(field+".type", &in.Type)
		v.source(field, in)
		if !v.path(field+".path", &in.Path, in.Type) {
			continue
		}
		v.place(field+".path", in.Path)
		if j, ok := last[in.Path]; ok && !sameFile(&inputs[j], in) {
			v.warn(field+".path", "inputs[%d] has the same path and another source; it is ignored", j)
		}
		last[in.Path] = i
	}
	return last
}

// onePerPath leaves one input and one volume for each path: of several inputs,
// the last.
func onePerPath(t *Task, last map[string]int) {
	var inputs []Input
	for i, in := range t.Inputs {
		if last[in.Path] == i {
			inputs = append(inputs, in)
		}
	}
	var volumes []string
	seen := map[string]bool{}
	for _, dir := range t.Volumes {
		if !seen[dir] {
			volumes = append(volumes, dir)
		}
		seen[dir] = true
	}
	t.Inputs, t.Volumes = inputs, volumes
}

// belowFiles refuses what is below the place of a file: of an input, or of an
// executor's stream. At one there may be an output, or another stream, but no
// directory. Of the inputs at a path only the last counts.
func (v *validator) belowFiles(t *Task, last map[string]int) {
	files := map[string]string{} // the field of each path
	for dst, i := range last {
		if t.Inputs[i].Type == File {
			files[dst] = fmt.Sprintf("inputs[%d]", i)
		}
	}
	streams := func(yield func(field, path string) bool) {
		for i, e := range t.Executors {
			if !yield(fmt.Sprintf("executors[%d].stdout", i), e.Stdout) || !yield(fmt.Sprintf("executors[%d].stderr", i), e.Stderr) {
				return
			}
		}
	}
	for field, stream := range streams {
		if _, ok := files[stream]; !ok && stream != "" {
			files[stream] = field
		}
	}
	refuse := func(field, dir string) {
		for ; dir != "/" && dir != "."; dir = path.Dir(dir) {
			if file, ok := files[dir]; ok {
				v.errs.add(field, "must not be at or below %s, which is the path of a FILE, %s", dir, file)
				return
			}
		}
	}
	for i, in := range t.Inputs {
		if last[in.Path] != i {
			continue
		}
		dir := in.Path
		if in.Type == File {
			dir = path.Dir(dir)
		}
		refuse(fmt.Sprintf("inputs[%d].path", i), dir)
	}
	for i, o := range t.Outputs {
		dir := glob.Unescape(o.Path)
		if o.Type != Directory {
			dir = path.Dir(dir)
		}
		refuse(fmt.Sprintf("outputs[%d].path", i), dir)
	}
	for i, dir := range t.Volumes {
		refuse(fmt.Sprintf("volumes[%d]", i), dir)
	}
	for field, stream := range streams {
		refuse(field, path.Dir(stream))
	}
}

// source leaves an input with one of URL and Content.
func (v *validator) source(field string, in *Input) {
	v.noNUL(field+".url", in.URL)
	switch {
	case in.Content == nil && in.URL == "":
		v.errs.add(field+".url", "must not be empty; name the source, or give the file as content")
	case in.Content == nil:
	case *in.Content == "" && in.URL != "":
		in.Content = nil // TES: only content that is not empty makes url ignored
	case in.URL != "":
		v.warn(field+".url", "ignored, because content is given too")
		in.URL = ""
	case *in.Content == "":
		v.warn(field+".content", "is empty and there is no url; the file will be empty")
	}
	if in.Content != nil && in.Type == Directory {
		v.errs.add(field+".type", "must be FILE, because content is given")
	}
}

// sameFile says whether two inputs of one path bring the same there.
func sameFile(a, b *Input) bool {
	if (a.Content == nil) != (b.Content == nil) || a.Content != nil && *a.Content != *b.Content {
		return false
	}
	return a.URL == b.URL && a.Type == b.Type
}

func (v *validator) outputs(outputs []Output) {
	first := map[string]int{} // the file that goes to a URL
	for i := range outputs {
		o, field := &outputs[i], fmt.Sprintf("outputs[%d]", i)
		v.fileType(field+".type", &o.Type)
		if o.URL == "" {
			v.errs.add(field+".url", "must not be empty; name the place to upload to")
		}
		v.noNUL(field+".url", o.URL)
		if !v.path(field+".path", &o.Path, o.Type) {
			continue
		}
		if name := glob.Unescape(o.Path); name != path.Clean(name) {
			v.errs.add(field+".path", "must not quote a slash, nor . or .. as a component")
			continue
		}
		if !o.Wildcard() {
			o.PathPrefix = "" // TES: ignored without wildcards
			if o.Type == Directory {
				continue
			}
			if j, ok := first[o.URL]; !ok {
				first[o.URL] = i
			} else if outputs[j].Path != o.Path {
				v.warn(field+".url", "outputs[%d] has the same url and another path; one of the two will be there", j)
			}
			continue
		}
		prefix := field + ".path_prefix"
		if o.PathPrefix == "" {
			v.errs.add(prefix, "must be given, because path has wildcards; what a match has after it is appended to url")
		} else if v.path(prefix, &o.PathPrefix, Directory) && !glob.HasPrefix(o.Path, o.PathPrefix) {
			v.errs.add(prefix, "must be the first directories of path, up to its first wildcard at most")
		}
	}
}

func (v *validator) volumes(volumes []string) {
	for i := range volumes {
		field := fmt.Sprintf("volumes[%d]", i)
		if v.path(field, &volumes[i], Directory) {
			v.place(field, volumes[i])
		}
	}
}

func (v *validator) resources(r *Resources, supported []Parameter) {
	for _, n := range []struct {
		field string
		value float64
	}{{"cpu_cores", r.CPUCores}, {"ram_gb", r.RAMGB}, {"disk_gb", r.DiskGB}} {
		if n.value < 0 {
			v.errs.add("resources."+n.field, "must not be negative")
		}
	}
	kept := map[string]string{}
	for _, key := range sortedKeys(r.BackendParameters) {
		field, value := "resources.backend_parameters."+key, r.BackendParameters[key]
		p, err := find(supported, key, value)
		switch {
		case err != nil && r.BackendParametersStrict:
			v.errs.add(field, "%v, and backend_parameters_strict is set", err)
		case err != nil:
			v.warn(field, "%v; ignored", err)
		default:
			if _, ok := kept[p.Key]; ok {
				v.errs.add(field, "is given twice, in other upper and lower case; keep one")
			}
			kept[p.Key] = value
		}
	}
	r.BackendParameters = nil
	if len(kept) > 0 {
		r.BackendParameters = kept
	}
}

// find returns the supported parameter that a key names, when it takes the value.
func find(supported []Parameter, key, value string) (Parameter, error) {
	i := slices.IndexFunc(supported, func(p Parameter) bool { return strings.EqualFold(p.Key, key) })
	if i < 0 {
		return Parameter{}, errors.New("is not supported here")
	}
	p := supported[i]
	if p.Check != nil {
		if err := p.Check(value); err != nil {
			return p, fmt.Errorf("has a value that is not supported here: %w", err)
		}
	}
	return p, nil
}

func (v *validator) fileType(field string, t *FileType) {
	switch *t {
	case File, Directory:
	case "":
		*t = File
	default:
		v.errs.add(field, "must be FILE or DIRECTORY, not %q", *t)
	}
}

// optionalPath is false when there is no path, too.
func (v *validator) optionalPath(field string, p *string, t FileType) bool {
	return *p != "" && v.path(field, p, t)
}

// maxPath is the length in bytes of the longest path that Linux takes (PATH_MAX
// without the NUL).
const maxPath = 4095

// reserved is deckhand's own directory in containers.
const reserved = "/.deckhand/"

// path checks and cleans a path in the container. It is false when the path
// cannot be used.
func (v *validator) path(field string, p *string, t FileType) bool {
	before := len(v.errs)
	switch {
	case *p == "":
		v.errs.add(field, "must not be empty; give an absolute path")
	case !strings.HasPrefix(*p, "/"):
		v.errs.add(field, "must be an absolute path, not %q", *p)
	case slices.Contains(strings.Split(*p, "/"), ".."):
		v.errs.add(field, "must not hold .. as a component, as %q does", *p)
	case t == File && strings.HasSuffix(*p, "/"):
		v.errs.add(field, "must not end with a slash, because it names a file and not a directory")
	case strings.HasPrefix(path.Clean(*p)+"/", reserved):
		v.errs.add(field, "must not be at or below %s, where deckhand mounts what it needs itself", path.Clean(reserved))
	case len(*p) > maxPath:
		v.errs.add(field, "must not be longer than %d bytes", maxPath)
	}
	v.noNUL(field, *p)
	if len(v.errs) > before {
		return false
	}
	*p = path.Clean(*p)
	return true
}

// maxName is the length in bytes of the longest name of a file (NAME_MAX).
const maxName = 255

// names refuses a clean path that no file can have.
func (v *validator) names(field, p string) {
	for _, name := range strings.Split(p, "/") {
		if len(name) > maxName {
			v.errs.add(field, "must not hold a name that is longer than %d bytes", maxName)
			return
		}
	}
}

// unmountable are directories of every container in which nothing can be mounted,
// because the kernel makes up what is there; and those that a container is
// nothing without.
var unmountable = struct{ trees, alone []string }{
	trees: []string{"/proc", "/sys"},
	alone: []string{"/", "/dev"},
}

// place refuses a clean path at which nothing can be put.
func (v *validator) place(field, p string) {
	v.names(field, p)
	for _, tree := range unmountable.trees {
		if p == tree || strings.HasPrefix(p, tree+"/") {
			v.errs.add(field, "must not be in %s, which is the kernel's; nothing can be mounted there", tree)
		}
	}
	if slices.Contains(unmountable.alone, p) {
		v.errs.add(field, "must not be %s; nothing can be mounted there", p)
	}
}

// maxArgument is the length in bytes of the longest argument, and of the longest
// variable with its name, that Linux takes (MAX_ARG_STRLEN without the NUL).
const maxArgument = 128<<10 - 1

// argument refuses what no program can be given.
func (v *validator) argument(field, s string) {
	if len(s) > maxArgument {
		v.errs.add(field, "must not be longer than %d bytes, which is all that Linux takes; give it as the content of an input", maxArgument)
	}
}

// noNUL refuses what neither the kernel nor Docker can be given.
func (v *validator) noNUL(field, s string) {
	if strings.ContainsRune(s, 0) {
		v.errs.add(field, "must not hold a NUL character")
	}
}
