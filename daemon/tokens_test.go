package daemon

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/waypointd/waypoint/daemon/store"
	"github.com/waypointd/waypoint/mux/wire"
)

func TestBootstrap(t *testing.T) {
	cfg := Config{StateDir: t.TempDir()}
	t.Run("first", func(t *testing.T) {
		s := newSite(t, cfg)
		_, err := s.hello(t, "tcp", operator(""))
		is(t, err, wire.Unauthenticated, "no token", "waypoint server bootstrap")
		err = s.mustHello(t, "tcp", operator(s.userToken(t, time.Hour))).Call(t.Context(), wire.MethodServerBootstrap, wire.BootstrapRequest{}, nil)
		is(t, err, wire.Denied, "Unix socket", "waypoint server bootstrap")

		var (
			wg    sync.WaitGroup
			made  = make(chan wire.TokenReply, 8)
			fails atomic.Int64
		)
		for range 8 {
			session := s.mustHello(t, "unix", operator(""))
			wg.Go(func() {
				var reply wire.TokenReply
				if err := session.Call(t.Context(), wire.MethodServerBootstrap, wire.BootstrapRequest{}, &reply); err != nil {
					is(t, err, wire.Conflict, "has been bootstrapped already", "waypoint user token")
					fails.Add(1)
					return
				}
				made <- reply
			})
		}
		wg.Wait()
		if fails.Load() != 7 {
			t.Fatalf("%d of 8 were refused", fails.Load())
		}
		reply := <-made
		c, err := wire.ReadToken(reply.Token)
		if err != nil || c.Kind != wire.UserToken || c.User != "admin" || c.Expiry.Sub(c.Issued) != 30*24*time.Hour || !reply.Expiry.Equal(c.Expiry) ||
			reply.Fingerprint != s.pin() || c.Pin != s.pin() {
			t.Errorf("%+v, %+v, %v", reply, c, err)
		}
		if err := s.mustHello(t, "tcp", operator(reply.Token)).Call(t.Context(), wire.MethodServerStatus, wire.ServerStatusRequest{}, nil); err != nil {
			t.Error(err)
		}
	})
	t.Run("after a restart", func(t *testing.T) {
		s := newSite(t, cfg)
		for _, network := range []string{"unix", "memory"} {
			err := s.mustHello(t, network, operator("")).Call(t.Context(), wire.MethodServerBootstrap, wire.BootstrapRequest{}, nil)
			is(t, err, wire.Conflict, "has been bootstrapped already", "waypoint user token")
		}
	})
	t.Run("in memory", func(t *testing.T) {
		if err := newSite(t, Config{}).mustHello(t, "memory", operator("")).Call(t.Context(), wire.MethodServerBootstrap, wire.BootstrapRequest{}, nil); err != nil {
			t.Error(err)
		}
	})
}

func TestRunnerToken(t *testing.T) {
	s := newSite(t, Config{})
	session := s.mustHello(t, "unix", operator(""))
	labels := func(n int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[fmt.Sprintf("k%d", i)] = "v"
		}
		return m
	}
	const year = 365 * 24 * time.Hour
	for _, c := range []struct {
		name   string
		id     string
		labels map[string]string
		life   time.Duration
		bad    string
	}{
		{"any", "", nil, time.Hour, ""},
		{"empty labels are none", "", map[string]string{}, time.Hour, ""},
		{"id and labels", "r-1.x_Y", map[string]string{"zone": "b", "empty": ""}, time.Hour, ""},
		{"all labels", "", labels(wire.MaxLabels), time.Hour, ""},
		{"too many labels", "", labels(wire.MaxLabels + 1), time.Hour, "labels"},
		{"the smallest", "", nil, time.Second, ""},
		{"less", "", nil, time.Second - 1, "at least"},
		{"the largest", "", nil, 10 * year, ""},
		{"more", "", nil, 10*year + 1, "10 years"},
		{"nothing", "", nil, 0, "never be good"},
		{"negative", "", nil, -time.Hour, "never be good"},
		{"bad id", "a b", nil, time.Hour, "valid id"},
		{"bad id, dash", "-a", nil, time.Hour, "valid id"},
		{"id of a local runner", "cli-1", nil, time.Hour, "server's to give"},
		{"bad key", "", map[string]string{"": "b"}, time.Hour, "label key"},
		{"bad value", "", map[string]string{"a": "b c"}, time.Hour, "valid value"},
		{"os", "", map[string]string{"os": "linux"}, time.Hour, "cannot bind"},
		{"arch", "", map[string]string{"arch": "amd64"}, time.Hour, "cannot bind"},
		{"hostname", "", map[string]string{"hostname": "a"}, time.Hour, "cannot bind"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var reply wire.TokenReply
			err := session.Call(t.Context(), wire.MethodRunnerToken, wire.RunnerTokenRequest{ID: c.id, Labels: c.labels, ExpiresIn: wire.Duration(c.life)}, &reply)
			if c.bad != "" {
				if wire.KindOf(err) != wire.BadUsage || !strings.Contains(err.Error(), c.bad) || reply.Token != "" {
					t.Fatalf("%+v, %v", reply, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := s.verify(t.Context(), reply.Token, time.Now())
			if wire.KindOf(err) == wire.Expired && c.life == time.Second {
				err = nil // on a slow machine
			}
			if err != nil || got.Kind != wire.RunnerToken || got.ID != c.id || got.Key != "" || got.User != "" ||
				len(got.Labels) != len(c.labels) || len(c.labels) == 0 && got.Labels != nil || got.Expiry.Sub(got.Issued) != c.life || !reply.Expiry.Equal(got.Expiry) {
				t.Errorf("%+v, %v", got, err)
			}
			for k, v := range c.labels {
				if got.Labels[k] != v {
					t.Errorf("label %s is %q", k, got.Labels[k])
				}
			}
		})
	}
}

func TestUserTokenLife(t *testing.T) {
	s := newSite(t, Config{})
	session := s.mustHello(t, "unix", operator(""))
	for life, ok := range map[time.Duration]bool{
		0: true, time.Second: true, wire.MaxTokenLife: true,
		-1: false, time.Millisecond: false, wire.MaxTokenLife + 1: false,
	} {
		err := session.Call(t.Context(), wire.MethodUserToken, wire.UserTokenRequest{ExpiresIn: wire.Duration(life)}, nil)
		if ok != (err == nil) || !ok && wire.KindOf(err) != wire.BadUsage {
			t.Errorf("%s: %v", life, err)
		}
	}
}

// Serials order tokens by when they were made, whatever the clock does.
func TestSerialsOfTokens(t *testing.T) {
	s := newSite(t, Config{})
	var last int64
	for _, at := range []time.Duration{0, 0, -time.Hour, time.Hour, 0, -24 * time.Hour} {
		c, err := wire.ReadToken(s.issueAt(t, wire.Claims{Kind: wire.RunnerToken}, time.Hour, time.Now().Add(at)))
		if err != nil || c.Serial <= last {
			t.Errorf("%d after %d, %v", c.Serial, last, err)
		}
		last = c.Serial
	}
}

// A token counts only when its transaction does.
func TestMintIsUndone(t *testing.T) {
	s := newSite(t, Config{})
	var text string
	err := s.store.Update(t.Context(), func(tx *store.Tx) (err error) {
		if text, _, err = s.mint(tx, wire.Claims{Kind: wire.UserToken, User: "ada"}, time.Hour, time.Now()); err != nil {
			return err
		}
		return wire.Errorf(wire.Conflict, "no")
	})
	if wire.KindOf(err) != wire.Conflict {
		t.Fatal(err)
	}
	if _, err := s.verify(t.Context(), text, time.Now()); wire.KindOf(err) != wire.Unauthenticated {
		t.Errorf("a key that was never kept verifies: %v", err)
	}
}
