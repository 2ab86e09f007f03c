"""The kinds of trouble a user is told about: what was asked is wrong, or what was asked could not be
done.
"""


class DataError(Exception):
    """Work failed on the data: the message says what, where, and what to do. Commands exit with code 1."""


class UsageError(DataError):
    """What was asked for cannot be: wrong path, flag, column or combination. Commands exit with code 2."""


class DamagedSample(DataError):
    """A sample was read, but its bytes are not what was written, or hold no image and caption."""
