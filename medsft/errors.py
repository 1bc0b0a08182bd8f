"""Errors that a user can mend."""


class UserError(ValueError):
    """A fault in what the user gave: flags, files, data.

    The message is one paragraph that names the value, what was allowed and what to do. Commands print
    it without a traceback and exit with code 2.
    """
