package upstream

import "strings"

// Names are pools by the server name that a TLS client asks for (SNI, RFC 6066
// section 3): "a.example", or "*.example", which is every name below it. They are in
// lower case, without the root's dot.
type Names map[string]*Pool

// Match is the one of the names that a server name belongs to: itself, else the
// longest "*." that it is below; "" if there is none.
func (n Names) Match(name string) string {
	name = PlainName(name)
	if _, ok := n[name]; ok {
		return name
	}
	for {
		_, above, ok := strings.Cut(name, ".")
		if !ok {
			return ""
		}
		if _, ok := n["*."+above]; ok {
			return "*." + above
		}
		name = above
	}
}

// PlainName is a name as it is compared.
func PlainName(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
