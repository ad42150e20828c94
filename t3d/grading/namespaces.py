"""A command in namespaces of its own, for machines without bubblewrap.

    python -I -S namespaces.py TMP_BYTES READ_ONLY... -- COMMAND...

The command is pid 1 of its pid namespace; its death ends every process of it. It sees the paths
READ_ONLY, its own /proc, four devices, an empty /tmp and an empty /dev/shm of TMP_BYTES each; no
network, no terminal. It ends with its caller.
It has no capability, and runs as nobody, who is the caller outside unless root started it.
Exit status 125 and a line on stderr mean that the system gives no namespaces. They need Linux 5.12
or newer.
"""

from __future__ import annotations

import ctypes
import os
import sys

NO_NAMESPACES = 125
NOBODY = 65534
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # The order of a set may decide a verdict.
}

_LIBC = ctypes.CDLL(None, use_errno=True)
# linux/sched.h: new namespaces of mounts, cgroups, host name, IPC, users, pids, network.
_CLONE_NEW = (
    0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
)
# linux/mount.h
_NOSUID, _NODEV, _NOEXEC, _BIND, _REC, _PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_ATTR_RDONLY, _ATTR_NOSUID = 1, 2
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_MNT_DETACH = 2
# linux/prctl.h
_PDEATHSIG, _CAPBSET_DROP, _NO_NEW_PRIVS = 1, 24, 38
_SIGKILL = 9  # Importing signal, json or typing would double the time to start.


def _check(result: int, call: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    encoded = (source.encode(), target.encode(), kind and kind.encode())
    result = _LIBC.mount(*encoded, ctypes.c_ulong(flags), data.encode())
    _check(result, f"mount {target}")


def _set_read_only(target: str, recursive: bool) -> None:
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd. Flags set before stay.
    attributes = (ctypes.c_uint64 * 4)(_ATTR_RDONLY | _ATTR_NOSUID, 0, 0, 0)
    flags = ctypes.c_uint(_AT_RECURSIVE if recursive else 0)
    number, path, size = ctypes.c_long(_SYS_MOUNT_SETATTR), target.encode(), ctypes.c_size_t(32)
    result = _LIBC.syscall(number, _AT_FDCWD, path, flags, ctypes.byref(attributes), size)
    _check(result, f"mount_setattr {target}")


def _prctl(option: int, value: int) -> int:
    return _LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def unshare() -> bool:
    """Enter new namespaces; the next child is pid 1. Whether it is root there, not yet nobody."""
    uid, gid, process = os.geteuid(), os.getegid(), os.getpid()
    ready, done = os.pipe(), os.pipe()
    helper = os.fork()
    if helper == 0:  # The helper stays outside: only there may root map an id that is not its own.
        os.close(ready[1])  # Else it would not see the pipe close when the parent is refused.
        try:
            if os.read(ready[0], 1):
                os.write(done[1], b"2" if _map_ids(process, uid, gid) else b"1")
        except OSError as error:
            os.write(done[1], str(error).encode())
        finally:
            os._exit(0)
    os.close(done[1])
    _check(_LIBC.unshare(_CLONE_NEW), "unshare")
    os.write(ready[1], b"-")
    mapped = os.read(done[0], 1024)
    os.waitpid(helper, 0)
    if mapped not in (b"1", b"2"):
        raise PermissionError(f"user ids: {mapped.decode()}")
    return mapped == b"2"


def _map_ids(process: int, uid: int, gid: int) -> bool:
    def write(name: str, text: str) -> None:
        with open(f"/proc/{process}/{name}", "w") as file:
            file.write(text)

    if uid == 0:
        try:
            write("uid_map", f"0 0 1\n{NOBODY} {NOBODY} 1")
            write("gid_map", f"0 {gid} 1\n{NOBODY} {NOBODY} 1")
            return True
        except PermissionError:  # Root without the capability, as in some containers.
            pass
    write("setgroups", "deny")
    write("uid_map", f"{NOBODY} {uid} 1")
    write("gid_map", f"{NOBODY} {gid} 1")
    return False


def build_root(read_only: list[str], tmp_bytes: int) -> None:
    """Build a new root from these paths, /proc, /dev and /tmp, and make it this process's root."""
    _mount("none", "/", None, _REC | _PRIVATE)
    devices = [f"/dev/{name}" for name in ("null", "zero", "random", "urandom")]
    # Held open, because the new root is mounted over /tmp, where some of them may lie.
    sources = {path: os.open(path, os.O_PATH) for path in [*read_only, *devices]}
    with open("/proc/sys/user/max_user_namespaces", "w") as file:
        file.write("0")  # Forbid nested user namespaces, which would give capabilities again.
    _mount("none", "/tmp", "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    for path, source in sources.items():
        target = f"/tmp{path}"
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT, 0o644))
        _mount(f"/proc/self/fd/{source}", target, None, _BIND | _REC)
        os.close(source)
        if path not in devices:
            _set_read_only(target, recursive=True)
    for name in ("proc", "tmp", "dev/shm"):
        os.mkdir(f"/tmp/{name}")
    _mount("none", "/tmp/proc", "proc", _NOSUID | _NODEV | _NOEXEC, "subset=pid")
    size = f"size={tmp_bytes},nr_inodes=4096,mode=1777"
    for name in ("tmp", "dev/shm"):
        _mount("none", f"/tmp/{name}", "tmpfs", _NOSUID | _NODEV, size)
    os.chdir("/tmp")
    _check(_LIBC.pivot_root(b".", b"."), "pivot_root")
    _check(_LIBC.umount2(b".", _MNT_DETACH), "umount")
    _set_read_only("/", recursive=False)
    os.chdir("/tmp")


def drop_privileges(nobody: bool) -> None:
    """Give up every capability for good, and root's ids if there are others."""
    capability = 0
    while _prctl(_CAPBSET_DROP, capability) == 0:
        capability += 1
    if nobody:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    _check(_LIBC.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())), "capset")
    _check(_prctl(_NO_NEW_PRIVS, 1), "prctl")
    _check(_prctl(_PDEATHSIG, _SIGKILL), "prctl")


def start(tmp_bytes: int, read_only: list[str], command: list[str]) -> None:
    """Run the command and exit as it does.

    Raises:
        OSError: where the kernel or its settings refuse a namespace or a mount.
    """
    _check(_prctl(_PDEATHSIG, _SIGKILL), "prctl")
    nobody = unshare()
    init = os.fork()
    if init == 0:
        try:
            build_root(read_only, tmp_bytes)
            drop_privileges(nobody)
            os.execve(command[0], command, ENVIRONMENT)
        except OSError as error:
            print(error, file=sys.stderr, flush=True)
        finally:
            os._exit(NO_NAMESPACES)
    _, status = os.waitpid(init, 0)
    os._exit(max(os.waitstatus_to_exitcode(status), 0))


if __name__ == "__main__":
    try:
        end = sys.argv.index("--")
        start(int(sys.argv[1]), sys.argv[2:end], sys.argv[end + 1 :])
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(NO_NAMESPACES)
