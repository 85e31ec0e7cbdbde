"""The command `rule`: what a trained rule is; a small file of it."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_ecd.errors import UserError
from lightning_ecd.parser import PROGRAM, Parser, fail, one_line, run_of
from lightning_ecd.rules import UpdateRule, read_rule, write_rule
from lightning_ecd.rules.files import SHIPPED
from lightning_ecd.rules.files import found as found_file


def shipped() -> list[str]:
    """Return the names of the rules that come with the project."""
    return sorted(file.stem for file in SHIPPED.glob("*.pt"))


class Rule:
    """Shows a trained rule: network, settings, rate and weights.

    Args:
        checkpoint: A checkpoint of `modules.MetaTask`, a file of this command, or the
            name of a rule that comes with the project; None: list those.
        output: Where to write a file of the rule alone, ending in .pt; the
            configuration of its run, with the seed, goes beside it as .yaml.
    """

    def __init__(self, checkpoint: str | None = None, output: str | None = None):
        if output is not None and Path(output).suffix != ".pt":
            raise ValueError(f"output must end in .pt, got {output}")
        if output is not None and checkpoint is None:
            raise ValueError("output needs a checkpoint to take the rule from")
        self.checkpoint = checkpoint
        self.output = None if output is None else Path(output)

    def run(self) -> list[tuple[str, UpdateRule, float]]:
        """Return (name, rule, rate) of every rule shown; write the file."""
        names = shipped() if self.checkpoint is None else [self.checkpoint]
        found = [(name, *read_rule(name)) for name in names]
        if self.output is not None:
            _, rule, lr = found[0]
            self.output.parent.mkdir(parents=True, exist_ok=True)
            write_rule(self.output, rule, lr)
            source = found_file(names[0])
            beside = source.with_suffix(".yaml"), run_of(source) / "config.yaml"
            made_by = [file for file in beside if file.is_file()]
            if made_by:
                shutil.copyfile(made_by[0], self.output.with_suffix(".yaml"))
        return found


def rule(args: Sequence[str]) -> None:
    """Run the command; what the user can mend is one line."""
    parser = Parser(
        prog=f"{PROGRAM} rule",
        description="What a trained update rule is; a small file of it.",
    )
    parser.arguments = args
    parser.add_class_arguments(Rule)
    try:
        parsed = parser.instantiate_classes(parser.parse_args(list(args)))
        command = Rule(**vars(parsed))
        found = command.run()
    except (ValueError, OSError, UserError) as error:
        fail(one_line(str(error)))
    table = Table("checkpoint", "rule", "settings", "lr", "weights", "state")
    for name, trained, lr in found:
        settings = ", ".join(
            f"{key}={value}" for key, value in trained.settings.items()
        )
        weights = sum(w.numel() for w in trained.parameters())
        kind = type(trained).__name__
        table.add_row(
            name, kind, settings, f"{lr:g}", f"{weights:,}", str(trained.state_size)
        )
    Console(width=120).print(table)
    if command.output is not None:
        print(f"rule: {command.output}")
