from __future__ import annotations

import click
from click.shell_completion import get_completion_class

import lcmmerge.cli.shells  # noqa: F401 - click knows its classes from here on

PROGRAM, VARIABLE = "lcmmerge", "_LCMMERGE_COMPLETE"


@click.command(short_help="Print the completion script of bash, zsh or fish.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands, options, files by their suffix, names and usual λs.

    bash: in ~/.bashrc, `eval "$(lcmmerge completion bash)"`. Or, where bash-completion is installed, save it as
    ~/.local/share/bash-completion/completions/lcmmerge. It needs bash 4.4.

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
    click.echo(made(click.get_current_context().find_root().command, {}, PROGRAM, VARIABLE).source(), nl=False)
