package cli

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/internal/confine"
)

// confineForward gives up what a relay does not need once its sockets are open.
func (a *app) confineForward(f forwardFlags, rules []rule) error {
	if f.user == "" {
		return nil
	}
	if err := confine.Drop(f.rights(rules)); err != nil {
		return err
	}
	report, err := confine.Landlock(f.files(rules))
	if errors.Is(err, errors.ErrUnsupported) {
		a.note("running as %s; this kernel has no Landlock, so it may open the files that the user may", f.user)
		return nil
	}
	if err != nil {
		return err
	}
	a.note("running as %s; %s", f.user, report)
	return nil
}

// rights are those that are left then.
func (f *forwardFlags) rights(rules []rule) confine.Options {
	return confine.Options{User: f.user, Keep: f.keptCapabilities(rules)}
}

// keptCapabilities are what rules need of root later on.
func (f *forwardFlags) keptCapabilities(rules []rule) (keep []string) {
	low, transparent := false, false
	for i := range rules {
		low = low || rules[i].Listen.Network.IsIP() && rules[i].Listen.Ports.First < 1024
		transparent = transparent || rules[i].Transparent
	}
	if low && f.file != "" { // a reload may bind another
		keep = append(keep, "net_bind_service")
	}
	if transparent {
		keep = append(keep, "net_raw")
	}
	return keep
}

// files are those that may be opened yet. Directories are named, as a file that is
// written anew is another one.
func (f *forwardFlags) files(rules []rule) (r confine.Rules) {
	r.Read, r.Write = confine.SystemFiles()
	r.Write = append(r.Write, runtimeDir())
	if f.file != "" {
		r.Read = append(r.Read, dirOf(f.file))
	}
	if f.handoff != "" {
		r.Write = append(r.Write, dirOf(f.handoff))
	}
	for i := range rules {
		for _, file := range []string{rules[i].tls.CertFile, rules[i].tls.KeyFile, rules[i].tls.ClientCAFile} {
			if file != "" {
				r.Read = append(r.Read, dirOf(file))
			}
		}
		if l := rules[i].Listen; l.Network == fivetuple.Unix && l.Path[0] != '@' {
			r.Write = append(r.Write, dirOf(l.Path))
		}
	}
	return r
}

func dirOf(file string) string {
	if abs, err := filepath.Abs(file); err == nil {
		file = abs
	}
	if info, err := os.Stat(file); err == nil && info.IsDir() {
		return file
	}
	return filepath.Dir(file)
}
