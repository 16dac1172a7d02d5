package claims

import "testing"

func FuzzDecode(f *testing.F) {
	for _, change := range []func(*unit){
		func(*unit) {},
		func(u *unit) { u[0] = 2 },          // neither free nor in use
		func(u *unit) { u[2] = 0 },          // IPv4 mapped into IPv6
		func(u *unit) { u[4], u[5] = 0, 0 }, // no port
		func(u *unit) { u[16] = 1 },         // not IPv4, though it says so
	} {
		u, err := claim(1).encode()
		if err != nil {
			f.Fatal(err)
		}
		change(&u)
		f.Add(u[:])
	}
	f.Fuzz(func(t *testing.T, record []byte) {
		var u unit
		copy(u[:], record)
		u.decode()
		readHeader(&u, len(record))
		// Few would get past the checksum by chance.
		putChecksum(&u)
		c, ok := u.decode()
		if !ok {
			return
		}
		if u[0] != 1 || !c.At.IsValid() || c.At.Port() == 0 || c.At.Addr().Zone() != "" {
			t.Errorf("record %x: got %+v", u, c)
		}
		again, err := c.encode()
		if err != nil {
			t.Fatalf("record %x: %+v: %v", u, c, err)
		}
		if got, ok := again.decode(); !ok || got != c {
			t.Errorf("record %x: got %+v, %v, want %+v", again, got, ok, c)
		}
	})
}
