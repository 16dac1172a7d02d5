package doctor

import "testing"

func TestLevelsAreWrittenAndReadByName(t *testing.T) {
	for level := OK; level <= Problem; level++ {
		text, _ := level.MarshalText()
		var back Level
		if err := back.UnmarshalText(text); err != nil || back != level {
			t.Errorf("%s: got %v, %v", text, back, err)
		}
	}
	var l Level
	if err := l.UnmarshalText([]byte("bad")); err == nil {
		t.Error(`"bad" was taken for a level`)
	}
	if got := Level(9).String(); got != "level(9)" {
		t.Errorf("got %q", got)
	}
}
