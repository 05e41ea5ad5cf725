"""Disk to batches: recordings, mixture lists and dynamic mixing."""

from speechbrain_spgm.data.batch import Mixture, MixtureBatch
from speechbrain_spgm.data.batching import BucketBatchSampler
from speechbrain_spgm.data.dynamic import DynamicMixing
from speechbrain_spgm.data.listed import ManifestDataset, MixtureList
from speechbrain_spgm.data.recordings import Voice, find_noise, find_voices, read_voices
from speechbrain_spgm.errors import UserError

__all__ = [
    "BucketBatchSampler",
    "DynamicMixing",
    "ManifestDataset",
    "Mixture",
    "MixtureBatch",
    "MixtureList",
    "UserError",
    "Voice",
    "find_noise",
    "find_voices",
    "read_voices",
]
