package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deckhand/deckhand/config"
	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/internal/helper"
	"github.com/deckhand/deckhand/internal/ledger"
	"github.com/deckhand/deckhand/internal/node"
	"github.com/deckhand/deckhand/internal/outbox"
	"github.com/deckhand/deckhand/internal/own"
	"github.com/deckhand/deckhand/internal/progress"
	"github.com/deckhand/deckhand/internal/room"
	"github.com/deckhand/deckhand/internal/storage"
	"github.com/deckhand/deckhand/internal/tes"
	"github.com/deckhand/deckhand/internal/worktree"
	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/machine"
	"github.com/deckhand/deckhand/steps/download"
	"github.com/deckhand/deckhand/steps/imagecheck"
	"github.com/deckhand/deckhand/steps/run"
	"github.com/deckhand/deckhand/steps/scrub"
	"github.com/deckhand/deckhand/steps/upload"
)

// session is the exclusive hold of a root: its lock, its journal and the
// engine. Whoever has one may write.
type session struct {
	app     *app
	lock    *node.RootLock
	journal record
	outbox  *outbox.Outbox
	// owed are the last records of tasks that their server was not told of when this
	// process began.
	owed map[string]machine.Record
	// stopMetrics writes down what there is to count, for the last time.
	stopMetrics func()
	counting    sync.Mutex
	docker      docker
	boot        string
	meter       *progress.Meter
	bounds      run.Limits                   // of the containers of the task that is run
	partial     []helper.File                // what was removed when the root was taken
	undone      []scrub.Item                 // directories that roll-backs have removed
	rolledBack  []scrub.Item                 // what went with the task before the one that is run
	head        atomic.Pointer[machine.Head] // of the task that is being worked on
	dockerDir   atomic.Pointer[string]       // as dataRoot found it
}

// record is the journal as a session writes it.
type record interface {
	machine.Journal
	outbox.Journal
	tallied
	SinkNames() ([]string, error)
	Keep(sink string, number uint64, state json.RawMessage) error
	Heads() ([]machine.Head, error)
	Close() error
}

// docker is the engine as a session uses it.
type docker interface {
	scrub.Engine
	imagecheck.Engine
	run.Engine
	run.ContainerEngine
	own.Engine
	upload.Engine
	Info(ctx context.Context) (engine.Info, error)
	Close() error
}

// enter takes the root of this node, with its journal, for a task or for none.
// Nothing is made before the root and the engine are known to be usable.
func (a *app) enter(ctx context.Context, task, document string, take func(context.Context) (*node.RootLock, error)) (*session, error) {
	sinks, err := a.sinks()
	if err != nil {
		return nil, err
	}
	if err := a.checkTextfile(); err != nil {
		return nil, err
	}
	if err := a.checkRoot(); err != nil {
		return nil, err
	}
	client, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	docker := grouped{client, a.log}
	if err := node.PrepareRoot(a.conf.Root); err != nil {
		return nil, errors.Join(err, docker.Close())
	}
	lock, err := take(ctx)
	if err != nil {
		return nil, errors.Join(err, docker.Close())
	}
	if err := a.own(lock, task, document); err != nil {
		return nil, errors.Join(err, lock.Unlock(), docker.Close())
	}
	a.removeSocket()
	partial := a.removePartial()
	s, err := a.open(ctx, task, lock, docker, sinks)
	if err != nil {
		return nil, errors.Join(err, lock.Unlock(), docker.Close())
	}
	s.partial = partial
	return s, nil
}

// removePartial removes what a dead process has not installed whole, before a full
// disk is asked for space. Whoever calls holds the root.
func (a *app) removePartial() []helper.File {
	gone, err := helper.RemovePartial(a.binDir())
	if err != nil {
		a.log.Warn("cannot remove what a dead process has not installed whole", "dir", a.binDir(), "error", err)
	}
	return gone
}

// checkRoot refuses a root that cannot be used, changing nothing.
func (a *app) checkRoot() error {
	if !a.conf.Disk.AnyFilesystem {
		if err := node.CheckFilesystem(a.conf.Root); err != nil {
			return err
		}
	}
	return node.CheckRoot(a.conf.Root)
}

// hold takes the root for a command that runs no task.
func (a *app) hold(ctx context.Context) (*session, error) {
	return a.enter(ctx, "", "", func(ctx context.Context) (*node.RootLock, error) {
		return node.WaitLock(ctx, a.conf.Root, a.conf.Lock.Wait)
	})
}

// open takes the journal of a root whose lock this process has.
func (a *app) open(ctx context.Context, task string, lock *node.RootLock, docker docker, sinks []outbox.Sink) (*session, error) {
	boot, err := node.BootID()
	if err != nil {
		return nil, machine.Faultf(machine.NodeFault, "cannot tell this boot of the node from another: %w", err)
	}
	options := a.journalOptions(boot)
	options.Sinks = append(sinkNames(sinks), metricsSink)
	if a.front != nil {
		options.Sinks = append(options.Sinks, sinkOf(a.front.server))
	}
	j, err := a.openJournal(ctx, task, options, docker)
	if err != nil {
		return nil, err
	}
	s := &session{app: a, lock: lock, journal: j, docker: docker, boot: boot, meter: new(progress.Meter)}
	if err := s.tell(sinks); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	return s, nil
}

// openJournal opens the journal for a task, or for none. On a full disk it first
// removes what dead tasks have left, as reading the journal tells it: what is set
// aside comes last. A damaged journal is moved aside, never deleted, and a new
// one begun.
func (a *app) openJournal(ctx context.Context, task string, options journal.Options, docker docker) (*journal.Journal, error) {
	if journal.NeedsReserve(a.journalDir()) {
		a.log.Warn("the disk is full; removing what dead tasks left before the journal is opened")
		if err := a.freeSpace(ctx, docker, task); err != nil {
			a.log.Warn("cannot free space", "error", err)
		}
	}
	j, err := a.openSound(task, options)
	if errors.Is(err, journal.ErrNoSpace) {
		a.log.Warn("no space to open the journal; removing what this task left too", "error", err)
		if err := a.freeSpace(ctx, docker, ""); err != nil {
			return nil, err
		}
		j, err = a.openSound(task, options)
	}
	if errors.Is(err, journal.ErrDamaged) {
		moved, moveErr := journal.MoveAside(a.journalDir(), time.Now())
		if moveErr != nil {
			return nil, errors.Join(err, moveErr)
		}
		a.log.Error("the journal is damaged; it was moved aside and a new one begun, and what the old one had made counts as left over",
			"error", err, "kept", moved)
		return journal.Open(a.journalDir(), options)
	}
	return j, err
}

// openSound opens the journal and reads what it holds of the task: finished
// tasks are only verified when they are read.
func (a *app) openSound(task string, options journal.Options) (*journal.Journal, error) {
	j, err := journal.Open(a.journalDir(), options)
	if err != nil || task == "" {
		return j, err
	}
	if _, _, err := j.Head(task); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	return j, nil
}

// journalOptions are those of every opening for writing: whoever opens it may
// put finished tasks away. The bytes set it apart from a Retention that is not
// given, for no limit of age and count is a choice too.
func (a *app) journalOptions(boot string) journal.Options {
	return journal.Options{BootID: boot, AnyFilesystem: a.conf.Disk.AnyFilesystem, Retention: journal.Retention{
		Keep: a.conf.History.Keep, Age: a.conf.History.Age, Bytes: journal.DefaultRetention.Bytes,
	}}
}

// freeSpace removes the containers, volumes and directories of this root's
// tasks, none of which is alive: this process holds the root. What the unfinished
// attempt at task has made stays. The journal, once it can be opened, still has
// the others as unfinished; their roll-back finds nothing left.
func (a *app) freeSpace(ctx context.Context, docker docker, task string) (err error) {
	v, known, err := a.view()
	if err != nil || !known {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	n, err := v.Node()
	if err != nil {
		return err
	}
	var keep *machine.TaskRef
	if n.Active != nil && n.Active.Task == task {
		keep = n.Active
	}
	cleaner := a.cleaner(docker, n.RootID)
	gone, _, err := cleaner.Find(ctx, keep, taskDir(task), nil)
	if err != nil {
		return err
	}
	for _, i := range gone {
		freed, err := cleaner.Remove(ctx, nil, i)
		if err != nil {
			a.log.Warn("cannot remove what an earlier task left", "kind", i.Kind, "name", i.Name, "error", err)
			continue
		}
		a.log.Info("removed", "kind", i.Kind, "name", i.Name, "bytes", freed)
	}
	return nil
}

// close ends the hold.
func (s *session) close() error {
	s.stopTelling()
	return errors.Join(s.journal.Close(), s.lock.Unlock(), s.docker.Close())
}

func (s *session) rootID() (string, error) {
	n, err := s.journal.Node()
	return n.RootID, err
}

// taskDir is the name of a task's directory below the tasks directory.
func taskDir(task string) string { return tes.EncodeID(task) }

// cleaner returns what scrubs a root.
func (a *app) cleaner(docker docker, rootID string) *scrub.Cleaner {
	return &scrub.Cleaner{Engine: docker, RootID: rootID, TasksDir: a.tasksDir(), Bin: a.binDir(), Grace: a.conf.Run.StopGrace, Owner: own.New(docker, rootID, a.binDir())}
}

func (s *session) cleaner() (*scrub.Cleaner, error) {
	root, err := s.rootID()
	if err != nil {
		return nil, err
	}
	c := s.app.cleaner(s.docker, root)
	c.Meter = s.meter
	c.Undone = func(i scrub.Item) { s.undone = append(s.undone, i) }
	return c, nil
}

// storage returns what reaches the places that files come from and go to.
func (s *session) storage() *storage.Storage {
	conf := s.app.conf
	return storage.New(storage.Options{
		// No time is none; to Options it is the default.
		RetryFor: cmp.Or(conf.Transfer.RetryFor, time.Nanosecond), Parallel: conf.Transfer.Parallel, Memory: conf.Transfer.Memory,
		Bandwidth: conf.Transfer.Bandwidth, S3: storage.S3(conf.Storage.S3), GCS: storage.GCS(conf.Storage.GCS), Azure: storage.Azure(conf.Storage.Azure), Meter: s.meter, Log: s.app.log,
	})
}

// settleDebts removes what earlier tasks have left at storages, outside of any task, and
// returns what is gone.
func (s *session) settleDebts(ctx context.Context) (removed []scrub.Item, err error) {
	n, err := machine.NodeNotes(s.journal)
	if err != nil {
		return nil, err
	}
	settled, err := upload.Settle(ctx, n, s.storage(), s.app.log)
	return uploads(settled), err
}

// uploads are what earlier tasks had left at storages, as a scrub lists it.
func uploads(settled []upload.Settled) (items []scrub.Item) {
	for _, d := range settled {
		items = append(items, scrub.Item{Kind: scrub.Upload, Name: d.URL, Why: "the roll-back of task " + d.Task + " could not end it"})
	}
	return items
}

// machine builds the state machine of a task. Without its document it can only
// roll the task back.
func (s *session) machine(task string, doc *tes.Task) (*machine.Machine, error) {
	cleaner, err := s.cleaner()
	if err != nil {
		return nil, err
	}
	conf := s.app.conf
	if doc == nil {
		doc = &tes.Task{}
	}
	dir := filepath.Join(s.app.tasksDir(), taskDir(task))
	tree := func(attempt int, n machine.Notes) *worktree.Tree {
		tree := worktree.New(dir, attempt, doc, run.OwnDirs(n)...)
		tree.Plan.Binds = download.Binds(n)
		return tree
	}
	store := s.storage()
	containers := &run.Containers{
		Task: doc, Engine: s.docker, RootID: cleaner.RootID, Bin: s.app.binDir(), Tree: tree,
		User: containerUser(conf.Run.User), ClearEntrypoint: conf.Run.ClearEntrypoint, ShellCommands: conf.Run.ShellCommands,
		Grants: s.app.grants(), Limits: s.bounds,
		Hardening: hardening(conf.Run),
	}
	inputs := &download.Step{
		Task: doc, Storage: store, Tree: tree, Parallel: conf.Transfer.Parallel, Mount: mountable(conf.Config), BootID: s.boot,
		Meter: s.meter, Log: s.app.log,
	}
	space := &room.Room{
		Dir: s.app.tasksDir(), Images: s.dataRoot, Disk: doc.Resources.DiskBytes(), Inputs: inputs.Need,
		Floor: room.Floor{Bytes: conf.Disk.Floor, Inodes: conf.Disk.InodeFloor},
	}
	steps := []machine.Step{
		&scrub.Step{
			Cleaner: cleaner, RolledBack: s.rolledBack, Dir: taskDir(task), Tree: tree, Choose: inputs.Choose,
			Settle: func(ctx context.Context, n machine.Notes) error {
				_, err := upload.Settle(ctx, n, store, s.app.log)
				return err
			},
			Keep: scrub.Keep(conf.Workdir.Keep), Room: space, Log: s.app.log,
		},
		&imagecheck.Step{
			Task: doc, Engine: s.docker, Containers: containers, Policy: imagecheck.Policy(conf.Image.Pull),
			Keep: ledger.Keep{Tasks: conf.Image.Keep, Bytes: conf.Image.KeepBytes}, Room: space, BootID: s.boot, Meter: s.meter, Log: s.app.log,
		},
		inputs,
		&run.Step{
			Task: doc, Engine: s.docker, Containers: containers, Tree: tree, Owner: cleaner.Owner, Grace: conf.Run.StopGrace,
			TimeLimit: conf.Run.TimeLimit, BootID: s.boot, Meter: s.meter, Log: s.app.log,
		},
		&upload.Step{
			Task: doc, Storage: store, Engine: s.docker, Containers: containers, Tree: tree, Owner: cleaner.Owner, BootID: s.boot,
			Missing: upload.Missing(conf.Outputs.Missing), MaxFiles: conf.Outputs.MaxFiles, Parallel: conf.Transfer.Parallel, Meter: s.meter, Log: s.app.log,
		},
	}
	head, known, err := s.journal.Head(task)
	if err != nil {
		return nil, err
	}
	if !known {
		head = machine.Head{Task: task, Since: time.Now()}
	}
	s.head.Store(&head)
	m := &machine.Machine{
		Journal: spaceJournal{s.journal, s.disks}, Steps: map[machine.State]machine.Step{}, MaxAttempts: conf.Run.MaxAttempts, Log: s.app.log,
		Entered: s.entered,
	}
	for _, step := range steps {
		if step.State() != machine.Scrub {
			step = laidOut{step}
		}
		m.Steps[step.State()] = step
	}
	return m, nil
}

// containerUser is who executors are, empty for who their image says.
func containerUser(setting string) string {
	if setting == "caller" {
		return fmt.Sprintf("%d:%d", os.Geteuid(), os.Getegid())
	}
	return ""
}

// dataRoot is where Docker keeps its data.
func (s *session) dataRoot(ctx context.Context) (string, error) {
	info, err := s.docker.Info(ctx)
	if err == nil {
		s.dockerDir.Store(&info.DataRoot)
	}
	return info.DataRoot, err
}

// disks are the directories whose filesystems a task fills. Docker's is known once
// it was asked for; nobody waits for Docker to write down a transition.
func (s *session) disks() []string {
	paths := []string{s.app.conf.Root}
	if dir := s.dockerDir.Load(); dir != nil {
		if _, err := os.Stat(*dir); err == nil { // else it is of an engine elsewhere
			paths = append(paths, *dir)
		}
	}
	return paths
}

// hardening is what the configuration says of containers.
func hardening(c config.Run) run.Hardening {
	h := run.Hardening{
		NoNewPrivileges: c.NoNewPrivileges, PidsLimit: int64(c.PidsLimit), CapAdd: fields(c.CapAdd), CapDrop: fields(c.CapDrop),
		BlockOrWarn: c.BlockFailure == "warn",
	}
	for _, a := range fields(c.BlockAddresses) {
		h.Block = append(h.Block, netip.MustParsePrefix(a)) // config has checked it
	}
	return h
}

// mountable are the directories whose files may be mounted as inputs. A container that
// may mount could make the mounts writable.
func mountable(c config.Config) []string {
	for _, capability := range fields(c.Run.CapAdd) {
		if capability == "SYS_ADMIN" || capability == "ALL" {
			return nil
		}
	}
	return fields(c.Storage.File.Mount)
}

// fields splits a list of the configuration.
func fields(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

// entered tells of a transition.
func (s *session) entered(h machine.Head) {
	s.outbox.Wake()
	was := s.head.Swap(&h)
	attrs := []any{"task", h.Task, "state", h.State, "attempt", h.Attempt}
	if was.State != "" && h.State != machine.Accepted {
		attrs = append(attrs, "was", was.State, "seconds", h.Since.Sub(was.Since).Seconds())
	}
	if h.Reason != "" {
		attrs = append(attrs, "reason", h.Reason)
	}
	s.app.screen.show("") // it tells of the state before
	s.app.tell(stateWords(*was, h), "entered", attrs...)
}

// standing is where the task that is being worked on stands.
func (s *session) standing() standing {
	h := s.head.Load()
	return standing{h.Task, h.State, h.Since}
}

// rollBackOther ends the unfinished attempt of a task other than the given one;
// its owner is dead, because this process holds the root.
func (s *session) rollBackOther(ctx context.Context, task, reason string) error {
	n, err := s.journal.Node()
	if err != nil || n.Active == nil || n.Active.Task == task {
		return err
	}
	other := n.Active.Task
	s.app.log.Warn("rolling back what another task left unfinished", "task", other, "attempt", n.Active.Attempt)
	m, err := s.machine(other, nil)
	if err != nil {
		return err
	}
	if _, err := m.GiveUp(ctx, other, reason); err != nil {
		return fmt.Errorf("cannot roll back task %s: %w", other, err)
	}
	return nil
}

// rollBackTelling is rollBackOther, and returns what has gone with it. One that is told to
// stop meanwhile rolls back all the same, and then begins nothing that could tell.
func (s *session) rollBackTelling(ctx context.Context, task, reason string) (undone []scrub.Item, err error) {
	n, err := s.journal.Node()
	if err != nil || n.Active == nil || n.Active.Task == task {
		return nil, err
	}
	cleaner, err := s.cleaner()
	if err != nil {
		return nil, err
	}
	before, _, err := s.leftovers(ctx, cleaner)
	if err == nil || ctx.Err() != nil {
		err = s.rollBackOther(ctx, task, reason)
	}
	if err != nil || ctx.Err() != nil {
		return nil, err
	}
	gone, kept, err := s.leftovers(ctx, cleaner)
	if ctx.Err() != nil {
		return nil, nil
	}
	for _, i := range before {
		if at := slices.IndexFunc(s.undone, i.Same); at >= 0 {
			i.Bytes = s.undone[at].Bytes
		}
		if !slices.ContainsFunc(gone, i.Same) && !slices.ContainsFunc(kept, i.Same) {
			undone = append(undone, i)
		}
	}
	return undone, err
}
