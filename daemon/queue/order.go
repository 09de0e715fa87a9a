package queue

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/waypointd/waypoint/mux/wire"
)

// ParseBatchRef reads a dependency of the form "#N", the N-th job (from 0) of
// a batch of n. ok is false for anything that does not begin with "#".
func ParseBatchRef(dep string, n int) (index int, ok bool, err error) {
	digits, ok := strings.CutPrefix(dep, "#")
	if !ok {
		return 0, false, nil
	}
	index, err = strconv.Atoi(digits)
	if err != nil || index < 0 {
		return 0, true, wire.Errorf(wire.BadUsage, "dependency %q is not the number of a job", dep)
	}
	if index >= n {
		return 0, true, wire.Errorf(wire.BadUsage, "dependency %q is beyond the batch of %d jobs", dep, n)
	}
	return index, true, nil
}

// Order sorts a batch so that every job comes behind those it depends on,
// and otherwise stays where it was. deps[i] are the jobs of the batch that
// job i depends on. A cycle is a Conflict that names it.
func Order(deps [][]int) ([]int, error) {
	const (
		unseen = iota
		open   // on the path that is being followed
		done
	)
	state := make([]int, len(deps))
	order := make([]int, 0, len(deps))
	// An explicit stack: a batch may be one long chain.
	type frame struct{ job, next int }
	var path []frame
	for start := range deps {
		if state[start] != unseen {
			continue
		}
		state[start] = open
		path = append(path[:0], frame{job: start})
		for len(path) > 0 {
			top := &path[len(path)-1]
			if top.next == len(deps[top.job]) {
				state[top.job] = done
				order = append(order, top.job)
				path = path[:len(path)-1]
				continue
			}
			dep := deps[top.job][top.next]
			top.next++
			switch state[dep] {
			case unseen:
				state[dep] = open
				path = append(path, frame{job: dep})
			case open:
				var cycle []string
				for _, f := range path {
					if len(cycle) > 0 || f.job == dep {
						cycle = append(cycle, fmt.Sprintf("#%d", f.job))
					}
				}
				cycle = append(cycle, fmt.Sprintf("#%d", dep))
				return nil, wire.Errorf(wire.Conflict, "jobs depend on one another in a circle: %s", strings.Join(cycle, " -> "))
			}
		}
	}
	return order, nil
}
