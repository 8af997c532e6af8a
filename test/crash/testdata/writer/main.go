// Command writer is a process that does all that one does with a journal: it
// opens it, writes a task, closes it, drops the history that is older than a day,
// and writes another task. It prints what is acknowledged.
//
//	writer DIR TASK
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/deckhand/deckhand/journal"
	"github.com/deckhand/deckhand/journal/journaltest"
)

func main() {
	dir, task := os.Args[1], os.Args[2]
	options := journal.Options{BootID: "boot", AnyFilesystem: true}
	err := write(dir, task+"-1", options)
	if err == nil {
		_, err = journal.Prune(dir, options, journal.Retention{Age: 24 * time.Hour})
	}
	if err == nil {
		err = write(dir, task+"-2", options)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func write(dir, task string, o journal.Options) (err error) {
	j, err := journal.Open(dir, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	for _, e := range journaltest.Task(task, 1) {
		head, err := j.Append(context.Background(), e)
		if err != nil {
			return err
		}
		fmt.Println("ack", task, head.Seq)
	}
	return nil
}
