"""The one error type that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: a path, an option, a file.

    The command line prints its text alone, without a traceback, and exits with status 2. The text names the file or
    the option and says what to do about it.
    """


def refuse_negative(**options: float) -> None:
    """Check options of a model that have no upper bound.

    Raises:
        UserError: one of them is below 0.
    """
    for option, value in options.items():
        if value < 0:
            raise UserError(f"model option {option}: a number from 0 up, not {value}")
