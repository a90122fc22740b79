"""A filter of system calls that a program is held by in addition to its tier: BPF for prctl(PR_SET_SECCOMP).

Taken away is what reaches other processes (sandlock has no process namespace), what holds memory outside the address
space's limit (shared memory, message queues, memfd), what makes new namespaces, sockets and programs, and what a
sandboxed program has no use for but the kernel's past faults lay in. What is denied fails with EPERM; `clone3`, whose
arguments a filter can't see, with ENOSYS, upon which libc takes `clone`.
"""

from __future__ import annotations

import platform
import struct

EPERM, ENOSYS = 1, 38
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NEW_NAMESPACES = 0x7E020080
"""CLONE_NEWUSER, PID, NET, IPC, UTS, CGROUP, NS, TIME."""
X32 = 0x40000000

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""The audit number, and the column below."""

# name: number on x86_64, on aarch64 (None: not there)
CLONE, CLONE3, PRLIMIT64 = (56, 220), (435, 435), (302, 261)
DENIED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # leaving the group that is killed as a whole
    "setsid": (112, 157), "setpgid": (109, 154),
    # other programs, the network
    "execve": (59, 221), "execveat": (322, 281), "socket": (41, 198),
    # what Landlock leaves open: rights, owners, times and notes of files, links, other folders, room on disks
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "readlink": (89, None), "readlinkat": (267, 78), "chdir": (80, 49), "fchdir": (81, 50), "statfs": (137, 43),
    "fstatfs": (138, 44),
    # memory that the limit of the address space does not count
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semctl": (66, 191),
    "semop": (65, 193), "semtimedop": (220, 192), "msgget": (68, 186), "msgctl": (71, 187), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "mq_open": (240, 180), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "mlockall": (151, 230), "mlock": (149, 228), "mlock2": (325, 284),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    # the kernel's own
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162), "syslog": (103, 116), "vhangup": (153, 58),
    "personality": (135, 92), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262), "lookup_dcookie": (212, 18), "nfsservctl": (180, 42), "iopl": (172, None),
    "ioperm": (173, None), "modify_ldt": (154, None), "uselib": (134, None), "ustat": (136, None), "sysfs": (139, None),
    "create_module": (174, None), "get_kernel_syms": (177, None), "query_module": (178, None), "_sysctl": (156, None),
}
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16


def missing(machine: str | None = None) -> str | None:
    """Why there is no filter for this processor; None where there is."""
    machine = machine or platform.machine()
    return None if machine in ARCHITECTURES else f"there is no filter of system calls for {machine}"


def program(machine: str | None = None) -> bytes:
    """The filter as `struct sock_filter[]`, 8 bytes an instruction. Raises KeyError for an unknown processor."""
    audit, column = ARCHITECTURES[machine or platform.machine()]
    deny = _one(RETURN, ERRNO | EPERM)
    code = [_one(LOAD, _ARCHITECTURE), _one(EQUAL, audit, 1, 0), _one(RETURN, KILL), _one(LOAD, _NUMBER),
            _one(AT_LEAST, X32, 0, 1), deny]
    for numbers in DENIED.values():
        if (number := numbers[column]) is not None:
            code += [_one(EQUAL, number, 0, 1), deny]
    code += [_one(EQUAL, CLONE3[column], 0, 1), _one(RETURN, ERRNO | ENOSYS)]
    # clone: its flags decide. prlimit64: of the caller's own process only
    code += [_one(EQUAL, CLONE[column], 0, 4), _one(LOAD, _FIRST_ARGUMENT), _one(ANY_BIT, NEW_NAMESPACES, 0, 1), deny,
             _one(RETURN, ALLOW)]
    code += [_one(EQUAL, PRLIMIT64[column], 0, 3), _one(LOAD, _FIRST_ARGUMENT), _one(EQUAL, 0, 1, 0), deny,
             _one(RETURN, ALLOW)]
    return b"".join(code)


def _one(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)
