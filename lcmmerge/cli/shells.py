"""Completion in bash, zsh and fish: click's protocol, with what its own scripts lack.

Those split bash's words at ``:`` and ``=``, do not quote file names, and write a space after a folder and after
``TERM=``. An item's type says how a shell takes it: ``plain``, a word; ``path``, a file of ours to offer, or a folder,
which ends in ``/``; ``part``, a word that goes on; ``file``, ``dir``: the shell's own completion of paths.
"""

from __future__ import annotations

import os
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

BASH = """\
%(complete_func)s() {
    local type value
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            plain) COMPREPLY+=("$value") ;;
            path) COMPREPLY+=("$value"); compopt -o filenames ;;
            part) COMPREPLY+=("$value"); compopt -o nospace ;;
            file) compopt -o default ;;
            dir) compopt -o dirnames ;;
        esac
    done < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \
%(complete_var)s=bash_complete "${1/#\\~/$HOME}" 2>/dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

ZSH = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local type value help
    local -a words_only described open home
    for type value help in "${(@f)$(COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \
%(complete_var)s=zsh_complete ${(Q)words[1]/#\\~/$HOME} 2>/dev/null)}"; do
        case $type in
            file) _path_files -f ;;
            dir) _path_files -/ ;;
            *)
                if [[ $value == \\~/* ]]; then home+=("~${(q)value#\\~}")
                elif [[ $type == part || $value == */ ]]; then open+=("$value")
                elif [[ $help == _ ]]; then words_only+=("$value")
                else described+=("$value:$help")
                fi ;;
        esac
    done
    (( $#described )) && _describe -V values described -U
    (( $#words_only )) && compadd -U -V words -a words_only
    (( $#home )) && compadd -U -V home -Q -S '' -a home
    (( $#open )) && compadd -U -V open -S '' -a open
    return 0
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""

FISH = """\
function %(complete_func)s
    set -l program (string split ' ' -- (commandline -cp))[1]
    for line in (env %(complete_var)s=fish_complete COMP_WORDS=(commandline -cp | string collect) \
(string replace -r '^~' $HOME -- $program) 2>/dev/null)
        set -l item (string split -m 1 , -- $line)
        switch $item[1]
            case dir
                __fish_complete_directories $item[2]
            case file
                __fish_complete_path $item[2]
            case '*'
                printf '%%s\\n' $item[2]
        end
    end
end

complete --command %(prog_name)s --no-files --keep-order --arguments '(%(complete_func)s)'
"""


def words_of(ctx: click.Context) -> tuple[str, ...]:
    """What stands before the word that is completed; none of it when nothing is completed."""
    return ctx.obj if isinstance(ctx.obj, tuple) else ()


class Remembering(ShellComplete):
    """For ``words_of``."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        self.ctx_args["obj"] = tuple(args)
        return super().get_completions(args, incomplete)


@add_completion_class
class Bash(Remembering, BashComplete):
    """Reads the line itself: bash cuts its words at ``COMP_WORDBREAKS``, and wants back what is behind the last cut."""

    source_template = BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        return _until_cursor(os.environ["COMP_LINE"])

    def format_completion(self, item: CompletionItem[Any]) -> str:
        incomplete = self.get_completion_args()[1]
        cut = max((incomplete.rfind(sign) for sign in "=:" if sign in os.environ["COMP_WORDBREAKS"]), default=-1)
        value = item.value.removesuffix("/") if item.type == "path" else item.value  # readline adds it
        return f"{item.type},{value[cut + 1 :]}"


@add_completion_class
class Zsh(Remembering, ZshComplete):
    source_template = ZSH


@add_completion_class
class Fish(Remembering, FishComplete):
    source_template = FISH

    def get_completion_args(self) -> tuple[list[str], str]:
        return _until_cursor(os.environ["COMP_WORDS"])


def _until_cursor(line: str) -> tuple[list[str], str]:
    """The words of a command, without its own name, and the one that the cursor is in or begins."""
    words = split_arg_string(line)
    if line.endswith((" ", "\t")) and not line.endswith("\\ "):
        words.append("")
    return words[1:-1], words[-1]
