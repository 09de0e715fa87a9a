package argv

import (
	"slices"
	"testing"
)

func TestRewrite(t *testing.T) {
	f := Flags{
		Long:  map[string]bool{"json": true, "id": true, "app": true, "no-local": true, "label": true},
		Short: map[string]string{"a": "app", "v": "verbose", "p": "project"},
	}
	for _, c := range []struct{ in, want []string }{
		{[]string{"-json"}, []string{"--json"}},
		{[]string{"-id=x"}, []string{"--id=x"}},
		{[]string{"-id", "x"}, []string{"--id", "x"}},
		{[]string{"-label=k=v"}, []string{"--label=k=v"}},
		{[]string{"-no-local"}, []string{"--no-local"}},
		{[]string{"--json", "--id=x"}, []string{"--json", "--id=x"}},
		{[]string{"-a", "web"}, []string{"-a", "web"}},
		{[]string{"-a=web"}, []string{"--app=web"}},
		{[]string{"-a="}, []string{"--app="}},
		{[]string{"-app=web"}, []string{"--app=web"}},
		{[]string{"-v", "-vv", "-pshop"}, []string{"-v", "-vv", "-pshop"}},
		{[]string{"-unknown", "-", "", "-="}, []string{"-unknown", "-", "", "-="}},
		{[]string{"run", "-json", "--", "ls", "-json", "-id=x"}, []string{"run", "--json", "--", "ls", "-json", "-id=x"}},
		{[]string{"--", "-json", "--", "-id"}, []string{"--", "-json", "--", "-id"}},
		{nil, nil},
	} {
		given := slices.Clone(c.in)
		if got := f.Rewrite(c.in); !slices.Equal(got, c.want) {
			t.Errorf("Rewrite(%q) = %q, want %q", c.in, got, c.want)
		}
		if !slices.Equal(given, c.in) {
			t.Errorf("Rewrite changed its argument %q into %q", given, c.in)
		}
	}
}

func TestSplit(t *testing.T) {
	before, behind, found := Split([]string{"run", "--dir", "x", "--", "a", "--", "b"})
	if !found || !slices.Equal(before, []string{"run", "--dir", "x"}) || !slices.Equal(behind, []string{"a", "--", "b"}) {
		t.Errorf("Split = %q, %q, %v", before, behind, found)
	}
	if before, behind, found := Split([]string{"run"}); found || len(before) != 1 || behind != nil {
		t.Errorf("Split without -- = %q, %q, %v", before, behind, found)
	}
}

func TestValues(t *testing.T) {
	for _, c := range []struct{ in, want []string }{
		{[]string{"--token", "x", "job", "--store", "y", "--json"}, []string{"x", "y"}},
		{[]string{"-token", "x", "-store", "y"}, []string{"x", "y"}},
		{[]string{"--token=x", "-token=y=", "--token="}, []string{"x", "y=", ""}},
		{[]string{"--token-file", "f", "--no-token", "x", "token", "y", "---token", "z", "-t", "v", "--id=--token"}, nil},
		{[]string{"run", "--token", "x", "--", "--token", "y"}, []string{"x"}},
		{[]string{"--token", "--token", "x"}, []string{"--token", "x"}},
		{[]string{"--token", "-x"}, []string{"-x"}},
		{[]string{"--token", "--", "x"}, nil},
		{[]string{"--token"}, nil},
		{nil, nil},
	} {
		if got := Values(c.in, "token", "store"); !slices.Equal(got, c.want) {
			t.Errorf("Values(%q) = %q, want %q", c.in, got, c.want)
		}
	}
}
