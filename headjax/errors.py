"""The one error class for input a user can mend."""


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a tensor, a field, a name.

    The message states the rule, then what came, and names the file, tensor or field. Command lines
    print it as one line and exit with status 2; every other exception is a bug and keeps its traceback.
    """
