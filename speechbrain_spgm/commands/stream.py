"""``spgm stream``: separates a talk while it goes on."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from speechbrain_spgm.choices import CODES, LOOK_BACK, STREAM_VIEWS
from speechbrain_spgm.commands.common import (
    add_channel_option,
    add_model_options,
    add_precision_option,
    load_model,
    make_folder,
    refuse_given,
    say,
    standard_input,
)
from speechbrain_spgm.console import Ending, lead_nowhere
from speechbrain_spgm.errors import UserError, count

if TYPE_CHECKING:
    import numpy as np

    from speechbrain_spgm.inference.stream import SPGMStream
    from speechbrain_spgm.pcm import Meter, Source

Write = Callable[["np.ndarray"], None]  # of voices [n, spks]
MOST_THREADS = 1024  # OpenMP ends the process where it cannot make them
LINE_EVERY, REFRESH_EVERY = 10.0, 0.5  # seconds between reports; on a terminal


class Full(Exception):
    """A file takes no more."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """The arguments of ``spgm stream``."""
    command = commands.add_parser(
        "stream",
        help="separate a talk while it goes on",
        description="Separate what comes from standard input or a microphone, one "
        "chunk of the model behind it (0.5 s with the shipped one; the first second "
        "waits for its end). Write DIR/NAME_spk1.wav, DIR/NAME_spk2.wav, ... as the "
        "voices come, or raw samples to standard output, at the rate of the input. "
        "Ctrl-C and SIGTERM finish the files. Delay, load (computing time as a share "
        "of the sound's) and drop-outs are shown on standard error.",
    )
    add_model_options(command, "--model")
    add_precision_option(command)
    command.add_argument(
        "--warm-up",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="how long the first words are held back, to be separated as well as the "
        "others: by default 1, at most 60",
    )
    command.add_argument(
        "--horizon",
        type=float,
        metavar="SECONDS",
        help="after how long the past counts a third, so that talkers may come and go; "
        "by default nothing is forgotten",
    )
    command.add_argument(
        "--look-back",
        type=float,
        default=LOOK_BACK,
        metavar="SECONDS",
        help="up to when the talk so far is separated anew whenever it has become "
        f"twice as long, lest a voice changes its file: by default {LOOK_BACK:g}, at "
        "most 60; 0 for a machine that hardly keeps up",
    )
    command.add_argument(
        "--views",
        type=int,
        choices=STREAM_VIEWS,
        help="2: a mean of the mixture's voices and of those of the mixture upside "
        "down, which are better for twice the computing; by default what the model's "
        "card asks for (the shipped one's: 2)",
    )
    command.add_argument(
        "--threads", type=int, metavar="N", help="cores to compute with; by default all"
    )
    add_input_options(command)
    add_output_options(command)
    command.set_defaults(run=run, default_of=command.get_default)


def add_input_options(command: argparse.ArgumentParser) -> None:
    """Where the talk comes from."""
    command.add_argument(
        "--format",
        choices=["wav", *CODES],
        default="wav",
        help="what comes from standard input: a WAV file, with or without an end "
        "(default), or raw samples, then give --rate",
    )
    command.add_argument(
        "--rate", type=int, metavar="HZ", help="of raw samples, or of the microphone"
    )
    command.add_argument(
        "--channels",
        type=int,
        default=1,
        metavar="N",
        help="of raw samples, by default 1",
    )
    add_channel_option(command)
    command.add_argument(
        "--microphone",
        nargs="?",
        const="",
        metavar="DEVICE",
        help="listen to a microphone instead, by its number or name; needs the package "
        "sounddevice",
    )


def add_output_options(command: argparse.ArgumentParser) -> None:
    """Where the voices go."""
    command.add_argument("--output", metavar="DIR", help="write one WAV file per voice")
    command.add_argument(
        "--name", default="stream", help="how files begin, by default stream"
    )
    command.add_argument(
        "--raw",
        choices=["s16le", "f32le"],
        help="write raw samples to standard output, the voices interleaved",
    )
    command.add_argument(
        "--voice", type=int, metavar="N", help="with --raw: this voice alone, from 1"
    )


def run(arguments: argparse.Namespace) -> int:
    """Separates until the input ends or a signal does; returns the exit code."""
    check(arguments)
    model = load_model(arguments)
    if arguments.threads is not None:
        import torch

        torch.set_num_threads(arguments.threads)
    voice = arguments.voice
    if voice is not None and voice > model.num_spks:
        raise UserError(f"voice is {voice}, but the model has {model.num_spks}.")
    stream = model.stream(
        arguments.warm_up, arguments.horizon, arguments.views, arguments.look_back
    )
    source, ending = open_source(arguments), Ending()
    with ending.listening():
        sink = to_files if arguments.raw is None else to_stdout
        with sink(arguments, source.kind.rate, model.num_spks) as write:
            meter = separate(stream, source, write, ending)
    report(arguments, source, meter, model.num_spks)
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Refuses what does not go together, before a model is loaded."""
    if (arguments.output is None) == (arguments.raw is None):
        raise UserError(
            "name one place where the voices go: --output DIR for files, or --raw "
            "s16le for standard output."
        )
    raw, voice = arguments.raw is not None, arguments.voice
    if arguments.output == "":
        raise UserError("a path is empty: name a folder, . for this one.")
    if voice is not None and (not raw or voice < 1):
        raise UserError(f"voice is {voice}: it counts from 1 and goes with --raw only.")
    if "/" in arguments.name or arguments.name in ("", "."):
        raise UserError(f"name is {arguments.name!r}, but must be the name of a file.")
    if raw:
        refuse_given(arguments, ["name"], "goes with --output only")
    if arguments.microphone is not None:
        refuse_given(arguments, ["format", "channels"], "is of standard input only")
    plain = arguments.microphone is None and arguments.format == "wav"
    if plain and (arguments.rate is not None or arguments.channels != 1):
        raise UserError(
            "a WAV file says its rate and channels itself: leave out --rate and "
            "--channels, or give --format."
        )
    raw_input = arguments.microphone is None and arguments.format != "wav"
    if raw_input and arguments.rate is None:
        raise UserError(
            f"samples of format {arguments.format} do not say their rate: give --rate."
        )
    if arguments.threads is not None and not 1 <= arguments.threads <= MOST_THREADS:
        raise UserError(
            f"threads is {arguments.threads}, but must be from 1 to {MOST_THREADS}."
        )


def open_source(arguments: argparse.Namespace) -> Source:
    """Where the samples come from."""
    from speechbrain_spgm.pcm import PCM, Microphone, Pipe

    channel = arguments.channel
    if arguments.microphone is not None:
        return Microphone(arguments.microphone or None, arguments.rate, channel)
    kind = None
    if arguments.format != "wav":
        kind = PCM(arguments.format, arguments.rate, arguments.channels)
    return Pipe(standard_input(), kind, channel=channel)


def separate(stream: SPGMStream, source: Source, write: Write, ending: Ending) -> Meter:
    """From blocks of samples to blocks of voices, and what that took."""
    import torch

    from speechbrain_spgm.audio import Resampler
    from speechbrain_spgm.pcm import Meter

    rate, meter = source.kind.rate, Meter(source.kind.rate)
    there, back = (
        Resampler(rate, stream.sample_rate),
        Resampler(stream.sample_rate, rate),
    )
    given, told = 0, time.monotonic()

    def use(voices: torch.Tensor, last: bool = False) -> None:
        """Writes voices ``[n, spks]``, as many samples as came in all."""
        nonlocal given
        voices = back.push(voices.t().double()).t()
        if last:
            voices = torch.cat([voices, back.finish().t()])
        voices = voices[: meter.samples - given]
        given += len(voices)
        write(voices.float().numpy())

    try:
        for block in ending.until(source.blocks()):
            with meter.measure(len(block)):
                samples = there.push(torch.from_numpy(block))
                voices = stream.push(samples)
            use(voices)
            told = tell(meter, stream.latency, source, told)
        with meter.measure(0):
            voices = torch.cat([stream.push(there.finish()), stream.finish()])
        use(voices, last=True)
    except BrokenPipeError:  # whoever listened has gone: that is an end, too
        pass
    except Full:
        say("spgm: the files have 4 GiB, and WAV files hold no more: that was the end.")
    return meter


def tell(meter: Meter, latency: float, source: Source, told: float) -> float:
    """Shows how it goes, now and then; returns when it was told."""
    now, tty = time.monotonic(), sys.stderr.isatty()
    if now - told < (REFRESH_EVERY if tty else LINE_EVERY):
        return told
    delay = latency + source.backlog + meter.longest
    line = (
        f"{meter.seconds:.0f} s  delay {delay:.2f} s  load {meter.load:.0%}  "
        f"drop-outs {source.dropouts}"
    )
    sys.stderr.write(f"\r{line}   " if tty else f"{line}\n")
    sys.stderr.flush()
    return now


def report(
    arguments: argparse.Namespace, source: Source, meter: Meter, spks: int
) -> None:
    """Says what was done, and what the user should know."""
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    if source.spoilt:
        spoilt = count(source.spoilt, "sample")
        say(f"spgm: {spoilt} of {source.name} were no numbers: taken as silence.")
    if source.missing:
        held, lost = meter.samples, source.missing
        say(
            f"spgm: {source.name} is cut off: it holds {held} of {held + lost} samples."
        )
    if source.dropouts:
        say(f"spgm: {count(source.dropouts, 'drop-out')}: sound was lost there.")
    say(
        f"spgm: {meter.seconds:.1f} s, load {meter.load:.0%}, the longest push took "
        f"{meter.longest:.2f} s."
    )
    if arguments.raw is None:
        names = " ".join(str(path) for path in outputs(arguments, spks))
        print(f"Separated {meter.seconds:.1f} s into {names}.")


def outputs(arguments: argparse.Namespace, spks: int) -> list[Path]:
    """The files that are written."""
    folder = Path(arguments.output)
    return [folder / f"{arguments.name}_spk{k + 1}.wav" for k in range(spks)]


@contextmanager
def to_files(arguments: argparse.Namespace, rate: int, spks: int) -> Iterator[Write]:
    """One WAV file per voice, which has its name when the block ends."""
    from speechbrain_spgm.audio import LARGEST_RIFF, voice_files
    from speechbrain_spgm.inference.files import make_room, spare

    make_folder(Path(arguments.output))
    places = outputs(arguments, spks)
    make_room(places, "give another --name")  # before the talk, not after it
    if arguments.microphone is None:
        spare(standard_input(), places)
    left = LARGEST_RIFF // 4  # samples
    with voice_files(places, rate, frames=0) as files:

        def write(voices: np.ndarray) -> None:
            nonlocal left
            left -= len(voices)
            if left < 0:
                raise Full
            for file, voice in zip(files, voices.T, strict=True):
                file.write(voice)

        yield write


@contextmanager
def to_stdout(arguments: argparse.Namespace, rate: int, spks: int) -> Iterator[Write]:
    """Raw samples; a reader that leaves ends it."""
    from speechbrain_spgm.pcm import encode

    if sys.stdout is None or not hasattr(sys.stdout, "buffer"):
        raise UserError("standard output is closed: name a folder by --output.")
    file: BinaryIO = sys.stdout.buffer
    chosen = slice(None) if arguments.voice is None else arguments.voice - 1

    def write(voices: np.ndarray) -> None:
        file.write(encode(voices[:, chosen], arguments.raw))
        file.flush()

    try:
        yield write
    finally:
        try:
            file.flush()
        except BrokenPipeError:  # Python would try again at its end
            lead_nowhere(file)
