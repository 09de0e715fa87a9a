package executor

import (
	"os"
	"strconv"
	"strings"
	"sync"
)

// ownOOMScore is this process's oom_score_adj, which does not change.
var ownOOMScore = sync.OnceValue(func() int {
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
})
