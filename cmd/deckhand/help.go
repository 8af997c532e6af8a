package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// helpTemplate shows how a command is used before it explains every flag.
const helpTemplate = `{{with or .Long .Short}}{{. | trimTrailingWhitespaces}}

{{end}}{{if or .Runnable .HasSubCommands}}{{.UsageString}}{{end}}`

const usageTemplate = `{{if .HasExample}}Examples:
{{.Example}}

{{end}}Usage:
  {{if .HasSubCommands}}{{.CommandPath}} COMMAND{{else}}{{.UseLine}}{{end}}
{{if .HasSubCommands}}
Commands:{{range .Commands}}{{if or .IsAvailableCommand (eq .Name "help")}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}
{{end}}{{if .HasHelpSubCommands}}
Topics:{{range .Commands}}{{if .IsAdditionalHelpTopicCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}
{{end}}{{if and .HasAvailableLocalFlags .HasParent}}
Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}
{{end}}{{if not .HasParent}}
Flags of every command:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}

"{{.CommandPath}} help COMMAND" tells more.
{{else if .HasAvailableInheritedFlags}}
Flags of every command:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}
{{end}}`

// allowedValues are those of flags, by their type.
var allowedValues = map[string]string{"int": "a whole number", "bool": "true or false"}

// finish gives the tree of commands what all of them share.
func finish(root *cobra.Command) {
	root.SetHelpTemplate(helpTemplate)
	root.SetUsageTemplate(usageTemplate)
	root.SetVersionTemplate("{{.Version}}\n")
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		var wrong *pflag.InvalidValueError
		if errors.As(err, &wrong) {
			if allowed, known := allowedValues[wrong.GetFlag().Value.Type()]; known { // not in the words of the library
				err = fmt.Errorf("--%s is %q; write %s", wrong.GetFlag().Name, wrong.GetValue(), allowed)
			}
		}
		return usage("%w; see \"%s --help\"", err, cmd.CommandPath())
	})
	for _, name := range []string{"help", "completion", "version", "graph", "man"} {
		cmd, _, _ := root.Find([]string{name})
		// What needs no configuration works with a broken one.
		cmd.PersistentPreRunE = func(*cobra.Command, []string) error { return nil }
	}
	help, _, _ := root.Find([]string{"help"})
	help.Run, help.RunE = nil, showHelp
	group(root)
	for _, name := range []string{"journal", "completion"} {
		cmd, _, _ := root.Find([]string{name})
		group(cmd)
	}
	answerWrongArguments(root)
}

func showHelp(help *cobra.Command, args []string) error {
	cmd, rest, err := help.Root().Find(args)
	if err == nil && len(rest) > 0 {
		err = unknownCommand(cmd, rest)
	}
	if err != nil {
		return &exit{exitUsage, err}
	}
	cmd.InitDefaultHelpFlag() // so that it is listed
	cmd.InitDefaultVersionFlag()
	return cmd.Help()
}

// group makes a command that only has others show its help.
func group(cmd *cobra.Command) {
	cmd.Args = unknownCommand
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf(" (did you mean %q?)", near[0])
	}
	return fmt.Errorf("there is no command %q%s", cmd.CommandPath()+" "+args[0], hint)
}

// answerWrongArguments makes wrong arguments exit code 2, with a hint.
func answerWrongArguments(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usage("%w; see \"%s --help\"", err, cmd.CommandPath())
			}
			return nil
		}
	}
	for _, c := range cmd.Commands() {
		answerWrongArguments(c)
	}
}

func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%q takes no arguments and got %q", cmd.CommandPath(), args[0])
	}
	return nil
}

// oneArgument takes what exactly once.
func oneArgument(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 || args[0] == "" {
			return fmt.Errorf("%q takes one %s and got %s", cmd.CommandPath(), what, arguments(args))
		}
		return nil
	}
}

// optionalArgument takes what once or not at all.
func optionalArgument(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		// An empty one is a variable that was not set in somebody's script.
		if len(args) > 1 || len(args) == 1 && args[0] == "" {
			return fmt.Errorf("%q takes at most one %s and got %s", cmd.CommandPath(), what, arguments(args))
		}
		return nil
	}
}

func arguments(args []string) string {
	switch {
	case len(args) == 0:
		return "none"
	case len(args) == 1:
		return "an empty one"
	}
	return fmt.Sprint(len(args))
}
