"""From a trained model and a recording to separated voices."""

from speechbrain_spgm.inference.audio import AudioFileError
from speechbrain_spgm.inference.published import (
    ModelError,
    load_published,
    save_published,
)
from speechbrain_spgm.inference.separation import SPGMSeparation
from speechbrain_spgm.inference.stream import SPGMStream

__all__ = [
    "AudioFileError",
    "ModelError",
    "SPGMSeparation",
    "SPGMStream",
    "load_published",
    "save_published",
]
