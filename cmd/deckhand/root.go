package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/deckhand/deckhand/config"
	"github.com/deckhand/deckhand/internal/engine"
)

// app is one invocation: what every command has.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	conf           *config.Loaded
	log            *slog.Logger
	screen         *screen
	front          *front       // of a task that comes from a server; nil for none
	fit            func() error // says whether containers can run this program
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "deckhand",
		Short: "Run one GA4GH TES task on this node, journaled, and leave the node clean",
		Long: `Deckhand runs one GA4GH TES task on this node: it scrubs what earlier tasks
left, makes the image ready, downloads inputs, runs the executors in Docker and
uploads outputs. Every step is journaled, so that a node that crashes at any
instant resumes the task or rolls it back.`,
		Example: `  deckhand run task.json --result result.json
  deckhand status last
  deckhand journal inspect last`,
		Version:       fullVersion(),
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.HasSubCommands() {
				return nil // it only shows its help
			}
			return a.configure(cmd)
		},
	}
	config.AddCommonFlags(root.PersistentFlags())
	root.AddCommand(
		newRunCommand(a), newScrubCommand(a), newRecoverCommand(a), newCancelCommand(a),
		newStatusCommand(a), newLogsCommand(a), newJournalCommand(a), newValidateCommand(a),
		newGraphCommand(a), newConfigCommand(a), newDoctorCommand(a), newMetricsCommand(a), newVersionCommand(a), newManCommand(a),
		&cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: exitCodesHelp},
	)
	finish(root)
	return root
}

// configure settles the configuration and the log before a command runs.
func (a *app) configure(cmd *cobra.Command) error {
	conf, err := config.Load(cmd.Flags())
	if err != nil {
		return &exit{exitUsage, err}
	}
	a.conf = conf
	a.screen = newScreen(a.stderr, conf)
	a.log = slog.New(newLogHandler(a.screen, conf.Log))
	return nil
}

func (a *app) journalDir() string { return filepath.Join(a.conf.Root, "journal") }
func (a *app) tasksDir() string   { return filepath.Join(a.conf.Root, "tasks") }

// binDir is where deckhand's own binary lies for containers to run.
func (a *app) binDir() string { return filepath.Join(a.conf.Root, "bin") }

// connect reaches the Docker Engine, or says that this node is unfit.
func (a *app) connect(ctx context.Context) (*engine.Docker, error) {
	return engine.Connect(ctx, engine.Options{
		Host: a.conf.Docker.Host, Wait: a.conf.Engine.Wait, PullRetryFor: a.conf.Image.RetryFor, Log: a.log,
	})
}

// writeTo writes a whole file or nothing; "-" is standard output.
func (a *app) writeTo(ctx context.Context, name string, write func(io.Writer) error) error {
	if name == "-" {
		return write(a.stdout)
	}
	if err := replaceFile(ctx, name, write); err != nil {
		return fmt.Errorf("cannot write %s: %w", name, err)
	}
	return nil
}
