"""The subcommands of ``spgm``, one module each, and what they share.

A subcommand's module has ``add_parser(commands)``, which adds its arguments and sets
``run``, a function from the parsed arguments to the exit code. Nothing heavy is
imported before ``run``, so that help is instant.
"""
