"""The error for what a user can put right."""


class UserError(ValueError):
    """Wrong input; the message is one sentence naming the value and the remedy.

    Programs catch it at the top, print the message alone and exit with code 2.

    Example
    -------
    >>> raise UserError("num_spks is 3, but the list mix.csv has 2 sources.")
    Traceback (most recent call last):
    ...
    speechbrain_spgm.data.errors.UserError: num_spks is 3, but the list mix.csv has 2 sources.
    """  # noqa: E501
