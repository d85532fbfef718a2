"""Windows' rules, kept by a process on Linux: what florence2 may import, and what may be done with files.

`keep_windows_rules(root)` installs them. For modules of `florence2` the modules and names that Windows lacks are
missing; for everyone, below `root`: a file that this process has open or mapped is neither removed nor replaced, nor
does its folder move; a rename replaces nothing; a file that is open for reading is not synchronized; names that Windows
refuses are refused; a name that differs from an existing one by case alone exists, and writing to it is an error here.
"""

import builtins
import fcntl
import os
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

MISSING_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"}
MISSING_NAMES = {
    "os": set(
        "fork forkpty kill killpg setsid getuid geteuid getgid getpgid sysconf sysconf_names uname nice mkfifo fchmod "
        "sched_getaffinity statvfs getloadavg register_at_fork wait WNOHANG O_DIRECTORY O_NOFOLLOW O_SYNC".split()
    ),
    "signal": set(
        "SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGALRM SIGPROF ITIMER_REAL ITIMER_PROF alarm setitimer pthread_sigmask "
        "pause".split()
    ),
    "select": {"poll", "epoll", "POLLIN"},
    "socket": {"AF_UNIX", "socketpair"},
    "time": {"tzset", "clock_gettime", "pthread_getcpuclockid"},
    "sys": {"abiflags", "getdlopenflags"},
}
REFUSED_NAME = re.compile(
    r'[<>:"|?*\x00-\x1f]|[. ]$|^(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[1-9¹²³]) *(\.|$)', re.IGNORECASE
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class WindowsModule(ModuleType):
    """A module without the names that Windows lacks; everything else is the module's own."""

    def __init__(self, module: ModuleType) -> None:
        super().__init__(module.__name__)
        self.__dict__["_module"] = module

    def __getattr__(self, name: str) -> Any:
        if name in MISSING_NAMES[self.__name__]:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} on Windows")
        return getattr(self.__dict__["_module"], name)


def keep_windows_rules(root: Path) -> None:
    """Install the rules for this process, for good."""
    _hide_modules()
    rules = FileRules(str(root.resolve()))
    sys.addaudithook(rules.check)
    rename, fsync = os.rename, os.fsync

    def rename_to_new(source: Any, target: Any, **options: Any) -> None:
        if os.path.lexists(target):
            raise FileExistsError(17, "a rename on Windows replaces nothing", str(target))
        rename(source, target, **options)

    def fsync_written(file: Any) -> None:
        descriptor = file if isinstance(file, int) else file.fileno()
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Windows synchronizes no file that is open for reading")
        fsync(file)

    os.rename, os.fsync, os.stat = rename_to_new, fsync_written, rules.stat_in_any_case
    warnings.simplefilter("ignore", EncodingWarning)
    warnings.filterwarnings("error", category=EncodingWarning, module=r"florence2\.")


def _hide_modules() -> None:
    plain_import = builtins.__import__
    modules = {name: WindowsModule(plain_import(name)) for name in MISSING_NAMES}
    modules["sys"].platform = "win32"  # type: ignore[attr-defined]

    def import_on_windows(
        name: str,
        globals: Any = None,  # noqa: A002
        locals: Any = None,  # noqa: A002
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        if level == 0 and str((globals or {}).get("__name__")).partition(".")[0] == "florence2":
            if name in MISSING_MODULES:
                raise ModuleNotFoundError(f"No module named {name!r} on Windows", name=name)
            if name in modules:
                return modules[name]
            if name == "msvcrt":
                return LOCKS_OF_WINDOWS
        return plain_import(name, globals, locals, fromlist, level)

    builtins.__import__ = import_on_windows


def _lock(descriptor: int, mode: int, _: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | mode)
    except BlockingIOError:
        raise PermissionError(13, "Permission denied") from None


LOCKS_OF_WINDOWS = SimpleNamespace(LK_NBLCK=fcntl.LOCK_NB, locking=_lock)


class FileRules:
    """The rules for files below a folder, as an audit hook."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._stat = os.stat

    def stat_in_any_case(self, path: Any, **options: Any) -> os.stat_result:
        """Return the state of a file, or of one whose name differs by case alone."""
        try:
            return self._stat(path, **options)
        except FileNotFoundError:
            parent, name = os.path.split(self._path(path))
            same = [each for each in os.listdir(parent) if each.casefold() == name.casefold()] if parent else []
            if not same:
                raise
            return self._stat(os.path.join(parent, same[0]), **options)

    def check(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Raise OSError for what Windows refuses."""
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
            self._check_name(arguments[0])
        elif event == "os.mkdir":
            self._check_name(arguments[0], arguments[2])
        elif event == "os.remove":
            self._check_not_open(arguments[0], arguments[1])
        elif event == "os.rename":
            self._check_not_open(arguments[0], arguments[2])
            self._check_not_open(arguments[1], arguments[3])
            self._check_name(arguments[1], arguments[3])

    def _path(self, path: Any, folder: int = -1) -> str:
        """Return the absolute path if it lies below the root, else nothing."""
        if not isinstance(path, str | bytes | os.PathLike):
            return ""
        start = os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else os.getcwd()
        absolute = os.path.normpath(os.path.join(start, os.fsdecode(path)))
        return absolute if absolute.startswith(self.root + os.sep) else ""

    def _check_name(self, path: Any, folder: int = -1) -> None:
        if not (absolute := self._path(path, folder)):
            return
        for part in absolute[len(self.root) + 1 :].split(os.sep):
            if REFUSED_NAME.search(part):
                raise OSError(22, "a name that Windows refuses", absolute)
        parent, name = os.path.split(absolute)
        for other in os.listdir(parent) if os.path.isdir(parent) else ():
            if other != name and other.casefold() == name.casefold():
                raise OSError(17, f"it is {other} on Windows", absolute)

    def _check_not_open(self, path: Any, folder: int) -> None:
        if not (absolute := self._path(path, folder)):
            return
        for other in _open_files():
            if other == absolute or other.startswith(absolute + os.sep):
                raise PermissionError(13, f"Windows: this process has {other} open", absolute)


def _open_files() -> set[str]:
    files = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            files.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:
            continue  # of the listing itself
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as rows:
        files.update(row[row.index("/") :].rstrip("\n") for row in rows if "/" in row)
    return {file for file in files if not os.path.isdir(file)}
