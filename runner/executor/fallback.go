package executor

import (
	"errors"
	"sync"
	"time"
)

// fallbackTree is a tree in a cgroup that changes to a process group if its
// first command shows that the kernel, or a filter before it, refuses to start
// processes in a cgroup after all.
type fallbackTree struct {
	e *Executor
	o Options

	mu  sync.Mutex
	cur Tree
}

func (t *fallbackTree) tree() Tree {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.cur
}

func (t *fallbackTree) Start(c Command) error {
	err := t.tree().Start(c)
	if !errors.Is(err, errNoCgroup) {
		return err
	}
	t.e.log.Warn("jobs are isolated by process group only from here on", "reason", err.Error())
	t.e.noCgroup.Store(true)
	if _, err := t.tree().Close(); err != nil {
		return err
	}
	s, err := t.e.newShimTree(t.o)
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.cur = s
	t.mu.Unlock()
	return s.Start(c)
}

func (t *fallbackTree) Wait() Exit                      { return t.tree().Wait() }
func (t *fallbackTree) Term()                           { t.tree().Term() }
func (t *fallbackTree) Kill()                           { t.tree().Kill() }
func (t *fallbackTree) AwaitEmpty(d time.Duration) bool { return t.tree().AwaitEmpty(d) }
func (t *fallbackTree) Close() (Usage, error)           { return t.tree().Close() }
func (t *fallbackTree) Isolation() string               { return t.tree().Isolation() }
