"""The faults that may befall a command, each as one function: make it, run it, and say what is wrong with the outcome.

A function gets a Stage and a random source, and gives a Verdict; ``FAULTS`` names them all.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from random import Random
from threading import Timer
from typing import Any

from faultworld import Command
from hostile import KINDS, spoil
from stage import Fault, Stage, Verdict
from trial import CLOSED, KNOWN, PLAIN, Circumstances, changes, faults, run, tree

COLOURS = re.compile(r"\x1b\[[\d;]*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[\d;]*m")
STOPPED = (130, 0)
BEGUN = 0.05  # seconds, in which Python has not yet come to what answers a signal
NAMES = ("a b", "it's", 'a"b', "é", "e\u0301", "模型", "😀", "-x", "a\nb", "a%sb", "a;b", "$HOME", "[red]", "{0}",
         "C:\\models\\a")  # fmt: skip


def hostile(kind: str) -> Fault:
    """One input of the kind is damaged."""

    def spoilt(stage: Stage, random: Random) -> Verdict | None:
        names = sorted(name for name, reader in stage.command.readers.items() if reader == kind)
        if not names:
            return None
        name = random.choice(names)
        stage.lay()
        way = spoil(kind, stage.folder / name, random)
        before = tree(stage.folder)
        ended = run(stage.command.arguments, stage.folder)
        return stage.judged(f"{way} {name}", ended, before, all_of_it=kind != "text")  # fewer prompts, fewer images

    return spoilt


def odd_file(stage: Stage, random: Random) -> Verdict | None:
    """Something else where a file is looked for."""
    if not stage.command.readers:
        return None
    name = random.choice(sorted(stage.command.readers))
    stage.lay()
    path = stage.folder / name
    sound = path.with_name(f"sound-{path.name}")
    ways = ["nothing", "empty", "folder", "/dev/null", "loop", "dangling", "link", "read-only"]
    if stage.command.readers[name] != "text":  # which may well come from a pipe, and that is waited for
        ways.append("FIFO")
    way = random.choice(ways)
    if way != "read-only":
        path.rename(sound)
    match way:
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "/dev/null":
            path.symlink_to("/dev/null")
        case "FIFO":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path.name)
        case "dangling":
            path.symlink_to("nowhere")
        case "link":
            path.symlink_to(sound.name)
        case "read-only":
            path.chmod(0o444)
    before = tree(stage.folder)
    return stage.judged(f"{way} {name}", run(stage.command.arguments, stage.folder), before)


def no_stdout(stage: Stage, random: Random) -> Verdict:
    """Full, or closed by the caller: what is printed cannot be."""
    before = stage.lay()
    if random.random() < 0.5:
        ended = run(stage.command.arguments, stage.folder, Circumstances(out=CLOSED))
        return stage.judged("closed", ended, before, (0,))
    ended = run(stage.command.arguments, stage.folder, Circumstances(out="/dev/full"))
    if stage.command.name == "relambda" or not stage.command.writes:
        return stage.judged("full", ended, before, (1,) if stage.reference.ended.out else (0,))
    return Verdict("full", ended.code, faults(ended))


def no_disk(stage: Stage, random: Random) -> Verdict | None:
    """A file system that fills up, or a limit on a file's size."""
    if not stage.command.writes:
        return None
    share = random.random()
    if random.random() < 0.5:
        before = stage.lay()
        ended = run(stage.command.arguments, stage.folder, Circumstances(file_size=int(share * 1e6) + 1))
        return stage.judged("file size", ended, before)
    stage.folder.joinpath("out").mkdir(parents=True)
    held = sum(path.stat().st_size + 8192 for path in _inputs_below_out(stage))
    with mounted(stage.folder / "out", held + 65536 + int(share * 1.2 * stage.reference.nbytes)) as there:
        before = stage.lay()
        ended = run(stage.command.arguments, stage.folder)
        return stage.judged("tmpfs" if there else "no tmpfs here", ended, before)


def _inputs_below_out(stage: Stage) -> Iterator[Path]:
    for place, item in stage.command.inputs.items():
        if place.startswith("out/"):
            path = stage.world.item(item)
            yield from (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


@contextmanager
def mounted(folder: Path, nbytes: int) -> Iterator[bool]:
    """A file system of ``nbytes``, where this user may mount one."""
    libc = ctypes.CDLL(None, use_errno=True)
    there = libc.mount(b"none", bytes(folder), b"tmpfs", 0, f"size={nbytes}".encode()) == 0
    try:
        yield there
    finally:
        if there:
            libc.umount2(bytes(folder), 2)


def no_permission(stage: Stage, random: Random) -> Verdict:
    """An input that cannot be read, a folder that cannot be written to, or a home where nothing can be."""
    stage.lay()
    inputs = sorted(stage.command.readers)
    ways = ["home", *(["input"] if inputs else []), *(["output"] if stage.command.writes else [])]
    way = random.choice(ways)
    if way == "input":
        name = random.choice(inputs)
        (stage.folder / name).chmod(0)
        way = f"input {name}"
    elif way == "output":
        for path in (stage.folder / "out", *(stage.folder / "out").rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
    before = tree(stage.folder)
    home = {"HOME": "/root/none", "XDG_CACHE_HOME": "/proc/none"}
    ended = run(stage.command.arguments, stage.folder, Circumstances(home, unprivileged=True))
    for path in stage.folder.rglob("*"):
        path.chmod(0o755)
    return stage.judged(way, ended, before, (0,) if way == "home" else KNOWN)


def stopped_by(number: int) -> Fault:
    def stop(stage: Stage, random: Random) -> Verdict:
        before = stage.lay()
        after = random.random() * 1.1 * stage.reference.ended.seconds
        ended = run(stage.command.arguments, stage.folder, Circumstances(kill=(number, after)))
        early = (-number,) if after < BEGUN else ()
        return stage.judged(f"{signal.Signals(number).name} at random", ended, before, (*STOPPED, *early))

    return stop


def killed(stage: Stage, random: Random) -> Verdict:
    """At a random moment; then the same command goes on, or begins anew, and gives what an unbroken one does."""
    stage.lay()
    after = random.random() * stage.reference.ended.seconds
    first = run(stage.command.arguments, stage.folder, Circumstances(kill=(signal.SIGKILL, after)))
    done = any(fnmatch(name, f"{_target(stage.command)}*") for name in tree(stage.folder))
    again = () if not done and stage.command.again == ("--force",) else stage.command.again
    if first.code == 0 and again == ("--resume",):
        again = ("--resume", "--force")
    second = run([*stage.command.arguments, *again], stage.folder)
    wrong = faults(second, (0,))
    if not wrong:
        other = [
            name for name in changes(stage.reference.tree, tree(stage.folder))
            if not any(fnmatch(name, pattern) for pattern in stage.command.varies)
        ]  # fmt: skip
        wrong = f"not as unbroken: {other[0]}" if other else ""
    return Verdict("SIGKILL at random, then again", second.code, wrong)


def _target(command: Command) -> str:
    words = command.arguments
    return words[words.index("-o") + 1] if "-o" in words else "out/none"


def narrow(stage: Stage, random: Random) -> Verdict:
    """A terminal of 40 columns: the same end, and no letter less than on a wide one."""
    before = stage.lay()
    ended = run(stage.command.arguments, stage.folder, Circumstances({"NO_COLOR": "1"}, columns=40))
    verdict = stage.judged("40 columns", ended, before, (0,))
    if verdict.wrong or stage.command.varies:
        return verdict
    lost = _letters(stage.reference.ended.out) - _letters(ended.out)
    return replace(verdict, wrong=f"40 columns cut off {dict(lost)}"[:200] if lost else "")


def _letters(text: str) -> Counter[str]:
    return Counter(letter for letter in re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text) if letter.isalpha())


def uncoloured(stage: Stage, random: Random) -> Verdict:
    before = stage.lay()
    ended = run(stage.command.arguments, stage.folder, Circumstances({"NO_COLOR": "1"}, columns=100))
    verdict = stage.judged("NO_COLOR on a terminal", ended, before, (0,))
    found = COLOURS.search(ended.out)
    return replace(verdict, wrong=f"a colour: {found[0]!r}") if found and not verdict.wrong else verdict


def unseen(stage: Stage, random: Random) -> Verdict:
    """No terminal: no bar, no escape code."""
    before = stage.lay()
    ended = run(stage.command.arguments, stage.folder, PLAIN)
    verdict = stage.judged("no terminal", ended, before, (0,))
    if not verdict.wrong and ("\x1b" in ended.out + ended.err or "\r" in ended.out + ended.err):
        return replace(verdict, wrong="an escape code or a bar without a terminal")
    return verdict


def odd_names(stage: Stage, random: Random) -> Verdict | None:
    """The same command in a folder, and on files, of such names."""
    movable = _movable(stage.command)
    if not movable:
        return None
    stage.lay()
    name = random.choice(NAMES)
    arguments = list(stage.command.arguments)
    place = random.choice(movable)
    other = f"{name}{''.join(Path(place).suffixes)}"
    (stage.folder / place).rename(stage.folder / other)
    given = random.choice((f"./{other}", str(stage.folder / other)))
    arguments = [given if word == place else word for word in arguments]
    if "-o" in arguments and (target := arguments.index("-o") + 1) and random.random() < 0.7:
        folder, _, last = arguments[target].rpartition("/")
        arguments[target] = f"{folder}/{name}{Path(last).suffix}"
    before = tree(stage.folder)
    ended = run(arguments, stage.folder)
    silent = stage.command.writes and not changes(before, tree(stage.folder)) and "out/run" not in stage.command.inputs
    return Verdict(repr(name), ended.code, faults(ended, (0,)) or ("wrote nothing" if silent else ""))


def _movable(command: Command) -> list[str]:
    """What may have another name; the data of a training that goes on may not."""
    named = [place for place in command.inputs if "/" not in place and place in command.arguments]
    return [place for place in named if not (place == "data" and "--resume" in command.arguments)]


def windows_path(stage: Stage, random: Random) -> Verdict | None:
    """A path of Windows that is not here: one line, and nothing is made."""
    movable = _movable(stage.command)
    if not movable:
        return None
    before = stage.lay()
    place = random.choice(movable)
    path = random.choice((f"C:\\models\\{place}", f"..\\{place}", f"\\\\server\\share\\{place}", f"C:/models/{place}"))
    arguments = [path if word == place else word for word in stage.command.arguments]
    return stage.judged(path, run(arguments, stage.folder), before, (1, 2))


def planted_link(stage: Stage, random: Random) -> Verdict | None:
    """At a name that the command could use there is a link to a folder of the user's, or to a file in it."""
    if not stage.command.writes:
        return None
    stage.lay()
    victim = stage.folder / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("mine")
    names = sorted({*_places(stage), *stage.command.readers})
    place = stage.folder / random.choice(names)
    if place.is_file():
        place.unlink()
    elif place.exists():
        return None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        return None
    to = random.choice(("victim", "victim/thesis.txt", "victim/new", "/dev/zero", "nowhere/at/all"))
    place.symlink_to(to if to.startswith("/") else stage.folder / to)
    before = tree(stage.folder)
    ended = run(stage.command.arguments, stage.folder)
    after = tree(stage.folder)
    touched = [name for name in changes(before, after) if name.startswith("victim")]
    wrong = faults(ended) or (f"changed {touched[0]}" if touched else "")
    return Verdict(f"{place.relative_to(stage.folder)} → {to}", ended.code, wrong)


def _places(stage: Stage) -> Iterator[str]:
    """What its run leaves below ``out``, the folders on the way, and the hidden names beside them."""
    for name in stage.reference.tree:
        path = Path(name)
        if path.parts[0] == "out":
            for place in (path, *path.parents[:-2]):
                yield place.as_posix()
                yield place.with_name(f".{place.name}.lcmmerge.partial").as_posix()
                yield place.with_name(f".{place.name}.partial").as_posix()


RECORDS = ("run.json", ".lock", "lcmmerge.json", "files.json", "study.json", "state.json", "lcmmerge-encoded.json")
FORGERIES: tuple[object, ...] = (
    "../../victim/thesis.txt", "/etc/passwd", "", ".", "..", "a\0b", "\x1b[2J", "x" * 5000, 10**400, -1, 1.5, None,
    True, [], {}, ["../x"], {"../x": "../y"},
)  # fmt: skip


def forged_record(stage: Stage, random: Random) -> Verdict | None:
    """A record of ours in which a name or a value is another's."""
    stage.lay()
    victim = stage.folder / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("mine")
    files = (path for path in stage.folder.rglob("*") if path.is_file() and path.stat().st_size)
    found = sorted(path for path in files if path.name.endswith(RECORDS))
    if not found:
        return None
    record = random.choice(found)
    content = json.loads(record.read_text())
    place, key = _somewhere(content, random)
    way = f"{record.relative_to(stage.folder)}: {key!r}"
    if isinstance(place, dict) and random.random() < 0.3:
        place[random.choice(("../../victim/thesis.txt", "/etc/passwd", "", "a\nb"))] = place.pop(key)
    else:
        place[key] = random.choice(FORGERIES)
    record.write_text(json.dumps(content))
    before = tree(stage.folder)
    ended = run(stage.command.arguments, stage.folder)
    outside = [name for name in changes(before, tree(stage.folder)) if not name.startswith(("out/", "cache/"))]
    return Verdict(way, ended.code, faults(ended) or (f"changed {outside[0]}" if outside else ""))


def _somewhere(content: Any, random: Random) -> tuple[Any, Any]:
    """A container within, and one of its keys or places."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        if not keys:
            return {"": content}, ""
        key = random.choice(keys)
        inner = content[key]
        if not isinstance(inner, dict | list) or not inner or random.random() < 0.3:
            return content, key
        content = inner


def changed_meanwhile(stage: Stage, random: Random) -> Verdict | None:
    """An input is written, replaced, cut or removed while the command reads it: the same end as ever, or one line."""
    names = [name for name in stage.command.readers if not name.startswith("out/")]
    if not names or stage.command.varies:
        return None
    before = stage.lay()
    path = stage.folder / random.choice(sorted(names))
    way = random.choice(("written", "replaced", "cut", "removed"))
    content, moment = path.read_bytes(), random.random() * stage.reference.ended.seconds

    def change() -> None:
        match way:
            case "written":
                path.write_bytes(content)
            case "replaced":
                path.with_name("copy").write_bytes(content)
                path.with_name("copy").replace(path)
            case "cut":
                os.truncate(path, len(content) // 2)
            case "removed":
                path.unlink()

    timer = Timer(moment, change)
    timer.start()
    ended = run(stage.command.arguments, stage.folder)
    timer.join()
    path.write_bytes(content)
    return stage.judged(f"{way} {path.relative_to(stage.folder)}", ended, before)


def other_encoding(stage: Stage, random: Random) -> Verdict:
    """A terminal whose encoding lacks letters."""
    encoding = random.choice(("ascii", "latin-1", "cp437"))
    before = stage.lay()
    ended = run(stage.command.arguments, stage.folder, Circumstances(encoding=encoding))
    return stage.judged(encoding, ended, before, (0,))


FAULTS: dict[str, Fault] = {
    **{f"hostile {kind}": hostile(kind) for kind in KINDS},
    "odd file": odd_file,
    "no disk": no_disk,
    "no stdout": no_stdout,
    "no permission": no_permission,
    "Ctrl-C": stopped_by(signal.SIGINT),
    "SIGTERM": stopped_by(signal.SIGTERM),
    "SIGHUP": stopped_by(signal.SIGHUP),
    "kill -9": killed,
    "planted link": planted_link,
    "forged record": forged_record,
    "changed meanwhile": changed_meanwhile,
    "other encoding": other_encoding,
    "40 columns": narrow,
    "no terminal": unseen,
    "NO_COLOR": uncoloured,
    "odd names": odd_names,
    "Windows path": windows_path,
}
