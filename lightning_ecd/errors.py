"""Errors that the command line reports in one line, without a traceback."""


class UserError(Exception):
    """Something the user can mend; the message names it and says how."""


class Diverged(ArithmeticError):
    """A loss that is not finite; the message says step, loss and optimizer."""
