"""The face of the project: answers what it can without torch, then imports."""

import sys
from collections.abc import Sequence

from lightning_ecd import __version__

#: Command -> what it does; the module that runs it is imported when it is called.
COMMANDS = {
    "fit": "train a task with an optimizer; --config FILE, or flags",
    "validate": "compute validation metrics of a checkpoint",
    "test": "compute test metrics of a checkpoint",
    "predict": "write predictions of a checkpoint",
    "tune": "search hyper-parameters; --config FILE, or --restore FOLDER",
    "curvature": "spectrum, trace and flatness of a checkpoint's loss",
    "scoping": "figure: local entropy finds the wide valley of a landscape",
    "trajectories": "many runs of optimizers on a synthetic function",
    "table": "published results beside ours, from a file of configs/table",
    "optimizers": "list the registered optimizers; a wildcard filters; --json",
}


def usage() -> str:
    """Return the help of the whole program."""
    rows = "\n".join(f"  {name:<14}{what}" for name, what in COMMANDS.items())
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
        SystemExit: With code 2 for what the user can mend.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(), end="")
        return
    command = arguments[0]
    if command == "--version":
        print(f"lightning-ecd {__version__}")
    elif command == "optimizers":
        from lightning_ecd.listing import main as listing

        listing(arguments[1:])
    elif command == "trajectories":
        from lightning_ecd.studies import trajectories

        trajectories(arguments[1:])
    elif command == "curvature":
        from lightning_ecd.inspection import curvature

        curvature(arguments[1:])
    elif command == "scoping":
        from lightning_ecd.scoping import scoping

        scoping(arguments[1:])
    elif command == "tune":
        from tune.command import main as tune

        tune(arguments[1:])
    elif command == "table":
        from tune.tables import main as table

        table(arguments[1:])
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
