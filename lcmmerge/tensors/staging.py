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
from lcmmerge.tensors.descriptors import FOLDER, inode_of, made, read, remove, write
from lcmmerge.tensors.renaming import exchange, rename_new
from lcmmerge.tensors.targets import exists_already, refuse_special

MARKER = "lcmmerge"
NEW, OLD, COMMITTING, RESUMES = "new", "old", "committing", "resumes"
SUFFIX = ".lcmmerge.partial"
BIRTH = 1.0  # seconds within which a run that has made its folder has marked it


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
                os.close(made(NEW, self._place))
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
                    write(MARKER, str(os.fstat(place).st_ino), place)
                    if self._resumes is not None:
                        write(RESUMES, self._resumes, place)
                except BaseException:  # such as a full disk
                    self._remove(place)
                    raise
                if self._is(place):
                    return os.dup(place)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            place = os.open(self._name, FOLDER, dir_fd=self._parent)
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
        if self._resumes is not None and read(RESUMES, place) == self._resumes:
            return True
        self._remove(place)
        return False

    def _in_the_way(self) -> OutputError:
        folder = self.target.parent / self._name
        return OutputError(f"{folder}: is in the way, and not lcmmerge's own", "remove it, or choose another -o")

    def _is(self, place: int) -> bool:
        """Whether the name is still the folder's: a lock holds nothing of one that was removed."""
        there = inode_of(self._name, self._parent)
        return there is not None and there == os.fstat(place).st_ino

    def _commit(self, names: Iterable[str]) -> None:
        with _undisturbed():
            self._take_names(names)

    def _take_names(self, names: Iterable[str]) -> None:
        new = os.open(NEW, FOLDER, dir_fd=self._place)
        try:
            inodes = {name: os.stat(name, dir_fd=new, follow_symlinks=False).st_ino for name in names}
            write(COMMITTING, json.dumps(inodes), self._place)
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
        if self._force and inode_of(name, self._parent) is not None:
            if exchange(name, new, name, self._parent):
                return
            old = made(OLD, self._place)
            try:
                os.rename(name, name, src_dir_fd=self._parent, dst_dir_fd=old)
            finally:
                os.close(old)
        rename_new(name, new, name, self._parent)

    def _recover(self, place: int) -> None:
        """After a kill: put back what the killed run's outputs had begun to replace."""
        with suppress(ValueError, AttributeError):
            inodes = json.loads(read(COMMITTING, place) or "{}")
            if not all(inode_of(name, self._parent) == inode for name, inode in inodes.items()):
                self._restore(inodes, place)
        with suppress(FileNotFoundError):
            os.unlink(COMMITTING, dir_fd=place)

    def _restore(self, inodes: Mapping[str, int], place: int) -> list[str]:
        """What had the outputs' names has them again; ``inodes``: of the outputs, of which some may have theirs.

        Where somebody else has taken a name meanwhile, what had it gets a new one beside it; these names.
        """
        new, old = made(NEW, place), made(OLD, place)
        spare = []
        try:
            for name, inode in inodes.items():
                there = inode_of(name, self._parent)
                if there == inode:
                    if inode_of(name, new) is not None:  # they were exchanged
                        exchange(name, new, name, self._parent)
                        continue
                    os.rename(name, name, src_dir_fd=self._parent, dst_dir_fd=new)
                    there = None
                if inode_of(name, old) is not None:
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
                remove(name, place)
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
        place = os.open(folder, FOLDER)
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
    return _is_private(place) and os.listdir(place) in ([], [MARKER]) and read(MARKER, place) in (None, "")


def _is_marked(place: int) -> bool:
    return _is_private(place) and read(MARKER, place) == str(os.fstat(place).st_ino)


def _lock(place: int) -> None:
    """Until the descriptor is closed. Raises BlockingIOError."""
    fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _keep_modes(new: Path, old: Path) -> None:
    """What takes another's name has its mode: who might not read a file may not read the new one."""
    if old.is_symlink() or not old.exists():
        return
    if new.is_dir():
        for path in new.iterdir():
            _keep_modes(path, old / path.name)
    mode = stat.S_IMODE(old.stat().st_mode) & 0o777
    new.chmod(mode | 0o700 if new.is_dir() else mode)


def _taken(target: Path, spare: list[str]) -> OutputError:
    if not spare:
        return exists_already(target)
    return OutputError(f"{target}: something took its name meanwhile", f"what was there before is {spare[0]} now")


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
