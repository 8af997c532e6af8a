// Package config finds the settings in force (flag, then environment, then
// file, then default), checks them once and hands them on as plain values. It
// is the only package that knows viper.
package config

import "time"

// Config holds every setting. Durations and byte counts of zero mean "no
// limit" where the table of keys allows "none". What each field means is said
// there, once.
type Config struct {
	Root     string // absolute
	Docker   Docker
	Log      Log
	Progress string // auto, plain, none
	Image    Image
	Transfer Transfer
	Run      Run
	Lock     Lock
	Engine   Engine
	Disk     Disk
	Outputs  Outputs
	Workdir  Workdir
	Exit     Exit
	History  History
}

// Docker says which engine is used.
type Docker struct {
	// Host may hold credentials; internal/redact before it is shown.
	Host string
}

// Log says what is logged and how.
type Log struct {
	Format string // text, json
	Level  string // debug, info, warn, error
}

// Image says when images are pulled and how many stay.
type Image struct {
	Pull     string // auto, always, missing, never
	Keep     int    // tasks
	RetryFor time.Duration
}

// Transfer bounds what transfers take.
type Transfer struct {
	RetryFor  time.Duration
	Parallel  int
	Memory    int64 // bytes
	Bandwidth int64 // bytes a second, 0 for no limit
}

// Run says how executors run.
type Run struct {
	MaxAttempts     int
	StopGrace       time.Duration
	TimeLimit       time.Duration // 0 for no limit
	CgroupParent    string        // empty for Docker's own
	ClearEntrypoint bool
}

// Lock is about the lock of the root.
type Lock struct {
	Wait time.Duration
}

// Engine is about a Docker Engine that does not answer.
type Engine struct {
	Wait time.Duration
}

// Disk is about the space of the root.
type Disk struct {
	Floor int64 // bytes
}

// Outputs is about what a task did not make.
type Outputs struct {
	Missing string // warn, error
}

// Workdir is about the work directory of a task that has ended.
type Workdir struct {
	Keep string // never, on-failure, always
}

// Exit says what exit codes mean.
type Exit struct {
	Policy string // task, engine
}

// History says how much of finished tasks is kept.
type History struct {
	Keep int           // tasks, 0 for no limit
	Age  time.Duration // 0 for no limit
}
