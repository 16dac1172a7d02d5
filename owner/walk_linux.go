package owner

import "fmt"

// layout is what differs from one kernel to the next: the numbers of types and
// functions, and the places of members in their structs.
type layout struct {
	maxTable int // see below; the same on all

	function uint32 // the kernel calls the program in the place of this one

	loopNew, loopNext, loopEnd, cast  uint32 // functions
	pointerType, fileType, socketType uint32

	taskFiles, taskLeader, taskID              int
	filesTable, tableFiles, tableSize          int
	fileInode, filePrivate                     int
	inodeNumber, inodeMode                     int
	socketFile, socketSock, sockCookie         int
	pidLevel, pidNumbers, upidNumber, upidSize int
}

// readLayout reads the layout of the kernel from its description of its types.
func readLayout(path string) (layout, error) {
	l := layout{maxTable: maxTable}
	functions := map[string]*uint32{
		"bpf_iter_task": &l.function, "bpf_rdonly_cast": &l.cast,
		"bpf_iter_num_new": &l.loopNew, "bpf_iter_num_next": &l.loopNext, "bpf_iter_num_destroy": &l.loopEnd,
	}
	var sockCommon int
	var upidType, unused uint32
	members := []struct {
		name, member string
		number       *uint32
		offset       *int
	}{
		{"task_struct", "files", &unused, &l.taskFiles},
		{"task_struct", "group_leader", &unused, &l.taskLeader},
		{"task_struct", "thread_pid", &unused, &l.taskID},
		{"files_struct", "fdt", &unused, &l.filesTable},
		{"fdtable", "fd", &unused, &l.tableFiles},
		{"fdtable", "max_fds", &unused, &l.tableSize},
		{"file", "f_inode", &l.fileType, &l.fileInode},
		{"file", "private_data", &unused, &l.filePrivate},
		{"inode", "i_ino", &unused, &l.inodeNumber},
		{"inode", "i_mode", &unused, &l.inodeMode},
		{"socket", "file", &l.socketType, &l.socketFile},
		{"socket", "sk", &unused, &l.socketSock},
		{"sock", "__sk_common", &unused, &sockCommon},
		{"sock_common", "skc_cookie", &unused, &l.sockCookie},
		{"pid", "level", &unused, &l.pidLevel},
		{"pid", "numbers", &unused, &l.pidNumbers},
		{"upid", "nr", &upidType, &l.upidNumber},
		{"list_head", "next", &l.pointerType, new(int)}, // see program
	}
	var structNames, functionNames []string
	for _, m := range members {
		structNames = append(structNames, m.name)
	}
	for name := range functions {
		functionNames = append(functionNames, name)
	}
	k, err := openKernelTypes(path, structNames, functionNames)
	if err != nil {
		return layout{}, err
	}
	defer k.unmap()
	for name, number := range functions {
		if *number = k.funcs[name]; *number == 0 {
			return layout{}, fmt.Errorf("this kernel has no function %s", name)
		}
	}
	for _, m := range members {
		if *m.number, *m.offset, err = k.member(m.name, m.member); err != nil {
			return layout{}, err
		}
	}
	l.sockCookie += sockCommon
	l.upidSize = k.size(upidType)
	return l, nil
}

// maxTable is the largest table of descriptors that the program walks through, in
// some tens of milliseconds: the kernel may not be able to give the processor away
// meanwhile. Larger ones are read from /proc.
const maxTable = 1 << 20

// program is called for each thread with the context {meta, task}, 8 bytes each. It
// walks through the table of descriptors and writes a record for each socket, or
// for those with the inodes that stand at the head of the area, if there are any.
//
// No lock is taken and no reference: that is ten times faster than the kernel's
// own iterator over files, which spends its time on the counter in each file. Memory
// can be freed or put to another use meanwhile, but to read it is safe:
// where nothing is mapped the program gets 0. What it read counts only if
// afterwards the descriptor still leads to the same file and the socket back to it,
// and the thread has the table that was walked. If not the thread is to be looked at in
// another way.
//
// Threads that share the table of the first thread of their process are passed over.
func (l layout) program(area, capacity int) []instruction {
	const (
		ctxTask = 8

		// What lies on the stack.
		loop, files, table, thread, pid, before, file, inode, cookie = -8, -16, -24, -28, -32, -40, -48, -56, -64

		slots, task, out, fd = r6, r7, r8, r9 // kept over calls

		// bpf-helpers(7)
		probeReadKernel, getCurrentTask = 113, 158
	)
	p := newAssembler()
	// cast lets r0 point to a struct at the address in r1.
	cast := func(to uint32) {
		p.set(r2, int(to))
		p.callKernel(l.cast)
	}
	// readSlot reads the pointer at the number fd of the slots into r1.
	readSlot := func() {
		p.move(r1, fd)
		p.multiply(r1, 8)
		p.add(r1, slots)
		cast(l.pointerType) // a struct that begins with a pointer
		p.load64(r1, r0, 0)
	}
	loopArgument := func() {
		p.move(r1, r10)
		p.addConstant(r1, loop)
	}
	// newRecord lets r1 point to the record with the number in r1.
	newRecord := func(full string) {
		p.move(r2, r1)
		p.addConstant(r2, 1)
		p.store64(out, 0, r2)
		p.ifAtLeast(r1, capacity, full)
		p.multiply(r1, recordSize)
		p.add(r1, out)
		p.addConstant(r1, areaHeader)
		p.load64(r2, r10, files)
		p.store64(r1, 0, r2)
		p.load32(r2, r10, pid)
		p.store32(r1, 16, r2)
		p.load32(r2, r10, thread)
		p.store32(r1, 20, r2)
	}

	p.load64(task, r1, ctxTask)
	p.ifZero(task, "end") // it is called once more, after the last
	p.load64(r1, task, l.taskFiles)
	p.ifZero(r1, "end")
	p.load64(r2, task, l.taskLeader)
	p.ifEqual(r2, task, "own")
	p.load64(r2, r2, l.taskFiles)
	p.ifEqual(r2, r1, "end")
	p.label("own")
	p.store64(r10, files, r1)
	p.load64(r1, r1, l.filesTable)
	p.ifZero(r1, "end")
	p.store64(r10, table, r1)
	p.load64(slots, r1, l.tableFiles)
	p.load32(fd, r1, l.tableSize) // the size, until the loop begins

	// A thread has an id in each PID namespace from the first one down to its own.
	// Which of them counts is how deep the namespace of the reader is.
	p.call(getCurrentTask)
	p.load64(r1, r0, l.taskID)
	p.load32(out, r1, l.pidLevel)
	p.and(out, 31) // it is less than MAX_PID_NS_LEVEL, 32
	p.multiply(out, l.upidSize)
	p.move(r3, task)
	for _, at := range []int{thread, pid} {
		p.load64(r3, r3, l.taskID)
		p.add(r3, out)
		p.addConstant(r3, l.pidNumbers+l.upidNumber)
		p.set(r2, 4)
		p.move(r1, r10)
		p.addConstant(r1, at)
		p.call(probeReadKernel) // which writes 0 if it fails
		p.load64(r3, task, l.taskLeader)
	}

	p.setToMap(out, area)
	p.load64(r1, out, 0)
	p.store64(r10, before, r1)
	p.ifAtLeast(fd, l.maxTable+1, "again")
	loopArgument()
	p.set(r2, 0)
	p.move(r3, fd)
	p.callKernel(l.loopNew)

	p.label("next")
	loopArgument()
	p.callKernel(l.loopNext)
	p.ifZero(r0, "done")
	p.load32(fd, r0, 0)
	readSlot()
	p.ifZero(r1, "next")
	p.store64(r10, file, r1)
	cast(l.fileType)
	p.load64(r1, r0, l.fileInode)
	p.load64(r2, r1, l.inodeNumber)
	p.load64(r3, out, areaWanted)
	p.ifZero(r3, "wanted") // none: all are
	for i := range wantedFew {
		p.load64(r3, out, areaWanted+8*(1+i))
		p.ifEqual(r2, r3, "wanted")
	}
	p.jump("next")
	p.label("wanted")
	p.store64(r10, inode, r2)
	p.load16(r2, r1, l.inodeMode)
	p.and(r2, 0o170000)           // S_IFMT
	p.ifNot(r2, 0o140000, "next") // S_IFSOCK; sockets in file systems are such too, but lead to no file
	p.load64(r1, r0, l.filePrivate)
	cast(l.socketType)
	p.load64(r1, r0, l.socketFile)
	p.load64(r2, r10, file)
	p.ifUnequal(r1, r2, "next")
	p.load64(r1, r0, l.socketSock)
	p.set(r2, 0)
	p.ifZero(r1, "no sock")
	p.load64(r2, r1, l.sockCookie)
	p.label("no sock")
	p.store64(r10, cookie, r2)
	readSlot()
	p.load64(r2, r10, file)
	p.ifUnequal(r1, r2, "next")
	p.load64(r1, out, 0)
	newRecord("next")
	p.load64(r2, r10, cookie)
	p.store64(r1, 8, r2)
	p.store32(r1, 24, fd)
	p.load64(r2, r10, inode)
	p.store32(r1, 28, r2)
	p.jump("next")

	p.label("done")
	loopArgument()
	p.callKernel(l.loopEnd)
	p.load64(r1, r10, files)
	p.load64(r2, task, l.taskFiles)
	p.ifUnequal(r1, r2, "again")
	p.load64(r1, r1, l.filesTable)
	p.load64(r2, r10, table)
	p.ifEqual(r1, r2, "end")
	p.label("again")
	p.load64(r1, r10, before)
	newRecord("end")
	p.set(r2, 0)
	p.store32(r1, 28, r2)
	p.label("end")
	p.set(r0, 0)
	p.exit()
	return p.finish()
}
