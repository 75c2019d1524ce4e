from __future__ import annotations

import click
from click.shell_completion import get_completion_class

PROGRAM, VARIABLE = "lcmmerge", "_LCMMERGE_COMPLETE"
# bash cuts words at a colon, and would ask for what follows `zoo:` alone.
BEFORE = {"bash": "COMP_WORDBREAKS=${COMP_WORDBREAKS//:}\n"}
# Where click leaves paths to readline, other words are lost; as the names of files readline quotes them all.
PATHS = 'compopt -o default -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$2")'


@click.command(short_help="Print the completion script of bash, zsh or fish.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands, options, paths, zoo:…, and the names of accelerators and the like.

    bash: in ~/.bashrc, `eval "$(lcmmerge completion bash)"`. It needs bash 4.4.

    zsh: in ~/.zshrc, after compinit, `eval "$(lcmmerge completion zsh)"`. Or save it as _lcmmerge in a folder of
    $fpath.

    fish: save it as ~/.config/fish/completions/lcmmerge.fish.

    \b
      lcmmerge completion bash
      lcmmerge completion zsh > ~/.zfunc/_lcmmerge
      lcmmerge completion fish > ~/.config/fish/completions/lcmmerge.fish
    """
    made = get_completion_class(shell)
    assert made is not None
    script = made(click.Group(), {}, PROGRAM, VARIABLE).source()
    click.echo(BEFORE.get(shell, "") + script.replace("compopt -o default", PATHS))
