package cli

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/fivetuple/fivetuple/internal/statedir"
)

// runtimeDir is where Unix sockets are: $RUNTIME_DIRECTORY, /run/fivetuple for
// root, and the XDG runtime directory for others, or a directory of the user's
// own where temporary files are.
func runtimeDir() string {
	given := givenDir("RUNTIME_DIRECTORY")
	switch {
	case given != "":
		return given
	case os.Getuid() == 0:
		return "/run/fivetuple"
	case os.Getenv("XDG_RUNTIME_DIR") != "":
		return filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "fivetuple")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("fivetuple-%d", os.Getuid()))
}

// givenDir is the first of the directories in a variable of systemd.exec(5), which
// has colons between them; "" if there is none.
func givenDir(variable string) string {
	if dirs := filepath.SplitList(os.Getenv(variable)); len(dirs) > 0 {
		return dirs[0]
	}
	return ""
}

// historyPath is the history of this user.
func historyPath() (string, error) { return statedir.Path("history.db") }
