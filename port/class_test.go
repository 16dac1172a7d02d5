package port_test

import (
	"testing"

	"github.com/fivetuple/fivetuple/port"
)

func TestClassOfFollowsRFC6335(t *testing.T) {
	for _, test := range []struct {
		port uint16
		want port.Class
		name string
	}{
		{0, port.ClassSystem, "system"},
		{1023, port.ClassSystem, "system"},
		{1024, port.ClassUser, "user"},
		{49151, port.ClassUser, "user"},
		{49152, port.ClassDynamic, "dynamic"},
		{65535, port.ClassDynamic, "dynamic"},
	} {
		got := port.ClassOf(test.port)
		if got != test.want || got.String() != test.name {
			t.Errorf("ClassOf(%d) = %v, want %s", test.port, got, test.name)
		}
	}
}

func TestClassesCoverEveryPortOnce(t *testing.T) {
	next := 0
	for _, c := range port.Classes() {
		first, last := c.Range()
		if int(first) != next {
			t.Errorf("class %v starts at %d, want %d", c, first, next)
		}
		for p := int(first); p <= int(last); p++ {
			if got := port.ClassOf(uint16(p)); got != c {
				t.Fatalf("ClassOf(%d) = %v, want %v by its range", p, got, c)
			}
		}
		next = int(last) + 1
	}
	if next != 65536 {
		t.Errorf("the classes end at %d, want 65535", next-1)
	}
}

func TestClassHasTheOtherNameOfRFC6335(t *testing.T) {
	for class, want := range map[port.Class]string{
		port.ClassSystem: "well-known", port.ClassUser: "registered", port.ClassDynamic: "private", 9: "class 9",
	} {
		if got := class.Synonym(); got != want {
			t.Errorf("Class(%d).Synonym() = %q, want %q", class, got, want)
		}
	}
}
