"""All or nothing: outputs grow in a hidden folder beside the target and take their names at the very end.

    .NAME.lcmmerge.partial/    made by mkdir alone, for this user alone, locked while a run works in it
        lcmmerge               this folder's own inode, which nobody could have written down before it was made
        new/                   the outputs; once they have their names, what had these names before
        committing             the outputs' inodes, from before the first of them takes its name
        old/                   what had the names before, on file systems that cannot exchange two names
        resumes                of what work it is, where that goes on after an interruption

Whatever else has the hidden folder's name, a link or somebody's folder, is left as it is. What a killed run left is
removed by the next one to the same target; if it was killed while its outputs took their names, the old ones come back.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from lcmmerge.errors import OutputError
from lcmmerge.refs.files import read_text
from lcmmerge.tensors.blockio import output_error
from lcmmerge.tensors.renaming import exchange, rename_new

ELSEWHERE = "choose another name with -o"
MARKER = "lcmmerge"
NEW, OLD, COMMITTING, RESUMES = "new", "old", "committing", "resumes"
SUFFIX = ".lcmmerge.partial"
BIRTH = 1.0  # seconds within which a run that has made its folder has marked it
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Staging:
    """A product beside its target, which takes the target's place when it is whole.

    ``with Staging(target) as staging:`` write into ``staging.folder``, then commit.

    Leaving without a commit removes everything, and the target is as it was. ``force``: outputs replace what has their
    names, which keeps its mode. Raises OutputError where the folder is not writable, another run is writing the target,
    or, without ``force``, something has taken a name meanwhile.

    ``resumes``: what the work is of, in words. What an interrupted or killed run of the same words left in ``folder``
    is there again.
    """

    def __init__(self, target: Path, *, force: bool = True, resumes: str | None = None) -> None:
        self.target, self._force, self._resumes = target, force, resumes
        self._name = f".{target.name}{SUFFIX}"
        self.folder = target.parent / self._name / NEW
        self._parent = self._place = -1

    def __enter__(self) -> Self:
        try:
            with _undisturbed():
                self._parent = os.open(self.target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                self._place = self._claimed()
                os.close(_made(NEW, self._place))
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        with _undisturbed():
            if self._place >= 0 and (kind is None or self._resumes is None):
                with suppress(OSError):
                    self._remove(self._place)
            self._close()
        if isinstance(error, OSError):
            raise output_error(self.target, error) from None

    def commit_files(self) -> None:
        """Each staged file takes its name beside the target, in name order, an index last: it names the others."""
        names = (path.name for path in self.folder.iterdir())
        self._commit(sorted(names, key=lambda name: (name.endswith(".json"), name)))

    def commit_folder(self) -> None:
        """The staged folder of the target's name becomes the target."""
        self._commit([self.target.name])

    def _claimed(self) -> int:
        """A descriptor of the hidden folder, which is locked, marked, and new, but for work that goes on."""
        while True:
            try:
                os.mkdir(self._name, 0o700, dir_fd=self._parent)
            except FileExistsError:
                with suppress(FileNotFoundError), self._opened() as place:  # another run may remove it meanwhile
                    if self._taken_over(place):
                        return os.dup(place)
                continue
            with suppress(FileNotFoundError), self._opened() as place:  # or take it for that of a run killed just here
                _lock(place)
                try:
                    _write(MARKER, str(os.fstat(place).st_ino), place)
                    if self._resumes is not None:
                        _write(RESUMES, self._resumes, place)
                except BaseException:  # such as a full disk
                    self._remove(place)
                    raise
                if self._is(place):
                    return os.dup(place)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            place = os.open(self._name, _FOLDER, dir_fd=self._parent)
        except FileNotFoundError:
            raise
        except OSError:  # a link, a file
            raise self._in_the_way() from None
        try:
            yield place
        except BlockingIOError:
            hint = "wait for it, or choose another -o"
            raise OutputError(f"{self.target}: another run is writing it", hint) from None
        finally:
            os.close(place)

    def _taken_over(self, place: int) -> bool:
        """Whether the folder that is there holds this very work; what a killed run left of another is removed.

        Raises BlockingIOError where a run is at work in it, OutputError where it is not ours.
        """
        born = time.monotonic()
        while _is_unborn(place):  # about to be marked, or of a run that was killed before
            if time.monotonic() - born > BIRTH:
                self._remove(place)
                return False
            time.sleep(BIRTH / 100)
        if not _is_marked(place):
            raise self._in_the_way()
        _lock(place)
        if not self._is(place):
            return False
        self._recover(place)
        if self._resumes is not None and _read(RESUMES, place) == self._resumes:
            return True
        self._remove(place)
        return False

    def _in_the_way(self) -> OutputError:
        folder = self.target.parent / self._name
        return OutputError(f"{folder}: is in the way, and not lcmmerge's own", "remove it, or choose another -o")

    def _is(self, place: int) -> bool:
        """Whether the name is still the folder's: a lock holds nothing of one that was removed."""
        there = _inode(self._name, self._parent)
        return there is not None and there == os.fstat(place).st_ino

    def _commit(self, names: Iterable[str]) -> None:
        with _undisturbed():
            self._take_names(names)

    def _take_names(self, names: Iterable[str]) -> None:
        new = os.open(NEW, _FOLDER, dir_fd=self._place)
        try:
            inodes = {name: os.stat(name, dir_fd=new, follow_symlinks=False).st_ino for name in names}
            _write(COMMITTING, json.dumps(inodes), self._place)
            try:
                for name in inodes:
                    if self._force:
                        _keep_modes(self.folder / name, self.target.parent / name)
                    self._take_name(name, new)
            except BaseException as error:
                spare = self._restore(inodes, self._place)
                os.unlink(COMMITTING, dir_fd=self._place)
                if isinstance(error, FileExistsError):
                    raise _taken(self.target.parent / name, spare) from None
                raise
            os.fsync(self._parent)
        finally:
            os.close(new)

    def _take_name(self, name: str, new: int) -> None:
        """Raises FileExistsError."""
        if self._force and _inode(name, self._parent) is not None:
            if exchange(name, new, name, self._parent):
                return
            old = _made(OLD, self._place)
            try:
                os.rename(name, name, src_dir_fd=self._parent, dst_dir_fd=old)
            finally:
                os.close(old)
        rename_new(name, new, name, self._parent)

    def _recover(self, place: int) -> None:
        """After a kill: put back what the killed run's outputs had begun to replace."""
        with suppress(ValueError, AttributeError):
            inodes = json.loads(_read(COMMITTING, place) or "{}")
            if not all(_inode(name, self._parent) == inode for name, inode in inodes.items()):
                self._restore(inodes, place)
        with suppress(FileNotFoundError):
            os.unlink(COMMITTING, dir_fd=place)

    def _restore(self, inodes: Mapping[str, int], place: int) -> list[str]:
        """What had the outputs' names has them again; ``inodes``: of the outputs, of which some may have theirs.

        Where somebody else has taken a name meanwhile, what had it gets a new one beside it; these names.
        """
        new, old = _made(NEW, place), _made(OLD, place)
        spare = []
        try:
            for name, inode in inodes.items():
                there = _inode(name, self._parent)
                if there == inode:
                    if _inode(name, new) is not None:  # they were exchanged
                        exchange(name, new, name, self._parent)
                        continue
                    os.rename(name, name, src_dir_fd=self._parent, dst_dir_fd=new)
                    there = None
                if _inode(name, old) is not None:
                    if there is not None:
                        spare.append(f"{name}.replaced-{uuid4().hex[:8]}")
                    back = name if there is None else spare[-1]
                    os.rename(name, back, src_dir_fd=old, dst_dir_fd=self._parent)
        finally:
            os.close(new)
            os.close(old)
        return spare

    def _remove(self, place: int) -> None:
        """The hidden folder; its marker last, so that what a kill leaves of it is still ours."""
        for name in os.listdir(place):
            if name != MARKER:
                _remove(name, place)
        with suppress(FileNotFoundError):
            os.unlink(MARKER, dir_fd=place)
        os.rmdir(self._name, dir_fd=self._parent)

    def _close(self) -> None:
        for descriptor in (self._place, self._parent):
            if descriptor >= 0:
                os.close(descriptor)
        self._parent = self._place = -1


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C and its like wait until the block is done; it is to be a short one."""
    caught: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers if callable(signal.getsignal(number))}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    for number in handlers:
        signal.signal(number, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def is_leftover(folder: Path) -> bool:
    """Whether it is a hidden folder of ours: what a killed run left, or where one is at work."""
    if not folder.name.endswith(SUFFIX):
        return False
    try:
        place = os.open(folder, _FOLDER)
    except OSError:
        return False
    try:
        return _is_marked(place)
    finally:
        os.close(place)


def mark(folder: Path) -> None:
    """Write down that the folder, which is there, is ours to work in, for as long as it is this very folder."""
    replace_with(folder / f".{MARKER}", str(folder.stat().st_ino).encode())


def is_marked(folder: Path) -> bool:
    """Whether ``mark`` was told of it; a copy, or a folder out of a repository, is another."""
    with suppress(OSError, ValueError):
        return read_text(folder / f".{MARKER}") == str(folder.stat().st_ino)
    return False


def _is_private(place: int) -> bool:
    """Nobody else can have put anything in it."""
    state = os.fstat(place)
    return state.st_uid == os.geteuid() and not state.st_mode & 0o022


def _is_unborn(place: int) -> bool:
    """Nothing is in it but a marker that is not written yet."""
    return _is_private(place) and os.listdir(place) in ([], [MARKER]) and _read(MARKER, place) in (None, "")


def _is_marked(place: int) -> bool:
    return _is_private(place) and _read(MARKER, place) == str(os.fstat(place).st_ino)


def _lock(place: int) -> None:
    """Until the descriptor is closed. Raises BlockingIOError."""
    fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _inode(name: str, folder: int) -> int | None:
    """Of what has the name, a link itself; None where nothing has it."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return None


def _made(name: str, folder: int) -> int:
    """A descriptor of a folder, which is made where it is not there."""
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=folder)
    return os.open(name, _FOLDER, dir_fd=folder)


def _write(name: str, text: str, folder: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, 0o600, dir_fd=folder), "w", encoding="utf-8") as file:
        file.write(text)


def _read(name: str, folder: int) -> str | None:
    """None where there is no such file."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
        return file.read(1 << 20) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


def _remove(name: str, folder: int) -> None:
    """A file, a link itself, or a folder with all that is in it; no link is followed."""
    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        shutil.rmtree(name, dir_fd=folder)
    else:
        os.unlink(name, dir_fd=folder)


def _keep_modes(new: Path, old: Path) -> None:
    """What takes another's name has its mode: who might not read a file may not read the new one."""
    if old.is_symlink() or not old.exists():
        return
    if new.is_dir():
        for path in new.iterdir():
            _keep_modes(path, old / path.name)
    mode = stat.S_IMODE(old.stat().st_mode) & 0o777
    new.chmod(mode | 0o700 if new.is_dir() else mode)


def write_text(path: Path, text: str) -> None:
    """All or nothing, in UTF-8; what a killed run left of it is removed by the next. Raises OutputError."""
    with Staging(path) as staging:
        with (staging.folder / path.name).open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        staging.commit_files()


def replace_with(path: Path, content: bytes) -> None:
    """All or nothing for what is in memory, also where two processes write the same file. Raises OutputError."""
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    refuse_special(path)
    try:
        try:
            with partial.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _keep_modes(partial, path)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(path, error) from None


def refuse_special(target: Path) -> None:
    """Raises OutputError for a link that leads nowhere (to a disk that is not mounted, say), a device, a pipe."""
    with suppress(OSError):
        mode = target.lstat().st_mode
        if stat.S_ISLNK(mode) and not target.exists():
            raise OutputError(f"{target}: is a link that leads nowhere", f"remove it, or {ELSEWHERE}")
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            raise OutputError(f"{target}: is a device, a pipe or a socket", ELSEWHERE)


def check_target(
    target: Path, *, force: bool, needed: int, inputs: Iterable[Path] = (), folder: bool = False
) -> None:
    """Everything about a target (a file, or a pipeline's ``folder``) that can be known before any work is done.

    An input is never replaced, not even with ``force``, nor is a folder that is no pipeline. Raises OutputError.
    """
    refuse_special(target)
    resolved = target.resolve()
    if any(resolved == path or resolved in path.parents for path in map(Path.resolve, inputs)):
        raise OutputError(f"{target}: is an input of this run", ELSEWHERE)
    if target.is_dir() and not (folder and _replaceable(target)):
        raise OutputError(f"{target}: is a folder, and would be lost", ELSEWHERE)
    if target.exists() and not force:
        raise _exists(target)
    if not target.parent.is_dir():
        raise OutputError(f"{target.parent}: no such folder", "create it first, or choose another with -o")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{target.parent}: not writable", "choose a folder that you may write to with -o")
    check_space(target, target.parent, needed)


def check_space(target: Path, folder: Path, needed: int) -> None:
    """``needed`` bytes, on the disk where the folder is. Raises OutputError."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"{target}: needs {needed / 1e9:.2f} GB, and the disk has {free / 1e9:.2f} GB free",
            "free some space, or write elsewhere with -o",
        )


def _taken(target: Path, spare: list[str]) -> OutputError:
    if not spare:
        return _exists(target)
    return OutputError(f"{target}: something took its name meanwhile", f"what was there before is {spare[0]} now")


def _exists(target: Path) -> OutputError:
    return OutputError(f"{target}: exists already", f"{ELSEWHERE}, or replace it with --force")


def _replaceable(folder: Path) -> bool:
    return (folder / "model_index.json").exists() or not any(folder.iterdir())
