package config

import (
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/waypointd/waypoint/mux/wire"
)

// checkRange refuses a number or a duration outside of what its field's tag says, as
// `range:"100ms 10m"`. 0 is the default, and is in each of them.
func checkRange(path, text string, key toml.Key, v any, f reflect.StructField) error {
	least, most, bounded := Range(f)
	if !bounded {
		return nil
	}
	n, err := number(v)
	if err != nil {
		return wire.Errorf(wire.BadUsage, "read configuration: %s:%d: %s is %s, not a duration, like \"90s\"", path, line(text, key), key, kindOf(v))
	}
	low, _ := number(parsed(least))
	high, _ := number(parsed(most))
	if n == 0 || n >= low && n <= high {
		return nil
	}
	return wire.Errorf(wire.BadUsage, "read configuration: %s:%d: %s is %v, not from %s to %s", path, line(text, key), key, v, least, most)
}

// Range is the least and the most that a field may be, as people write it.
func Range(f reflect.StructField) (least, most string, bounded bool) {
	return strings.Cut(f.Tag.Get("range"), " ")
}

// parsed is a bound as a file would have it: a whole number, or else a duration.
func parsed(bound string) any {
	if n, err := strconv.ParseInt(bound, 10, 64); err == nil {
		return n
	}
	return bound
}

// number is a value of a file, a duration's in nanoseconds.
func number(v any) (int64, error) {
	if n, ok := v.(int64); ok {
		return n, nil
	}
	text, _ := v.(string)
	d, err := time.ParseDuration(text)
	return int64(d), err
}
