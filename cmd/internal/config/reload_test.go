package config

import (
	"reflect"
	"testing"
)

type program struct {
	Place string   `toml:"place" reload:"restart"`
	Names []string `toml:"names"`
	Limit int      `toml:"limit"`
	Own   string   `toml:"-"`
	Table struct {
		Life int   `toml:"life"`
		Keep *bool `toml:"keep" reload:"restart"`
	} `toml:"table"`
}

func TestKeep(t *testing.T) {
	yes, no := true, false
	running := program{Place: "/a", Names: []string{"x"}, Limit: 1}
	running.Table.Keep = &yes
	fresh := running
	if changed, restart := Keep(&running, &fresh); len(changed)+len(restart) != 0 || changed == nil || restart == nil {
		t.Errorf("of the same: changed %v, restart %v", changed, restart)
	}
	fresh = program{Place: "/b", Names: []string{"y"}, Limit: 1, Own: "other"}
	fresh.Table.Life, fresh.Table.Keep = 5, &no
	changed, restart := Keep(&running, &fresh)
	if !reflect.DeepEqual(changed, []string{"names", "table.life"}) || !reflect.DeepEqual(restart, []string{"place", "table.keep"}) {
		t.Errorf("changed %v, restart %v", changed, restart)
	}
	want := program{Place: "/a", Names: []string{"y"}, Limit: 1, Own: "other"}
	want.Table.Life, want.Table.Keep = 5, &yes
	if !reflect.DeepEqual(fresh, want) {
		t.Errorf("holds from now on: %+v, want %+v", fresh, want)
	}
	if running.Limit != 1 || running.Names[0] != "x" || running.Place != "/a" {
		t.Errorf("what runs was changed: %+v", running)
	}
}
