"""A function run in a forked child whose every write below a folder is seen, and which is killed, or told of an error, at one of them.

ptrace(2) and a seccomp filter (SECCOMP_RET_TRACE), both through ctypes: the kernel stops the child, its threads and its children
only at the system calls that change files, and of these only at the kinds that a fault is about, so what else is done costs
nothing. Linux on x86_64 and aarch64.
Knows nothing about what the function does, nor what should be left when it dies.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple


class Call(NamedTuple):
    """A system call that changes something below the folder."""

    kind: str
    """Its name; those that differ in how a path is given are one kind: `rename` is renameat2, too."""
    path: str
    """What it is about, absolute."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at which call."""

    kind: str
    """Of the calls of this kind …"""
    nth: int
    """… this one, from 1: counted for each kind by itself, for what one kind does must not move the points of another."""
    how: str = "kill"
    """`kill`: before the call. `torn`: half of what is to be written is, then the kill. Else the name of an error, `ENOSPC`."""
    lasting: bool = False
    """Whether each later call that wants room or writes meets the error too, as on a disk that stays full."""


@dataclass(slots=True)
class Traced:
    """What became of the child."""

    status: int
    """Its exit code; negative: the signal that it died of."""
    calls: list[Call] = field(default_factory=list)
    """All calls that were seen, in their order: without a fault of every kind, else of those kinds that it is about."""
    hit: Call | None = None
    """The call at which the fault happened; None: it was not reached."""
    late: bool = False
    """Whether it had to be killed because its time was over."""


# kind, and where the path is: `fd N`, `path N`, `at N` (folder's descriptor in argument N, path in the next one)
_CALLS: dict[str, dict[int, tuple[str, str]]] = {
    "x86_64": {
        1: ("write", "fd 0"), 18: ("pwrite64", "fd 0"), 20: ("writev", "fd 0"), 296: ("pwritev", "fd 0"), 40: ("sendfile", "fd 0"),
        326: ("copy_file_range", "fd 2"), 74: ("fsync", "fd 0"), 75: ("fdatasync", "fd 0"), 77: ("ftruncate", "fd 0"),
        76: ("truncate", "path 0"), 285: ("fallocate", "fd 0"), 3: ("close", "fd 0"), 2: ("open", "path 0"), 257: ("open", "at 0"),
        82: ("rename", "path 1"), 264: ("rename", "at 2"), 316: ("rename", "at 2"), 86: ("link", "path 1"), 265: ("link", "at 2"),
        87: ("unlink", "path 0"), 263: ("unlink", "at 0"), 84: ("rmdir", "path 0"), 83: ("mkdir", "path 0"), 258: ("mkdir", "at 0"),
        90: ("chmod", "path 0"), 91: ("chmod", "fd 0"), 268: ("chmod", "at 0"),
    },
    "aarch64": {
        64: ("write", "fd 0"), 68: ("pwrite64", "fd 0"), 66: ("writev", "fd 0"), 70: ("pwritev", "fd 0"), 71: ("sendfile", "fd 0"),
        285: ("copy_file_range", "fd 2"), 82: ("fsync", "fd 0"), 83: ("fdatasync", "fd 0"), 46: ("ftruncate", "fd 0"),
        45: ("truncate", "path 0"), 47: ("fallocate", "fd 0"), 57: ("close", "fd 0"), 56: ("open", "at 0"),
        38: ("rename", "at 2"), 276: ("rename", "at 2"), 37: ("link", "at 2"), 35: ("unlink", "at 0"), 34: ("mkdir", "at 0"),
        53: ("chmod", "at 0"), 52: ("chmod", "fd 0"),
    },
}  # fmt: skip
_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*
_FLAGS = {"x86_64": {2: 1, 257: 2}, "aarch64": {56: 2}}  # of an open: only one that may make or empty a file is looked at
_MAKES = os.O_CREAT | os.O_TRUNC
_REMOVEDIR = 0x200
_NEEDS_ROOM = frozenset(
    "write pwrite64 writev pwritev sendfile copy_file_range fallocate ftruncate truncate open mkdir link rename".split()
)
_NEEDS_ROOM_OR_SYNCS = _NEEDS_ROOM | {"fsync", "fdatasync"}
_ONE_CALL = {"rmdir": "unlink"}  # unlinkat removes folders too: which it is, its flag tells
SIZED = frozenset({"write", "pwrite64"})
"""Kinds that can be torn: how much they write is an argument."""
ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EROFS")
"""What a disk says when it is full, breaks, has had enough of this user, or went over to reading only."""

_CONT, _SYSCALL, _SETREGSET, _GETREGSET, _SEIZE = 7, 24, 0x4205, 0x4204, 0x4206
_OPTIONS = 1 | 2 | 4 | 8 | 16 | 0x80 | 0x100000  # SYSGOOD FORK VFORK CLONE EXEC SECCOMP EXITKILL
_EVENT_SECCOMP, _EVENT_STOP = 7, 128
_PRSTATUS, _ARM_SYSTEM_CALL = 1, 0x404
_WALL = 0x40000000
_STOPPING = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU} if sys.platform != "win32" else set()


def why_not() -> str:
    """Why nothing can be traced here, in a sentence; "" when it can."""
    if sys.platform != "linux" or platform.machine() not in _CALLS:
        return f"system calls are traced on Linux (x86_64, aarch64) only, this is {sys.platform} on {platform.machine()}"
    try:
        made = traced(lambda: 0, "/", None, seconds=20.0)
    except OSError as error:
        return f"tracing is not allowed here ({error.strerror}); in a container it wants --cap-add SYS_PTRACE"
    return "" if made.status == 0 else f"a traced process ended with {made.status}"


def traced(work: Callable[[], int], root: str | None, fault: Fault | None, *, seconds: float = 300.0) -> Traced:
    """Run `work` in a forked child and return what became of it: what it returns is the exit code.

    Seen are the calls about paths below `root` (absolute, no symbolic link in it; None: none), by whatever thread or child of it
    makes them; of closes, those of files that were open for writing.
    When it ends, or its time is over, what it has started is killed. The caller has no other children. Raises OSError where
    tracing is not allowed.
    """
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        _live(work, ready, told, _about(fault) if root is not None else frozenset())
    os.close(ready)
    tracer = _Tracer(child, (root or "").rstrip("/") + "/", fault, time.monotonic() + seconds)
    try:
        _ptrace(_SEIZE, child, 0, _OPTIONS)
    except OSError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    finally:
        os.write(told, b".")
        os.close(told)
    return tracer.follow()


def _about(fault: Fault | None) -> frozenset[str]:
    """The kinds of calls to stop at: each stop costs as much as the call, and there are thousands that a fault is not about."""
    if fault is None:
        return frozenset(kind for kind, _ in _CALLS[platform.machine()].values())
    return _lasting(fault) | {_ONE_CALL.get(fault.kind, fault.kind), fault.kind}


def _lasting(fault: Fault) -> frozenset[str]:
    """The kinds that meet the error too, once it is there."""
    if not fault.lasting or fault.how not in ERRORS:
        return frozenset()
    return _NEEDS_ROOM_OR_SYNCS if fault.how == "EIO" else _NEEDS_ROOM


def _live(work: Callable[[], int], ready: int, told: int, kinds: Collection[str]) -> None:
    """The child: wait until the tracer is there, bind oneself, work."""
    code = 70
    try:
        os.close(told)
        os.read(ready, 1)
        os.close(ready)
        if kinds:
            _bind(kinds)
        code = work()
    finally:
        os._exit(code)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


class _Part(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _bind(kinds: Collection[str]) -> None:
    """Stop for the tracer at the table's calls of these kinds, from now on and in all children. Raises OSError."""
    machine = platform.machine()
    allow, trace = 0x7FFF0000, 0x7FF00000

    def op(code: int, yes: int, no: int, value: int) -> bytes:
        return struct.pack("=HBBI", code, yes, no, value)

    load, equal, bits, give = 0x20, 0x15, 0x45, 0x06
    program = [op(load, 0, 0, 4), op(equal, 1, 0, _ARCH[machine]), op(give, 0, 0, allow), op(load, 0, 0, 0)]
    for number, (kind, _) in _CALLS[machine].items():
        if kind not in kinds:
            continue
        if number in _FLAGS[machine]:
            where = 16 + 8 * _FLAGS[machine][number]
            program += [op(equal, 0, 4, number), op(load, 0, 0, where), op(bits, 0, 1, _MAKES), op(give, 0, 0, trace)]
            program += [op(give, 0, 0, allow)]
        else:
            program += [op(equal, 0, 1, number), op(give, 0, 0, trace)]
    program.append(op(give, 0, 0, allow))
    text = b"".join(program)
    given = _Program(len(program), text)
    libc = _libc()
    for call in ((38, 1, 0), (22, 2, ctypes.byref(given))):  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP
        if libc.prctl(call[0], call[1], call[2], 0, 0) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    return libc


def _ptrace(request: int, tid: int, address: int, data: object) -> None:
    if _libc().ptrace(request, tid, address, data) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class _Registers:
    """The registers of a stopped thread that tell of its system call."""

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self.buffer = ctypes.create_string_buffer(8 * 34)
        self.part = _Part(ctypes.addressof(self.buffer), len(self.buffer))
        _ptrace(_GETREGSET, tid, _PRSTATUS, ctypes.addressof(self.part))
        self.values: list[int] = list(struct.unpack_from(f"={self.part.length // 8}Q", self.buffer))
        self.is_arm = platform.machine() == "aarch64"
        # x86_64: rdi, rsi, rdx, r10 of user_regs_struct, and orig_rax; aarch64: x0 to x3, and x8
        self.places = (0, 1, 2, 3) if self.is_arm else (14, 13, 12, 7)
        self.number = self.values[8 if self.is_arm else 15]

    def argument(self, index: int) -> int:
        return self.values[self.places[index]]

    def set_argument(self, index: int, value: int) -> None:
        self.values[self.places[index]] = value
        self._store()

    def refuse(self, error: int) -> None:
        """Let the call not happen, and return this error."""
        self.values[0 if self.is_arm else 10] = -error & (2**64 - 1)
        if self.is_arm:
            number = ctypes.c_int(-1)
            part = _Part(ctypes.addressof(number), ctypes.sizeof(number))
            _ptrace(_SETREGSET, self.tid, _ARM_SYSTEM_CALL, ctypes.addressof(part))
        else:
            self.values[15] = 2**64 - 1
        self._store()

    def _store(self) -> None:
        struct.pack_into(f"={len(self.values)}Q", self.buffer, 0, *self.values)
        _ptrace(_SETREGSET, self.tid, _PRSTATUS, ctypes.addressof(self.part))


class _Tracer:
    """Follows a child, its threads and its children until it ends."""

    def __init__(self, child: int, root: str, fault: Fault | None, deadline: float) -> None:
        self.child, self.root, self.fault, self.deadline = child, root, fault, deadline
        self.table = _CALLS[platform.machine()]
        self.counts: Counter[str] = Counter()
        self.alive = {child}
        self.made = Traced(0)
        self.tearing = 0

    def follow(self) -> Traced:
        ended = False
        before = signal.signal(signal.SIGALRM, lambda *_: self._kill_late())
        signal.setitimer(signal.ITIMER_REAL, max(0.1, self.deadline - time.monotonic()))
        try:
            while self.alive:
                try:
                    tid, status = os.waitpid(-1, _WALL)
                except ChildProcessError:
                    break
                if os.WIFSTOPPED(status):
                    self.alive.add(tid)
                    self._stopped(tid, status)
                    continue
                self.alive.discard(tid)
                if tid == self.child:
                    self.made.status = os.waitstatus_to_exitcode(status)
                    ended = True
                if ended:
                    self._kill()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        return self.made

    def _stopped(self, tid: int, status: int) -> None:
        """One stop: look, do what the fault says, let it go on."""
        event, number, request, sent = status >> 16, os.WSTOPSIG(status), _CONT, 0
        try:
            if event == _EVENT_SECCOMP:
                request = self._called(tid)
            elif number == signal.SIGTRAP | 0x80 and tid == self.tearing:  # the torn write has happened
                self._kill()
                return
            elif not event and number != signal.SIGTRAP | 0x80:
                sent = number
            _ptrace(request, tid, 0, sent)
        except ProcessLookupError:  # it was killed meanwhile
            pass

    def _called(self, tid: int) -> int:
        """A call of the table is about to be made; how it goes on."""
        registers = _Registers(tid)
        kind, where = self.table[registers.number]
        path = self._path(tid, registers, kind, where)
        if kind == "unlink" and where == "at 0" and registers.argument(2) & _REMOVEDIR:
            kind = "rmdir"
        if path is None or not path.startswith(self.root):
            return _CONT
        call, fault = Call(kind, path), self.fault
        self.made.calls.append(call)
        self.counts[kind] += 1
        if fault is None:
            return _CONT
        is_it = self.made.hit is None and kind == fault.kind and self.counts[kind] == fault.nth
        if is_it:
            self.made.hit = call
        if fault.how in ("kill", "torn"):
            if not is_it:
                return _CONT
            if fault.how == "torn" and kind in SIZED:
                registers.set_argument(2, registers.argument(2) // 2)
                self.tearing = tid
                return _SYSCALL
            self._kill()
            return _CONT
        if is_it or (self.made.hit is not None and kind in _lasting(fault)):
            registers.refuse(int(getattr(errno, fault.how)))
        return _CONT

    def _path(self, tid: int, registers: _Registers, kind: str, where: str) -> str | None:
        how, _, index = where.partition(" ")
        try:
            if how == "fd":
                number = ctypes.c_int(registers.argument(int(index))).value
                path = os.readlink(f"/proc/{tid}/fd/{number}")
                return path if kind != "close" or not path.startswith(self.root) or _writes(tid, number) else None
            name = _text(tid, registers.argument(int(index) + (how == "at")))
            if name.startswith("/"):
                return os.path.normpath(name)
            folder = ctypes.c_int(registers.argument(int(index))).value if how == "at" else -100
            above = os.readlink(f"/proc/{tid}/cwd" if folder == -100 else f"/proc/{tid}/fd/{folder}")  # AT_FDCWD
            return os.path.normpath(os.path.join(above, name))
        except OSError:  # such a descriptor is not open
            return None

    def _kill(self) -> None:
        for tid in list(self.alive):
            try:
                os.kill(tid, signal.SIGKILL)
            except ProcessLookupError:
                self.alive.discard(tid)

    def _kill_late(self) -> None:
        self.made.late = True
        self._kill()
        signal.setitimer(signal.ITIMER_REAL, 1.0)  # what it has started this very moment


def _writes(tid: int, number: int) -> bool:
    """Whether a descriptor of a stopped thread is open for writing."""
    with open(f"/proc/{tid}/fdinfo/{number}", encoding="ascii") as lines:
        flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
    return bool(flags & (os.O_WRONLY | os.O_RDWR))


def _text(tid: int, address: int) -> str:
    """A string in the memory of a stopped thread."""
    memory = os.open(f"/proc/{tid}/mem", os.O_RDONLY)
    try:
        found = b""
        while len(found) < 8192:
            part = os.pread(memory, 4096 - (address + len(found)) % 4096, address + len(found))
            end = part.find(b"\0")
            if end >= 0 or not part:
                return os.fsdecode(found + part[: max(end, 0)])
            found += part
        return os.fsdecode(found)
    finally:
        os.close(memory)
