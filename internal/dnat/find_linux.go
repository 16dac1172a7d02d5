package dnat

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

func find(ctx context.Context, ports []Port) ([]Rule, error) {
	rules, err := findOnce(ctx, ports)
	for range 4 {
		if !errors.Is(err, errInterrupted) {
			break
		}
		rules, err = findOnce(ctx, ports)
	}
	if err != nil {
		return nil, fmt.Errorf("read the packet filter's rules: %w", err)
	}
	return rules, nil
}

var errInterrupted = errors.New("the rules changed while they were read")

func findOnce(ctx context.Context, ports []Port) ([]Rule, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, unsupported(err)
	}
	defer c.Close()
	k := kernel{ctx, c}
	chains, err := k.chains()
	if err != nil {
		return nil, err
	}
	w := &walker{elements: k.elements}
	for _, base := range baseChains(chains) {
		if w.tables[base.tableName] == nil {
			if err := w.add(base.tableName, chains, k.rules); err != nil {
				return nil, err
			}
		}
		for _, p := range ports {
			if err := w.walk(base, p); err != nil {
				return nil, err
			}
		}
	}
	return w.found, nil
}

// kernel asks nf_tables.
type kernel struct {
	ctx context.Context
	c   *netlink.Conn
}

// Messages of nf_tables that ask, NFT_MSG_GET*.
const (
	getChain    = unix.NFT_MSG_GETCHAIN
	getRule     = unix.NFT_MSG_GETRULE
	getElements = unix.NFT_MSG_GETSETELEM
)

// dump asks for all there are, of the table and family if there is one, and
// calls each with the attributes of every answer.
func (k kernel) dump(message uint16, family uint8, attributes []netlink.Attribute, each func(family uint8, ad *netlink.AttributeDecoder) error) error {
	if err := k.ctx.Err(); err != nil {
		return err
	}
	body, err := netlink.MarshalAttributes(attributes)
	if err != nil {
		return err
	}
	// struct nfgenmsg (include/uapi/linux/netfilter/nfnetlink.h)
	header := []byte{family, unix.NFNETLINK_V0, 0, 0}
	answers, err := k.c.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | message), Flags: netlink.Request | netlink.Dump},
		Data:   append(header, body...),
	})
	if err != nil {
		return unsupported(err)
	}
	for _, m := range answers {
		if m.Header.Flags&netlink.DumpInterrupted != 0 {
			return errInterrupted
		}
		if len(m.Data) < len(header) {
			return fmt.Errorf("nf_tables message of %d bytes", len(m.Data))
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[len(header):])
		if err != nil {
			return err
		}
		ad.ByteOrder = binary.BigEndian
		if err := errors.Join(each(m.Data[0], ad), ad.Err()); err != nil {
			return err
		}
	}
	return nil
}

// unsupported says what the errors mean: nobody answers on a kernel without nf_tables.
func unsupported(err error) error {
	switch {
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: %w", err, errors.ErrUnsupported)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("CAP_NET_ADMIN is needed: %w", err)
	}
	return err
}

func (k kernel) chains() ([]*chain, error) {
	var all []*chain
	err := k.dump(getChain, unix.NFPROTO_UNSPEC, nil, func(family uint8, ad *netlink.AttributeDecoder) error {
		c := &chain{hook: -1}
		c.family = family
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_CHAIN_TABLE:
				c.table = ad.String()
			case unix.NFTA_CHAIN_NAME:
				c.name = ad.String()
			case unix.NFTA_CHAIN_TYPE:
				c.nat = ad.String() == "nat"
			case unix.NFTA_CHAIN_HOOK:
				ad.Nested(func(ad *netlink.AttributeDecoder) error {
					for ad.Next() {
						switch ad.Type() {
						case unix.NFTA_HOOK_HOOKNUM:
							c.hook = int(ad.Uint32())
						case unix.NFTA_HOOK_PRIORITY:
							c.priority = int32(ad.Uint32())
						}
					}
					return nil
				})
			}
		}
		all = append(all, c)
		return nil
	})
	return all, err
}

// rules adds the rules of a table to its chains.
func (k kernel) rules(t tableName, chains map[string]*chain) error {
	attributes := []netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: append([]byte(t.table), 0)}}
	return k.dump(getRule, t.family, attributes, func(family uint8, ad *netlink.AttributeDecoder) error {
		var table, name string
		var expressions []byte
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_RULE_TABLE:
				table = ad.String()
			case unix.NFTA_RULE_CHAIN:
				name = ad.String()
			case unix.NFTA_RULE_EXPRESSIONS:
				expressions = ad.Bytes()
			}
		}
		// Kernels before 4.6 do not narrow a dump.
		if c := chains[name]; c != nil && (tableName{family, table}) == t {
			c.rules = append(c.rules, expressions)
		}
		return nil
	})
}

func (k kernel) elements(t tableName, set string) ([]element, error) {
	var all []element
	attributes := []netlink.Attribute{
		{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: append([]byte(t.table), 0)},
		{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: append([]byte(set), 0)},
	}
	err := k.dump(getElements, t.family, attributes, func(_ uint8, ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			if ad.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				continue
			}
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					e := element{}
					ad.Nested(e.decode)
					all = append(all, e)
				}
				return nil
			})
		}
		return nil
	})
	return all, err
}

// legacy looks whether the tables of x_tables have one for NAT (ip_tables_names
// of /proc/net, which root alone may read). The module of iptables-nft makes none.
func legacy() bool {
	for _, name := range []string{"ip_tables_names", "ip6_tables_names"} {
		b, err := os.ReadFile("/proc/thread-self/net/" + name)
		for table := range strings.FieldsSeq(string(b)) {
			if err == nil && table == "nat" {
				return true
			}
		}
	}
	return false
}
