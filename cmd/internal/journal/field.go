package journal

import (
	"encoding"
	"encoding/binary"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// longest is the longest name of a field that the journal takes.
const longest = 64

// clean makes a key part of a field's name: capitals, digits, underscores.
func clean(key string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
}

// appendField writes one field. A value of several lines has its length
// before it, so nothing in it can be taken for another field.
func appendField(b []byte, name, value string) []byte {
	if len(name) > longest {
		name = name[:longest]
	}
	b = append(b, name...)
	if strings.IndexByte(value, '\n') < 0 {
		b = append(b, '=')
	} else {
		b = append(b, '\n')
		b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
	}
	b = append(b, value...)
	return append(b, '\n')
}

// appendAttr writes an attribute, and of a group all that is in it.
func appendAttr(b []byte, prefix string, a slog.Attr) []byte {
	name := prefix + clean(a.Key)
	if a.Value.Kind() == slog.KindAny {
		if f, ok := a.Value.Any().(Fielder); ok {
			for _, inner := range fieldsOf(f) {
				b = appendAttr(b, name+"_", inner)
			}
		}
	}
	v := a.Value.Resolve()
	switch {
	case a.Key == "" && v.Equal(slog.Value{}):
		return b // slog's rule: such an attribute is none
	case v.Kind() != slog.KindGroup:
		return appendField(b, name, text(v))
	case a.Key == "":
		name = prefix // slog's rule: the group's attributes are its parent's
	default:
		name += "_"
	}
	for _, inner := range v.Group() {
		b = appendAttr(b, name, inner)
	}
	return b
}

// fieldsOf is what f says, and nothing where it panics, as the pointer does
// that is nil.
func fieldsOf(f Fielder) (attrs []slog.Attr) {
	defer func() {
		if recover() != nil {
			attrs = nil
		}
	}()
	return f.LogFields()
}

// text is a value as slog's text handler shows it, but for quotes. A value
// that panics must not take the program with it.
func text(v slog.Value) (s string) {
	defer func() {
		if p := recover(); p != nil {
			s = fmt.Sprintf("!PANIC: %v", p)
		}
	}()
	switch v.Kind() {
	case slog.KindString:
		return v.String()
	case slog.KindTime:
		return v.Time().Format(time.RFC3339Nano)
	case slog.KindAny:
		switch x := v.Any().(type) {
		case encoding.TextMarshaler:
			b, err := x.MarshalText()
			if err != nil {
				return "!ERROR:" + err.Error()
			}
			return string(b)
		case []byte:
			return string(x)
		default:
			return fmt.Sprintf("%+v", x)
		}
	}
	return v.String()
}
