package sockopt

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// parse reads the value text of an option. Its errors say what is wrong with the text, not which text.
func (o *Option) parse(text string) (v value, err error) {
	switch o.Kind {
	case Bool:
		var on bool
		if on, err = parseBool(text); on {
			v.n[0] = 1
		}
	case Int, Bytes, Duration:
		v.n[0], err = o.parseNumber(text)
	case Flags:
		v.n[0], err = o.parseFlags(text)
	case String:
		v.text, err = text, o.checkText(text)
	case Hex:
		v.text, err = o.parseHex(text)
	case Linger:
		v, err = o.parseLinger(text)
	case KeepAlive:
		v, err = parseKeepAlive(text)
	case Interface:
		v.text, err = o.parseInterface(text)
	case PortRange:
		v.n[0], err = parsePortRange(text)
	case Group:
		v, err = o.parseGroup(text)
	default:
		err = ErrReadOnly
	}
	return v, err
}

// format is the inverse of parse.
func (o *Option) format(v value) string {
	switch o.Kind {
	case Bool:
		return formatBool(v.n[0] != 0)
	case Int, Bytes, Duration:
		return o.formatNumber(v.n[0])
	case Flags:
		return o.formatFlags(v.n[0])
	case Hex:
		return hex.EncodeToString([]byte(v.text))
	case Linger:
		if !v.on {
			return "off"
		}
		return o.formatNumber(v.n[0])
	case KeepAlive:
		return formatKeepAlive(v)
	case PortRange:
		return formatPortRange(v.n[0])
	case Group:
		return formatGroup(v)
	}
	return v.text
}

// example is a value for the error that asks for one.
func (o *Option) example() string {
	if o.Kind == Int && len(o.Values) > 0 {
		return o.Values[len(o.Values)-1].Name
	}
	switch o.Kind {
	case Flags:
		return o.Values[0].Name
	case Bytes:
		return "64KiB"
	case Duration, Linger:
		return "5s"
	case String, Interface:
		return "NAME"
	case Hex:
		return "00ff..."
	case PortRange:
		return "40000-41000"
	case Group:
		return "239.1.1.1%eth0"
	}
	return strconv.FormatInt(max(1, o.Min), 10)
}

func parseBool(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "on", "true", "yes", "1":
		return true, nil
	case "off", "false", "no", "0":
		return false, nil
	}
	return false, errors.New("want on or off")
}

func formatBool(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// parseNumber reads a name from Values, or a number in the notation of the kind, and checks its range.
func (o *Option) parseNumber(text string) (int64, error) {
	for _, named := range o.Values {
		if strings.EqualFold(named.Name, text) {
			return named.Value, nil
		}
	}
	var n int64
	var err error
	switch o.Kind {
	case Bytes:
		n, err = parseBytes(text, o.Unit == "bytes/s")
	case Duration, Linger:
		n, err = parseDuration(text, o.Unit)
	default:
		n, err = strconv.ParseInt(text, 0, 64)
	}
	low, high := o.limits()
	switch {
	case errors.Is(err, strconv.ErrRange), err == nil && (n < low || n > high) && !o.hasValue(n):
		return 0, fmt.Errorf("out of range, want %s to %s%s", o.formatNumber(low), o.formatNumber(high), o.valueNames(" or "))
	case errors.Is(err, strconv.ErrSyntax):
		return 0, fmt.Errorf("want a number%s", o.valueNames(" or "))
	}
	return n, err
}

func (o *Option) hasValue(n int64) bool {
	for _, named := range o.Values {
		if named.Value == n {
			return true
		}
	}
	return false
}

// valueNames lists the names there are, after a separator.
func (o *Option) valueNames(separator string) string {
	if len(o.Values) == 0 {
		return ""
	}
	names := make([]string, len(o.Values))
	for i, named := range o.Values {
		names[i] = named.Name
	}
	return separator + strings.Join(names, ", ")
}

func (o *Option) formatNumber(n int64) string {
	for _, named := range o.Values {
		if named.Value == n {
			return named.Name
		}
	}
	switch {
	case o.Unit == "bytes/s":
		return formatBytes(n, "B") + "/s"
	case o.Kind == Bytes:
		return formatBytes(n, "")
	case o.Kind == Duration || o.Kind == Linger:
		return formatDuration(n, o.Unit)
	case o.hex:
		return "0x" + strconv.FormatUint(uint64(n), 16)
	}
	return strconv.FormatInt(n, 10)
}

// sizeUnits are tried in this order, so that a unit comes before those it ends with.
var sizeUnits = []struct {
	suffix string
	factor int64
}{
	{"kib", 1 << 10}, {"mib", 1 << 20}, {"gib", 1 << 30}, {"tib", 1 << 40},
	{"ki", 1 << 10}, {"mi", 1 << 20}, {"gi", 1 << 30}, {"ti", 1 << 40},
	{"kb", 1e3}, {"mb", 1e6}, {"gb", 1e9}, {"tb", 1e12},
	{"k", 1e3}, {"m", 1e6}, {"g", 1e9}, {"t", 1e12}, {"b", 1},
}

// ParseBytes reads a size: 4096, 64KiB, 1.5MiB, 1MB (k, M, G count in thousands; Ki, Mi, Gi in 1024).
func ParseBytes(text string) (int64, error) { return parseBytes(text, false) }

// parseBytes reads a size in bytes, of a rate in bytes or bits per second. It returns strconv's errors for what is no
// number and for what does not fit 64 bits.
func parseBytes(text string, rate bool) (int64, error) {
	number, bits := strings.ToLower(text), int64(1)
	if rate {
		number = strings.TrimSuffix(number, "/s")
		if cut, ok := strings.CutSuffix(number, "bit"); ok {
			number, bits = cut, 8
		}
	}
	factor := int64(1)
	for _, unit := range sizeUnits {
		if cut, ok := strings.CutSuffix(number, unit.suffix); ok {
			number, factor = strings.TrimSpace(cut), unit.factor
			break
		}
	}
	if len(number) > 40 || strings.Trim(number, "0123456789.-") != "" {
		return 0, errors.New("want a size, as in 4096, 64KiB or 1.5MiB")
	}
	r, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, errors.New("want a size, as in 4096, 64KiB or 1.5MiB")
	}
	r.Mul(r, big.NewRat(factor, bits))
	switch {
	case !r.IsInt():
		return 0, errors.New("not a whole number of bytes")
	case !r.Num().IsInt64():
		return 0, strconv.ErrRange
	}
	return r.Num().Int64(), nil
}

// formatBytes prints n in the largest binary unit that divides it.
func formatBytes(n int64, unit string) string {
	for i := 3; i >= 0; i-- {
		if f := sizeUnits[i].factor; n >= f && n%f == 0 {
			return strconv.FormatInt(n/f, 10) + "KMGT"[i:i+1] + "iB"
		}
	}
	return strconv.FormatInt(n, 10) + unit
}

// unitDuration is the length of a kernel unit.
func unitDuration(unit string) time.Duration {
	switch unit {
	case "ms":
		return time.Millisecond
	case "us":
		return time.Microsecond
	}
	return time.Second
}

// parseDuration reads a Go duration, or a plain number of the unit, and returns the number of units.
func parseDuration(text, unit string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err == nil || errors.Is(err, strconv.ErrRange) {
		return n, err
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("want a duration, as in 30s or 1m30s, or a number of %s", unit)
	}
	if d%unitDuration(unit) != 0 {
		return 0, fmt.Errorf("the kernel counts this in whole %s", unit)
	}
	return int64(d / unitDuration(unit)), nil
}

func formatDuration(n int64, unit string) string {
	u := unitDuration(unit)
	if n > math.MaxInt64/int64(u) || n < math.MinInt64/int64(u) {
		return strconv.FormatInt(n, 10)
	}
	s := (time.Duration(n) * u).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func (o *Option) parseFlags(text string) (int64, error) {
	low, high := o.limits()
	if n, err := strconv.ParseInt(text, 0, 64); err == nil {
		if n < low || n > high {
			return 0, fmt.Errorf("out of range, want %d to %d", low, high)
		}
		return n, nil
	}
	if strings.EqualFold(text, "none") {
		return 0, nil
	}
	var n int64
next:
	for name := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '+' || r == '|' }) {
		for _, named := range o.Values {
			if strings.EqualFold(strings.TrimSpace(name), named.Name) {
				n |= named.Value
				continue next
			}
		}
		return 0, fmt.Errorf("want names joined by +, of none%s", o.valueNames(", "))
	}
	if n == 0 {
		return 0, fmt.Errorf("want names joined by +, of none%s", o.valueNames(", "))
	}
	return n, nil
}

// formatFlags names the bits; a bit without a name makes it a number.
func (o *Option) formatFlags(n int64) string {
	var names []string
	rest := n
	for _, named := range o.Values {
		if n&named.Value == named.Value {
			names = append(names, named.Name)
			rest &^= named.Value
		}
	}
	switch {
	case n == 0:
		return "none"
	case rest != 0:
		return "0x" + strconv.FormatUint(uint64(n), 16)
	}
	return strings.Join(names, "+")
}

// checkText refuses what the kernel would cut off and what could not be written in a list.
func (o *Option) checkText(text string) error {
	if int64(len(text)) < o.Min || int64(len(text)) > o.Max {
		return fmt.Errorf("want %d to %d letters", o.Min, o.Max)
	}
	return checkLetters(text)
}

func checkLetters(text string) error {
	for _, r := range text {
		if r <= ' ' || r >= 0x7f || r == ',' {
			return fmt.Errorf("%q is not allowed in a name", r)
		}
	}
	return nil
}

func (o *Option) parseHex(text string) (string, error) {
	raw, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil {
		return "", errors.New("want bytes in hexadecimal")
	}
	if n := int64(len(raw)); n != o.Min && n != o.Max && (n > o.Max || o.Min != 0) {
		return "", fmt.Errorf("%d bytes, want %d or %d", n, o.Min, o.Max)
	}
	return string(raw), nil
}

// parseLinger reads off, or a time. 0 is a time here: it resets the connection.
func (o *Option) parseLinger(text string) (v value, err error) {
	if strings.EqualFold(text, "off") || strings.EqualFold(text, "no") || strings.EqualFold(text, "false") {
		return v, nil
	}
	v.on = true
	v.n[0], err = o.parseNumber(text)
	return v, err
}

// keepAliveParts are the options behind keepalive=IDLE/INTERVAL/COUNT.
var keepAliveParts = [3]string{"keepalive-idle", "keepalive-interval", "keepalive-count"}

func parseKeepAlive(text string) (v value, err error) {
	if v.on, err = parseBool(text); err == nil {
		return v, nil
	}
	parts := strings.Split(text, "/")
	if len(parts) > len(keepAliveParts) || strings.Trim(text, "/") == "" {
		return v, errors.New("want on, off or IDLE[/INTERVAL[/COUNT]], as in 30s/10s/3")
	}
	for i, part := range parts {
		if part == "" {
			continue
		}
		if v.n[i], err = lookup(keepAliveParts[i]).parseNumber(part); err != nil {
			return value{}, fmt.Errorf("%s: %w", keepAliveParts[i], err)
		}
	}
	v.on = true
	return v, nil
}

func formatKeepAlive(v value) string {
	if !v.on || v.n == [3]int64{} {
		return formatBool(v.on)
	}
	var parts []string
	for i, n := range v.n {
		part := ""
		if n != 0 {
			part = lookup(keepAliveParts[i]).formatNumber(n)
		}
		parts = append(parts, part)
	}
	return strings.TrimRight(strings.Join(parts, "/"), "/")
}

// parseInterface reads an interface name, an index, none, or for multicast-if an address of the interface. Whether it
// exists is found out when the option is set.
func (o *Option) parseInterface(text string) (string, error) {
	if strings.EqualFold(text, "none") {
		return "none", nil
	}
	if addr, err := netip.ParseAddr(text); err == nil && o.wire == wireMulticastIf && addr.Is4() {
		return addr.String(), nil
	}
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		if n == 0 {
			return "none", nil
		}
		return strconv.FormatUint(n, 10), nil
	}
	if len(text) < 1 || len(text) > 15 || strings.ContainsAny(text, "/:") {
		return "", errors.New("want the name or the index of an interface, or none")
	}
	return text, checkLetters(text)
}

func parsePortRange(text string) (int64, error) {
	if strings.EqualFold(text, "off") {
		return 0, nil
	}
	low, high, ok := strings.Cut(text, "-")
	if !ok {
		return 0, errors.New("want LOW-HIGH, as in 40000-41000, or off")
	}
	var ports [2]uint64
	for i, part := range []string{low, high} {
		if part == "" {
			continue
		}
		n, err := strconv.ParseUint(part, 10, 16)
		if err != nil || n == 0 {
			return 0, fmt.Errorf("%q is not a port, want 1 to 65535", part)
		}
		ports[i] = n
	}
	switch {
	case ports == [2]uint64{}:
		return 0, errors.New("want LOW-HIGH, as in 40000-41000, or off")
	case ports[1] != 0 && ports[0] > ports[1]:
		return 0, fmt.Errorf("%d is above %d", ports[0], ports[1])
	}
	return int64(ports[1]<<16 | ports[0]), nil
}

func formatPortRange(n int64) string {
	if n == 0 {
		return "off"
	}
	port := func(n int64) string {
		if n == 0 {
			return ""
		}
		return strconv.FormatInt(n, 10)
	}
	return port(n&0xffff) + "-" + port(n>>16&0xffff)
}

// parseGroup reads [SOURCE@]GROUP[%INTERFACE].
func (o *Option) parseGroup(text string) (v value, err error) {
	source, rest, hasSource := strings.Cut(text, "@")
	if !hasSource {
		rest = text
	}
	if hasSource != (o.wire == wireSourceGroup) {
		if hasSource {
			return v, errors.New("no source here, see join-source")
		}
		return v, errors.New("want SOURCE@GROUP[%INTERFACE]")
	}
	group, device, _ := strings.Cut(rest, "%")
	if v.group, err = netip.ParseAddr(group); err != nil || !v.group.IsMulticast() || v.group.Is4In6() {
		return value{}, fmt.Errorf("%q is not a multicast address", group)
	}
	if hasSource {
		v.source, err = netip.ParseAddr(source)
		if err != nil || v.source.Zone() != "" || v.source.Is4() != v.group.Is4() || v.source.IsMulticast() || v.source.Is4In6() {
			return value{}, fmt.Errorf("%q is not a source address for %s", source, group)
		}
	}
	if device != "" {
		if v.text, err = o.parseInterface(device); err != nil {
			return value{}, err
		}
		if v.text == "none" {
			v.text = ""
		}
	}
	return v, nil
}

func formatGroup(v value) string {
	s := v.group.String()
	if v.source.IsValid() {
		s = v.source.String() + "@" + s
	}
	if v.text != "" {
		s += "%" + v.text
	}
	return s
}
