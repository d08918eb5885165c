"""The `vidtwin` command: the project's scripts from any folder.

    vidtwin sample --prompt "a red circle moves left"
    vidtwin train-ae --config ae/shapes.yaml output=outputs/shapes

A config or checkpoint that is not there is taken from those that ship with the package; all
options are the script's own. For several processes: `accelerate launch -m vidtwin_lab.cli ...`.

    eval "$(vidtwin completion bash)"      completes commands and shipped configs, in bash or zsh
"""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Sequence
from importlib import metadata

from vidtwin.files import nearest_name, root_folder

__all__ = ["main"]

COMMANDS = {
    "sample": "videos from prompts, classes, or half of another video",
    "reconstruct": "videos through the autoencoder and back",
    "shards": "videos into tar shards, to be read from a disk or a URL",
    "encode": "a data set into a latent cache",
    "evaluate": "measure autoencoders and pipelines",
    "evaluate-language": "measure text encoders",
    "train-ae": "train an autoencoder",
    "train-diffusion": "train a diffusion transformer",
    "train-language": "train a text encoder",
}
# Not scripts: of the command itself.
OTHERS = {
    "doctor": "what would go wrong here, and with a config, before hours are spent",
    "plot": "curves and samples of runs",
    "studio": "a page in the browser: prompts, swaps, comparisons, runs",
    "completion": "a script that completes commands, for bash or zsh",
}
MODULES = {
    "doctor": "vidtwin_lab.doctor.command",
    "plot": "vidtwin_lab.studio.plot",
    "studio": "vidtwin_lab.studio.command",
}
_COMPLETION = """\
[ -n "$ZSH_VERSION" ] && autoload -U +X compinit bashcompinit && compinit && bashcompinit
_vidtwin() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
    if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    elif [ "$before" = --config ]; then COMPREPLY=($(compgen -f -W "{configs}" -- "$word"))
    else COMPREPLY=($(compgen -f -- "$word")); fi
}}
complete -F _vidtwin vidtwin
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a script as `python SCRIPT ...` does; ends the process as it does."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name in ("-h", "--help"):
        about = "".join(
            f"    {command:20}{told}\n" for command, told in (COMMANDS | OTHERS).items()
        )
        print(f"{__doc__}\nCommands, each with its own --help:\n{about}", end="")
    elif name == "--version":
        print(f"vidtwin {metadata.version('vidtwin')}")
    elif name == "completion":
        print(completion(), end="")
    elif name in MODULES:
        from vidtwin_lab import runtime

        runtime.configure_logging()
        module = importlib.import_module(MODULES[name])
        runtime.run_main(lambda: module.main(rest))
    elif name not in COMMANDS:
        near = nearest_name(name, COMMANDS | OTHERS)
        print(f"error: unknown command {name!r}; the nearest is {near!r}", file=sys.stderr)
        sys.exit(2)
    else:
        script = root_folder() / f"{name.replace('-', '_')}.py"
        sys.argv = [str(script), *rest]
        runpy.run_path(str(script), run_name="__main__")


def completion() -> str:
    """A script for bash and zsh that completes commands and the names of shipped configs."""
    configs = root_folder() / "configs"
    names = sorted(str(path.relative_to(configs)) for path in configs.rglob("*.yaml"))
    return _COMPLETION.format(
        commands=" ".join([*COMMANDS, *OTHERS, "--help", "--version"]),
        configs=" ".join(names),
    )


if __name__ == "__main__":
    main()
