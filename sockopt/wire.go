package sockopt

// wire is the form of a value in setsockopt and getsockopt, where the kind alone does not say it: an int for numbers,
// the bare bytes for text.
type wire uint8

const (
	wirePlain       wire = iota
	wireBuffer           // int; doubled by the kernel, with a FORCE twin
	wireUint64           // 64 bits
	wireTimeval          // struct timeval
	wireLinger           // struct linger
	wireIndex            // int, an interface index
	wireNetIndex         // int, an interface index in network byte order
	wireMulticastIf      // set struct ip_mreqn, read struct in_addr
	wireSourceGroup      // struct group_source_req; other groups are struct group_req
	wireErrno            // int, an error number
	wireCred             // struct ucred
	wireMemInfo          // array of 32 bit counters
	wireGroups           // array of gid_t
	wireTCPInfo          // struct tcp_info
)
