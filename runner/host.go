package runner

import (
	"maps"
	"os"
	"runtime"
	"strings"

	"github.com/waypointd/waypoint/mux/wire"
)

// host is what a runner says of where it lives.
type host struct {
	name   string
	labels map[string]string
}

// thisHost joins the runner's own labels with os, arch and hostname, which
// every runner has by itself. The latter win: a label of that name says the
// same everywhere.
func thisHost(own map[string]string) (host, error) {
	for k, v := range own {
		if err := wire.CheckLabel(k, v); err != nil {
			return host{}, err
		}
	}
	h := host{labels: maps.Clone(own)}
	if h.labels == nil {
		h.labels = map[string]string{}
	}
	if name, err := os.Hostname(); err == nil {
		h.name = name
	}
	for k, v := range map[string]string{"os": runtime.GOOS, "arch": runtime.GOARCH, "hostname": h.name} {
		if wire.CheckLabel(k, v) == nil { // a host name can be anything
			h.labels[k] = v
		}
	}
	return h, nil
}

// bootID tells one boot of this host from another, "" where the kernel does not say.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// hello is what the runner says of itself, and shows, when it connects.
func (r *Runner) hello() wire.Hello {
	isolation := r.parent.isolation()
	r.mu.Lock()
	r.isolation = isolation
	r.mu.Unlock()
	rh := &wire.RunnerHello{
		Kind:     r.cfg.Kind,
		Labels:   r.host.labels,
		Hostname: r.host.name, OS: runtime.GOOS, Arch: runtime.GOARCH,
		Isolation:   isolation,
		Concurrency: r.cfg.Concurrency,
	}
	rh.PublicKey = []byte(r.cfg.Key[32:])
	h := wire.Hello{Role: wire.RoleRunner, Software: r.cfg.Software, Runner: rh}
	if r.local() {
		h.Token = r.cfg.Login
	} else {
		rh.ID, rh.Offers = r.cfg.ID, r.tokens.hello(r.look())
	}
	return h
}
