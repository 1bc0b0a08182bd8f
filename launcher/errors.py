"""Errors that a user can mend."""


class LauncherError(ValueError):
    """A fault in what the user gave: flags, files, hosts.

    The message is one paragraph that names the value, what was allowed and what to do. The command
    prints it without a traceback and exits with code 2.
    """
