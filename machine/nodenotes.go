package machine

// NodeTask is the journal's name for what was done to the node outside of any
// task, such as by `deckhand scrub`. No task can have it: task ids do not begin
// with "@".
const NodeTask = "@node"

// NodeNotes returns notes that belong to the node and not to a task.
func NodeNotes(j Journal) (Notes, error) {
	head, known, err := j.Head(NodeTask)
	if err != nil {
		return nil, err
	}
	if !known {
		head = Head{Task: NodeTask}
	}
	node, err := j.Node()
	if err != nil {
		return nil, err
	}
	return &stepNotes{&attempt{journal: j, head: head, node: node, since: head.Seq, notes: map[noteKey]Note{}}, Scrub}, nil
}
