"""The words that an option may be, once for functions, yamls and command lines.

This module imports nothing: the parsers of the commands must not take long.
"""

STATISTICS = ("whole", "running", "window")  # what averages are over
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
MODES = ("auto", "exact", "stitched")  # how a recording is separated
STREAM_VIEWS = (1, 2)
LOOK_BACK = 8.0  # seconds of a stream
LAYOUTS = ("published", "speechbrain")  # of a model
LENGTHS = ("min", "max")  # of a mixture: that of its shortest or longest source
FORMATS = {  # by ending: libsndfile's name, and the subtype by default
    "wav": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_24"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "FLOAT"),
    "caf": ("CAF", "FLOAT"),
    "w64": ("W64", "FLOAT"),
    "au": ("AU", "FLOAT"),
}
SUBTYPES = {"float": "FLOAT", "double": "DOUBLE"}
SUBTYPES |= {str(bits): f"PCM_{bits}" for bits in (16, 24, 32)}
CODES = {  # of raw samples: numpy's name
    **{"u8": "<u1", "s16le": "<i2", "s24le": "<i3", "s32le": "<i4"},
    **{"f32le": "<f4", "f64le": "<f8"},
}
