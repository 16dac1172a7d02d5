package table

import (
	"context"
	"net/netip"

	"github.com/fivetuple/fivetuple"
)

// end names one end of a connection within the machine: of an IP socket its
// addresses, of a Unix socket its inode.
type end struct {
	protocol      fivetuple.Network
	netns         uint64
	local, remote netip.AddrPort
	inode         uint32
}

func (r *Row) end() end {
	if r.Protocol.IsUnix() { // no two of the machine have the same inode
		return end{inode: r.Inode}
	}
	return end{protocol: r.Protocol, netns: r.netns(), local: r.Local, remote: r.Remote}
}

// farEnd names the other end; false if there can be none here.
func (r *Row) farEnd() (end, bool) {
	if r.Protocol.IsUnix() {
		return end{inode: r.PeerInode}, r.PeerInode != 0
	}
	return end{protocol: r.Protocol, netns: r.netns(), local: r.Remote, remote: r.Local}, r.Remote.IsValid()
}

// peers finds who holds the other ends of connections whose both ends are in
// the namespaces of the query. What the query narrowed out is read for that.
func (r *Reader) peers(ctx context.Context, q Query, t *Table) error {
	all := t
	if q.Filter != nil || q.States != 0 || len(q.Protocols) > 0 {
		var err error
		if all, err = r.Read(ctx, Query{Namespaces: q.Namespaces}); err != nil {
			return err
		}
	}
	at := make(map[end]*Row, len(all.Rows))
	for i := range all.Rows {
		if row := &all.Rows[i]; row.Remote.IsValid() || row.Protocol.IsUnix() {
			at[row.end()] = row
			if len(q.Namespaces) > 1 && row.Remote.IsValid() {
				anywhere := row.end()
				anywhere.netns = 0
				if _, twice := at[anywhere]; twice { // two hosts with the same addresses: no telling
					row = nil
				}
				at[anywhere] = row
			}
		}
	}
	others := &Table{}
	var of []*Row
	for i := range t.Rows {
		far, ok := t.Rows[i].farEnd()
		if !ok {
			continue
		}
		peer := at[far]
		if peer == nil && !far.local.Addr().IsLoopback() {
			far.netns = 0
			peer = at[far]
		}
		if peer != nil {
			others.Rows, of = append(others.Rows, *peer), append(of, &t.Rows[i])
		}
	}
	if err := r.join(ctx, others); err != nil {
		return err
	}
	t.Unreadable = max(t.Unreadable, others.Unreadable)
	for i, row := range of {
		row.Peers, row.PeerName = others.Rows[i].Owners, others.Rows[i].Name
	}
	return nil
}
