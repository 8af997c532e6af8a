package main

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"

	"github.com/deckhand/deckhand/internal/cgroup"
	"github.com/deckhand/deckhand/internal/engine"
	"github.com/deckhand/deckhand/steps/run"
)

// limits are the node's bounds on the containers of a task.
func (s *session) limits(ctx context.Context) run.Limits {
	conf := s.app.conf
	l := run.Limits{CPUs: runtime.NumCPU()}
	if conf.Run.CgroupParent != "auto" {
		l.CgroupParent = conf.Run.CgroupParent
		return l
	}
	job, err := s.app.jobGroup(func() (engine.Info, error) { return s.docker.Info(ctx) })
	if err != nil {
		s.app.log.Warn("the limits of the job do not hold for the containers of the task", "reason", err)
		return l
	}
	l.JobCgroup = job
	return l
}

// jobGroup is the control group of the batch engine's job, as the Docker Engine takes
// it. The error says why there is none.
func (a *app) jobGroup(about func() (engine.Info, error)) (string, error) {
	if !a.dockerIsHere() {
		return "", errors.New("the Docker Engine is on another machine")
	}
	info, err := about()
	if err != nil {
		return "", err
	}
	return cgroup.Host{}.Parent(info.CgroupDriver, info.CgroupVersion)
}

// dockerIsHere says whether the Docker Engine is on this machine.
func (a *app) dockerIsHere() bool { return strings.HasPrefix(a.conf.Docker.Host, "unix://") }

// grouped is an engine whose containers leave no control group of a job behind.
type grouped struct {
	*engine.Docker
	log *slog.Logger
}

// Remove removes what is empty of the job's group, and then the container, which has
// ended. In this order a process that dies between the two leaves the container,
// whose label tells the next one of the group.
func (g grouped) Remove(ctx context.Context, id string) error {
	c, err := g.Container(ctx, id)
	if errors.Is(err, engine.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if job := c.JobCgroup(); job != "" {
		if err := (cgroup.Host{}).Prune(job); err != nil {
			g.log.Warn("cannot remove the empty control groups of a container", "container", c.Name, "error", err)
		}
	}
	return g.Docker.Remove(ctx, id)
}
