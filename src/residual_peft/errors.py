"""The one error family for what a user can mend."""


class ResiDualError(ValueError):
    """Something the user can mend: says what was wanted, what was got and what to do.

    Anything else that is raised from this package is a bug and keeps its traceback.
    """
