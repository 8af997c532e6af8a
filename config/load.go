package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"github.com/deckhand/deckhand/internal/redact"
)

const (
	prefix = "DECKHAND_"
	// fileFlag and fileVariable name the configuration file.
	fileFlag     = "config"
	fileVariable = prefix + "CONFIG"
)

// systemFile is read when nobody names a file.
var systemFile = "/etc/deckhand/config.yaml"

// otherVariables are ours but no settings.
var otherVariables = []string{
	fileVariable,
	prefix + "LONG",                    // the long form of the test suite
	prefix + "ACTIVE_HELP",             // set by the completion of fish
	prefix + "COMPLETION_DESCRIPTIONS", // read by every completion
}

// Kubernetes puts such variables into every container of a namespace that has
// a service called "deckhand".
var serviceVariable = regexp.MustCompile(`^` + prefix + `(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_.*)?)$`)

// Loaded is a Config and where it came from.
type Loaded struct {
	Config
	// File is the configuration file that was read, or empty.
	File     string
	settings []Setting
}

// Setting is one key as it is in force.
type Setting struct {
	Key   string `json:"key"`
	Value string `json:"value"` // without secrets
	// Source is "default", "file PATH", "environment NAME" or "flag --NAME".
	Source string `json:"source"`
	Doc    string `json:"doc"`
}

// Settings lists every key in the order of the documentation.
func (l *Loaded) Settings() []Setting { return slices.Clone(l.settings) }

// AddCommonFlags adds --config and the flags of the settings that every command has.
func AddCommonFlags(flags *pflag.FlagSet) {
	flags.String(fileFlag, "", "configuration `file` (else $XDG_CONFIG_HOME/deckhand/config.yaml, else "+systemFile+")")
	for _, k := range keys {
		if k.common {
			k.addFlag(flags)
		}
	}
}

// AddFlags adds the flags of the named settings, such as "lock.wait". It panics
// when one does not exist or has no flag.
func AddFlags(flags *pflag.FlagSet, names ...string) {
	for _, name := range names {
		i := slices.IndexFunc(keys, func(k key) bool { return k.name == name && k.flag != "" })
		if i < 0 {
			panic("config: no flag for " + name)
		}
		keys[i].addFlag(flags)
	}
}

func (k key) addFlag(flags *pflag.FlagSet) {
	doc, _, _ := strings.Cut(strings.TrimSuffix(k.doc, "."), ". ")
	doc = strings.ToLower(doc[:1]) + strings.ReplaceAll(doc[1:], "`", "") // as cobra's own
	flags.Var(&flagText{kind: k.kind.placeholder}, k.flag, doc)
	// For the help only: the value stays empty, so that an untouched flag is no choice.
	flags.Lookup(k.flag).DefValue = k.fallback
}

// flagText is a flag's value before it is checked.
type flagText struct {
	text string
	kind string // as the help shows it
}

func (t *flagText) String() string     { return t.text }
func (t *flagText) Set(s string) error { t.text = s; return nil }
func (t *flagText) Type() string       { return t.kind }

// Load finds the value of every setting and checks it. flags may hold any of
// the flags of this package, and others. Every error is the user's to mend.
func Load(flags *pflag.FlagSet) (*Loaded, error) {
	if err := checkEnvironment(os.Environ()); err != nil {
		return nil, err
	}
	l := new(Loaded)
	v := viper.New()
	var err error
	if l.File, err = findFile(flags); err != nil {
		return nil, err
	}
	if l.File != "" {
		if err := readFile(v, l.File); err != nil {
			return nil, err
		}
	}
	for _, k := range keys {
		if err := l.load(v, k, flags); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// load settles one key.
func (l *Loaded) load(v *viper.Viper, k key, flags *pflag.FlagSet) error {
	// The order of this switch is the order in which viper looks.
	source := "default"
	var f *pflag.Flag
	if k.flag != "" {
		f = flags.Lookup(k.flag)
	}
	switch inFile := v.InConfig(k.name); {
	case f != nil && f.Changed:
		source = "flag --" + k.flag
	case os.Getenv(k.variable()) != "":
		source = "environment " + k.variable()
	case inFile:
		source = "file " + l.File
	}
	v.SetDefault(k.name, k.fallback)
	if k.inherit != nil {
		if value, variable := k.inherit(); value != "" {
			v.SetDefault(k.name, value)
			if source == "default" {
				source = "environment " + variable
			}
		}
	}
	if err := v.BindEnv(k.name, k.variable()); err != nil {
		return err
	}
	if f != nil {
		if err := v.BindPFlag(k.name, f); err != nil {
			return err
		}
	}

	var text string
	switch value := v.Get(k.name).(type) {
	case string:
		text = value
	case bool, int, int64, uint64, float64:
		text = fmt.Sprint(value)
	default:
		return fmt.Errorf("%s (%s) is not a single value; write %s", k.name, source, k.kind.allowed)
	}
	// A line's end slips into a value unseen, and no value has one.
	err := k.kind.set(&l.Config, text)
	if err != nil || strings.ContainsFunc(text, unicode.IsControl) {
		return fmt.Errorf("%s is %q (%s): not allowed; write %s", k.name, redact.Text(text), source, k.kind.allowed)
	}
	if k.name == "root" {
		text = l.Root
	}
	l.settings = append(l.settings, Setting{Key: k.name, Value: redact.Text(text), Source: source, Doc: k.doc})
	return nil
}

// checkEnvironment refuses variables that look like settings and are none.
func checkEnvironment(environ []string) error {
	known := slices.Clone(otherVariables)
	for _, k := range keys {
		known = append(known, k.variable())
	}
	var errs []error
	for _, pair := range environ {
		name, _, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, prefix) && !slices.Contains(known, name) && !serviceVariable.MatchString(name) {
			errs = append(errs, fmt.Errorf("environment variable %s is no setting%s", name, didYouMean(name, known)))
		}
	}
	return errors.Join(errs...)
}

// findFile returns the configuration file to read: one that was named, or the
// first of the usual ones that exists, or "".
func findFile(flags *pflag.FlagSet) (string, error) {
	if f := flags.Lookup(fileFlag); f != nil && f.Changed {
		if f.Value.String() == "" {
			return "", errors.New("--config is empty; write the name of a file")
		}
		return f.Value.String(), nil
	}
	if name := os.Getenv(fileVariable); name != "" {
		return name, nil
	}
	var usual []string
	if dir := os.Getenv("XDG_CONFIG_HOME"); dir != "" {
		usual = append(usual, filepath.Join(dir, "deckhand", "config.yaml"))
	}
	for _, name := range append(usual, systemFile) {
		_, err := os.Stat(name)
		if err == nil {
			return name, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("cannot read the configuration: %w", err)
		}
	}
	return "", nil
}

// readFile reads a YAML file into v, which has no other keys yet, and refuses
// keys that are no settings.
func readFile(v *viper.Viper, name string) error {
	v.SetConfigFile(name)
	v.SetConfigType("yaml") // whatever the name ends in
	if err := v.ReadInConfig(); err != nil {
		if cause := errors.Unwrap(err); cause != nil {
			err = cause // it repeats the name or says "config" once more
		}
		return fmt.Errorf("cannot read the configuration file %s: %w", name, err)
	}
	known := make([]string, 0, len(keys))
	for _, k := range keys {
		known = append(known, k.name)
	}
	found := v.AllKeys()
	slices.Sort(found)
	var errs []error
	for _, name := range found {
		i := slices.IndexFunc(known, func(k string) bool { return strings.HasPrefix(k, name+".") })
		switch {
		case slices.Contains(known, name) && v.Get(name) == nil:
			errs = append(errs, fmt.Errorf("%s has no value", name))
		case slices.Contains(known, name):
		case i >= 0 && v.Get(name) == nil: // a section in which everything is a comment
		case i >= 0:
			errs = append(errs, fmt.Errorf("%s is a section, not a value; did you mean %s?", name, known[i]))
		default:
			errs = append(errs, fmt.Errorf("unknown key %s%s", name, didYouMean(name, known)))
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("configuration file %s: %w", name, errors.Join(errs...))
	}
	return nil
}
