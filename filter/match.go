package filter

import (
	"strings"
)

// check is an expanded tree made ready to run: the tests are made once, so
// that matching allocates nothing.
type check struct {
	op    nodeOp
	kids  []check
	field Field
	test  func(Value) bool
}

func newCheck(n *node) check {
	if n.op == opTerm {
		return check{op: opTerm, field: n.term.field, test: n.term.test()}
	}
	c := check{op: n.op, kids: make([]check, len(n.kids))}
	for i, kid := range n.kids {
		c.kids[i] = newCheck(kid)
	}
	return c
}

func (c *check) match(s Subject) bool {
	switch c.op {
	case opAnd:
		for i := range c.kids {
			if !c.kids[i].match(s) {
				return false
			}
		}
		return true
	case opOr:
		for i := range c.kids {
			if c.kids[i].match(s) {
				return true
			}
		}
		return false
	case opNot:
		return !c.kids[0].match(s)
	}
	return s.Any(c.field, c.test)
}

// test makes the function that decides one value.
func (t term) test() func(Value) bool {
	if t.rel == present {
		return func(Value) bool { return true }
	}
	if t.rel != equal {
		return t.testOrder()
	}
	tests := make([]func(Value) bool, len(t.values))
	for i, v := range t.values {
		tests[i] = v.test(t.field)
	}
	if len(tests) == 1 {
		return tests[0]
	}
	return func(v Value) bool {
		for _, test := range tests {
			if test(v) {
				return true
			}
		}
		return false
	}
}

func (t term) testOrder() func(Value) bool {
	n := t.values[0].low
	switch t.rel {
	case less:
		return func(v Value) bool { return v.Number < n }
	case lessEqual:
		return func(v Value) bool { return v.Number <= n }
	case greater:
		return func(v Value) bool { return v.Number > n }
	}
	return func(v Value) bool { return v.Number >= n }
}

func (w value) test(field Field) func(Value) bool {
	switch fields[field].kind {
	case kindSet:
		return func(v Value) bool { return v.Number < 32 && w.set>>v.Number&1 != 0 }
	case kindAddr:
		return func(v Value) bool {
			a := v.Addr.Unmap()
			return (w.zone == "" || a.Zone() == w.zone) && w.prefix.Contains(a.WithZone(""))
		}
	case kindMark:
		return func(v Value) bool { return v.Number&w.mask == w.low }
	case kindText:
		return w.testText(field)
	case kindNamed:
		if w.text != "" {
			return func(v Value) bool { return glob(w.text, v.Text) }
		}
	case kindCgroup:
		return func(v Value) bool {
			if w.low != 0 && v.Number != 0 {
				return v.Number == w.low
			}
			return v.Text != "" && glob(w.text, v.Text)
		}
	}
	return func(v Value) bool { return w.low <= v.Number && v.Number <= w.high }
}

const (
	maxCommand     = 15 // TASK_COMM_LEN without the NUL: the kernel cuts names of programs, proc_pid_comm(5)
	minContainerID = 4  // what is shorter is a name
)

func (w value) testText(field Field) func(Value) bool {
	wild := strings.ContainsAny(w.text, "*?")
	switch {
	case field == FieldCommand && !wild && len(w.text) > maxCommand:
		return func(v Value) bool { return v.Text == w.text || v.Text == w.text[:maxCommand] }
	case field == FieldUnit && !strings.Contains(w.text, "."):
		service := w.text + ".service"
		return func(v Value) bool { return glob(w.text, v.Text) || glob(service, v.Text) }
	case field == FieldContainer && !wild && isHex(w.text) && len(w.text) >= minContainerID:
		return func(v Value) bool { return v.Text == w.text || isHex(v.Text) && strings.HasPrefix(v.Text, w.text) }
	case wild:
		return func(v Value) bool { return glob(w.text, v.Text) }
	}
	return func(v Value) bool { return v.Text == w.text }
}

func isHex(s string) bool {
	for i := range len(s) {
		if !strings.Contains("0123456789abcdef", s[i:i+1]) {
			return false
		}
	}
	return s != ""
}

// glob says whether the pattern is all of text; * stands for any bytes, ? for one.
func glob(pattern, text string) bool {
	star, mark := -1, 0 // where the last * was, and what it has taken so far
	p, t := 0, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, t
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[t]):
			p++
			t++
		case star >= 0:
			mark++
			p, t = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
