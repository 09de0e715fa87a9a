package config

import "reflect"

// Keep prepares a configuration that was read while the program runs. running
// and fresh point to the same kind of struct. In fresh, each key whose field is
// tagged `reload:"restart"` is set back to what runs, so that fresh is what can
// hold from now on; changed are the keys that differ and can, restart those that
// differ and cannot.
func Keep(running, fresh any) (changed, restart []string) {
	changed, restart = []string{}, []string{} // lists also where they are empty, for JSON
	keep(reflect.ValueOf(running).Elem(), reflect.ValueOf(fresh).Elem(), "", &changed, &restart)
	return changed, restart
}

func keep(running, fresh reflect.Value, prefix string, changed, restart *[]string) {
	for f, was := range running.Fields() {
		name, is := keyName(f), fresh.FieldByIndex(f.Index)
		switch {
		case name == "":
		case f.Type.Kind() == reflect.Struct:
			keep(was, is, prefix+name+".", changed, restart)
		case reflect.DeepEqual(was.Interface(), is.Interface()):
		case f.Tag.Get("reload") == "restart":
			is.Set(was)
			*restart = append(*restart, prefix+name)
		default:
			*changed = append(*changed, prefix+name)
		}
	}
}
