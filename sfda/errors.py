"""The one error type that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: a path, an option, a file.

    The command line prints its text alone, without a traceback, and exits with status 2. The text names the file or
    the option and says what to do about it.
    """
