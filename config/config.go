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

type Docker struct {
	// Host may hold credentials; internal/redact before it is shown.
	Host string
}

type Log struct {
	Format string // text, json
	Level  string // debug, info, warn, error
}

type Image struct {
	Pull     string // auto, always, missing, never
	Keep     int    // tasks
	RetryFor time.Duration
}

type Transfer struct {
	RetryFor  time.Duration
	Parallel  int
	Memory    int64 // bytes
	Bandwidth int64 // bytes a second, 0 for no limit
}

type Run struct {
	MaxAttempts     int
	StopGrace       time.Duration
	TimeLimit       time.Duration // 0 for no limit
	CgroupParent    string        // empty for Docker's own
	ClearEntrypoint bool
}

type Lock struct {
	Wait time.Duration
}

type Engine struct {
	Wait time.Duration
}

type Disk struct {
	Floor int64 // bytes
}

type Outputs struct {
	Missing string // warn, error
}

type Workdir struct {
	Keep string // never, on-failure, always
}

type Exit struct {
	Policy string // task, engine
}

type History struct {
	Keep int           // tasks, 0 for no limit
	Age  time.Duration // 0 for no limit
}
