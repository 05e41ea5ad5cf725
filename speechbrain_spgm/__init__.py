"""Single-Path Global Modulation (SPGM) for speech separation with SpeechBrain.

Rooms: ``lobes`` (networks), ``data`` (disk to batches), ``training`` and ``inference``;
``cli`` is the command ``spgm``. Nothing is imported here, so that it starts fast.
"""

__version__ = "0.1.0"
