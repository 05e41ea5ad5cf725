"""The subcommands of ``spgm`` beside separate and info, one module each.

A module has ``add_parser(commands)``, which adds its arguments and sets ``run``, a
function from the parsed arguments to the exit code. Nothing heavy is imported before
``run``, so that help is instant.
"""


class Problem(Exception):
    """Wrong input; the message is one sentence for the user."""


SOURCE = (  # what a model may be named by
    "a model folder or a run's output folder; the name of a shipped model; spgm-base "
    "or spgm-opt, the authors' models; or a Hub repository USER/NAME"
)
