"""Ways to start a server so that what it does to the machine can be seen, or cannot be done at all."""

import subprocess
from functools import cache
from pathlib import Path

# In a mount namespace of its own: every file system read-only, /tmp too, but for shared memory, which is no disk.
_READ_ONLY = """
mount --make-rprivate /
awk '$2 !~ "^/(proc|sys|dev)(/|$)" {print $2}' /proc/mounts | while read -r place; do
  mount -o remount,bind,ro "$place" || exit 9
done
[ "$(awk '$2 == "/" {split($4, o, ","); print o[1]}' /proc/mounts | tail -1)" = ro ] || exit 9
exec "$@"
"""


@cache
def read_only() -> tuple[str, ...]:
    """What to put before a command so that it finds a read-only file system; empty where namespaces are forbidden."""
    for unshare in (("unshare", "-m"), ("unshare", "-rm")):
        prefix = (*unshare, "sh", "-c", _READ_ONLY, "sh")
        try:
            tried = subprocess.run([*prefix, "sh", "-c", "! touch /tmp/written"], capture_output=True, check=False)
        except FileNotFoundError:
            return ()
        if tried.returncode == 0:
            return prefix
    return ()


def traced(out: Path) -> tuple[str, ...]:
    """What to put before a command so that its system calls on files and connections are written down, with times."""
    calls = "trace=%file,connect,bind,sendto"
    return ("strace", "-D", "-f", "-qq", "-ttt", "-s", "200", "-e", calls, "-e", "signal=none", "-o", str(out))


@cache
def can_trace(folder: Path) -> bool:
    """Whether strace is there, and allowed."""
    out = folder / "trial"
    try:
        ended = subprocess.run([*traced(out), "cat", "/dev/null"], capture_output=True, check=False, timeout=20)
    except FileNotFoundError:
        return False
    return ended.returncode == 0 and "/dev/null" in out.read_text()
