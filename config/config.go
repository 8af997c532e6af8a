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
	Storage  Storage
	Run      Run
	Lock     Lock
	Engine   Engine
	Disk     Disk
	Outputs  Outputs
	Workdir  Workdir
	Exit     Exit
	History  History
	Events   Events
	Funnel   Funnel
	Metrics  Metrics
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
	Pull      string // auto, always, missing, never
	Keep      int    // tasks
	KeepBytes int64  // 0 for no limit
	RetryFor  time.Duration
}

// Transfer bounds what transfers take.
type Transfer struct {
	RetryFor  time.Duration
	Parallel  int
	Memory    int64 // bytes
	Bandwidth int64 // bytes a second, 0 for no limit
}

// Storage says how files and object stores are reached.
type Storage struct {
	File  File
	S3    S3
	GCS   GCS
	Azure Azure
}

// File says how files of the node are reached.
type File struct {
	// Mount are absolute directories separated by commas; empty for none.
	Mount string
}

// S3 says how s3:// is reached.
type S3 struct {
	Endpoint  string // URL; empty for Amazon's own
	Region    string // empty for the one of the AWS configuration
	PathStyle bool
	Anonymous bool
}

// GCS says how Google Cloud Storage is reached.
type GCS struct {
	Endpoint  string // URL; empty for Google's own
	Anonymous bool
}

// Azure says how Azure Blob Storage is reached.
type Azure struct {
	Account   string // that az:// means
	Endpoint  string // URL, with {account} for the account; empty for Azure's own
	Anonymous bool
}

// Run says how executors run.
type Run struct {
	MaxAttempts     int
	StopGrace       time.Duration
	TimeLimit       time.Duration // 0 for no limit
	CgroupParent    string        // empty for Docker's own, auto for the job's
	User            string        // image, caller
	ClearEntrypoint bool
	ShellCommands   bool
	GPUs            string // all, none, or ids separated by commas
	Devices         string // patterns separated by commas
	NoNewPrivileges bool
	PidsLimit       int // 0 for no limit
	// Names without CAP_, or ALL, separated by commas; empty for none.
	CapAdd, CapDrop string
	// BlockAddresses are addresses and CIDRs separated by commas; empty for none.
	BlockAddresses string
	BlockFailure   string // refuse, warn
}

// Lock is about the lock of the root.
type Lock struct {
	Wait time.Duration
}

// Engine is about a Docker Engine that does not answer.
type Engine struct {
	Wait time.Duration
}

// Disk is about the space of the root and of Docker's images.
type Disk struct {
	Floor         int64 // bytes
	InodeFloor    int64
	AnyFilesystem bool
}

// Outputs is about what a task did not make.
type Outputs struct {
	Missing  string // warn, error
	MaxFiles int
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

// Events says who is told of what happens to tasks.
type Events struct {
	File    string // absolute; empty for none
	Webhook Webhook
	Exec    string // absolute; empty for none
	Drain   time.Duration
}

// Webhook is a server that takes events.
type Webhook struct {
	// URL may hold credentials; internal/redact before it is shown. Empty for none.
	URL        string
	SecretFile string // absolute; empty for none
}

// Funnel is a server that tasks come from.
type Funnel struct {
	URL string // without credentials; empty for none
	// RPC is HOST:PORT, or https://HOST:PORT; empty for none.
	RPC          string
	User         string
	PasswordFile string // absolute; empty for none
	TokenFile    string // absolute; empty for none
	Poll         time.Duration
	RetryFor     time.Duration
	GiveUpAfter  time.Duration // 0 for never
}

// Metrics says where counters go.
type Metrics struct {
	Textfile string // absolute, ends in .prom; empty for none
}
