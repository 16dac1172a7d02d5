package table

import (
	"net"
	"time"

	"github.com/fivetuple/fivetuple"
	"github.com/fivetuple/fivetuple/filter"
	"github.com/fivetuple/fivetuple/owner"
)

var _ filter.Subject = (*Row)(nil)

// Any implements [filter.Subject].
func (r *Row) Any(f filter.Field, test func(filter.Value) bool) bool {
	number := func(n uint64) bool { return test(filter.Value{Number: n}) }
	switch f {
	case filter.FieldProtocol:
		return number(uint64(r.Protocol))
	case filter.FieldFamily:
		return r.anyFamily(test)
	case filter.FieldState:
		return number(uint64(r.State))
	case filter.FieldLocalAddr:
		return r.Local.IsValid() && test(filter.Value{Addr: r.Local.Addr()})
	case filter.FieldRemoteAddr:
		return r.Remote.IsValid() && test(filter.Value{Addr: r.Remote.Addr()})
	case filter.FieldLocalPort:
		return r.hasPorts() && number(uint64(r.Local.Port()))
	case filter.FieldRemotePort:
		return r.hasPorts() && r.Remote.IsValid() && number(uint64(r.Remote.Port()))
	case filter.FieldName:
		return r.Name != "" && test(filter.Value{Text: r.Name})
	case filter.FieldPeerName:
		return r.PeerName != "" && test(filter.Value{Text: r.PeerName})
	case filter.FieldDevice:
		return r.Interface != 0 && test(filter.Value{Number: uint64(r.Interface), Text: deviceName(r.Interface)})
	case filter.FieldMark:
		return r.Protocol.IsInet() && number(uint64(r.Mark))
	case filter.FieldCgroup:
		return r.Cgroup != 0 && number(r.Cgroup)
	case filter.FieldCookie:
		return r.Cookie != 0 && number(r.Cookie)
	case filter.FieldInode:
		return r.Inode != 0 && number(uint64(r.Inode))
	case filter.FieldNetns:
		return r.Namespace != nil && test(filter.Value{Number: r.Namespace.ID, Text: r.Namespace.Name})
	case filter.FieldUser:
		return r.UIDKnown() && number(uint64(r.UID))
	case filter.FieldUnit:
		return r.Unit != "" && test(filter.Value{Text: r.Unit})
	case filter.FieldContainer:
		return r.Container != "" && test(filter.Value{Text: r.Container})
	case filter.FieldPID, filter.FieldCommand:
		return anyOwner(r.Owners, f, test)
	case filter.FieldSendQueue:
		return r.State != fivetuple.StateListen && number(uint64(r.SendQueue))
	case filter.FieldRecvQueue:
		return number(uint64(r.RecvQueue))
	case filter.FieldAge:
		return !r.Opened.IsZero() && number(uint64(max(0, time.Since(r.Opened))))
	case filter.FieldRate:
		return r.Rate.Known && number(r.Rate.In+r.Rate.Out)
	case filter.FieldDrops:
		return number(uint64(r.Memory.Drops))
	}
	return r.anyInfo(f, number)
}

func (r *Row) hasPorts() bool {
	return r.Protocol.IsInet() && r.Protocol != fivetuple.Raw && r.Protocol != fivetuple.ICMP
}

// anyFamily takes a socket on [::] that is not IPV6_V6ONLY for one of both families.
func (r *Row) anyFamily(test func(filter.Value) bool) bool {
	if !r.Local.IsValid() {
		return false
	}
	a := r.Local.Addr()
	v4 := a.Is4() || a.IsUnspecified() && !r.V6Only && r.hasPorts()
	return v4 && test(filter.Value{Number: 4}) || a.Is6() && test(filter.Value{Number: 6})
}

func anyOwner(owners []owner.Holder, f filter.Field, test func(filter.Value) bool) bool {
	for i := range owners {
		v := filter.Value{Number: uint64(owners[i].PID)}
		if f == filter.FieldCommand {
			v = filter.Value{Text: owners[i].Command}
		}
		if test(v) {
			return true
		}
	}
	return false
}

func (r *Row) anyInfo(f filter.Field, number func(uint64) bool) bool {
	if r.Info == nil || r.State == fivetuple.StateListen { // where TCP_INFO means other things
		return false
	}
	switch f {
	case filter.FieldRTT:
		return r.Info.RTT != 0 && number(uint64(r.Info.RTT))
	case filter.FieldRetrans:
		return number(uint64(r.Info.TotalRetrans))
	case filter.FieldCwnd:
		return number(uint64(r.Info.SndCwnd))
	case filter.FieldSent:
		return number(r.Info.BytesAcked)
	case filter.FieldReceived:
		return number(r.Info.BytesReceived)
	}
	return false
}

func deviceName(index uint32) string {
	if i, err := net.InterfaceByIndex(int(index)); err == nil {
		return i.Name
	}
	return ""
}
