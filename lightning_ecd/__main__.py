"""The face of the project: answers what it can without torch, then imports."""

import sys
from collections.abc import Sequence
from importlib import import_module

from lightning_ecd import __version__

#: Command -> what it does.
COMMANDS = {
    "fit": "train a task with an optimizer; --config FILE, or flags",
    "validate": "compute validation metrics of a checkpoint",
    "test": "compute test metrics of a checkpoint",
    "predict": "write predictions of a checkpoint",
    "tune": "search hyper-parameters; --config FILE, or --restore FOLDER",
    "compare": "optimizers on tasks: the same tuning, the same price; a report",
    "curvature": "spectrum, trace and flatness of a checkpoint's loss",
    "scoping": "figure: local entropy finds the wide valley of a landscape",
    "orthogonality": "figure: how nearly orthogonal random vectors are",
    "dimensions": "accuracy and correlation against the number of random directions",
    "rule": "what a meta-trained update rule is; a small file of it",
    "theory": "what the theory of mini-batch SGD says: losses, stability, momenta",
    "trajectories": "many runs of optimizers on a synthetic function",
    "table": "published results beside ours, from a file of configs/table",
    "optimizers": "list the registered optimizers; a wildcard filters; --json",
}
#: Command -> module and function that run it, imported when it is called; all others
#: are Lightning's.
RUNNERS = {
    "tune": "tune.command:main",
    "compare": "tune.compare:main",
    "curvature": "lightning_ecd.inspection:curvature",
    "scoping": "lightning_ecd.scoping:scoping",
    "orthogonality": "lightning_ecd.orthogonality:orthogonality",
    "dimensions": "tune.dimensions:main",
    "rule": "lightning_ecd.trained:rule",
    "theory": "lightning_ecd.predictions:theory",
    "trajectories": "lightning_ecd.studies:trajectories",
    "table": "tune.tables:main",
    "optimizers": "lightning_ecd.listing:main",
}


def usage() -> str:
    """Return the help of the whole program."""
    rows = "\n".join(f"  {name:<15}{what}" for name, what in COMMANDS.items())
    return (
        "usage: lightning-ecd COMMAND [ARGUMENTS]\n\n"
        f"Unconventional optimizers on PyTorch Lightning.\n\ncommands:\n{rows}\n\n"
        "  lightning-ecd COMMAND --help    arguments of a command\n"
        "  lightning-ecd --version\n"
    )


def main(args: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        args: The command and its arguments; None: those of the process.

    Raises:
        SystemExit: With code 2 for what the user can mend, 130 after Ctrl-C.
    """
    try:
        _run(list(sys.argv[1:] if args is None else args))
    except (KeyboardInterrupt, SystemExit) as end:
        # Lightning catches Ctrl-C, and exits with 1
        ctrl_c = any(isinstance(e, KeyboardInterrupt) for e in (end, end.__context__))
        if not ctrl_c or getattr(end, "code", None) == 130:
            raise
        print("lightning-ecd: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(), end="")
        return
    command = arguments[0]
    if command == "--version":
        print(f"lightning-ecd {__version__}")
    elif command in RUNNERS:
        module, _, name = RUNNERS[command].partition(":")
        getattr(import_module(module), name)(arguments[1:])
    elif command in COMMANDS:
        from lightning_ecd.cli import main as run

        run(arguments)
    else:
        print(
            f"lightning-ecd: error: unknown command {command!r}: choose one of "
            + ", ".join(COMMANDS),
            file=sys.stderr,
        )
        raise SystemExit(2)


if __name__ == "__main__":
    main()
