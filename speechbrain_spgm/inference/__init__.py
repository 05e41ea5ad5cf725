"""From a trained model and a recording to separated voices."""

from speechbrain_spgm.audio import AudioFileError
from speechbrain_spgm.inference.separation import SPGMSeparation
from speechbrain_spgm.inference.stream import SPGMStream
from speechbrain_spgm.models.published import ModelError, load_published, save_published

__all__ = [
    "AudioFileError",
    "ModelError",
    "SPGMSeparation",
    "SPGMStream",
    "load_published",
    "save_published",
]
