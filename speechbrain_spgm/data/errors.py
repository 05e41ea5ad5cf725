"""The errors under the name that the parts of this package import them by."""

from speechbrain_spgm.errors import (
    MissingPackage,
    UserError,
    refusal,
    require,
    shown,
    writing,
)

__all__ = ["MissingPackage", "UserError", "refusal", "require", "shown", "writing"]
