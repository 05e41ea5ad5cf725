"""From a trained model to a repository on the Hugging Face Hub."""

from speechbrain_spgm.publishing.assemble import Assembled, assemble
from speechbrain_spgm.publishing.upload import Uploaded, upload

__all__ = ["Assembled", "Uploaded", "assemble", "upload"]
