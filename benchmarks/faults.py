"""A campaign of faults: bad files, kills, full disks, hostile models, a broken Hub.

    python -m benchmarks.faults                    # an hour on two cores, and the docs
    python -m benchmarks.faults --scale 0.01 --kinds audio,kills

Every case runs in a process of its own, forked from this one, and is held to the
promises of docs/reliability.md: the exit code is 0 or 2 (or that of a signal), a
refusal is a sentence without a traceback, what stands under a final name is whole,
nothing temporary stays, and memory and time are bounded. The seed draws all cases;
nothing leaves this machine. Needs a checkout, as it uses what the tests have.
"""

from __future__ import annotations

import argparse
import encodings.utf_8_sig  # noqa: F401  for users who may not read Python's own files
import fcntl
import json
import math
import os
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import huggingface_hub
import numpy as np
import soundfile
import torch
from safetensors.torch import save_file

from benchmarks.inference import memory
from speechbrain_spgm.cli import main as spgm
from speechbrain_spgm.console import surroundings
from speechbrain_spgm.errors import writing
from speechbrain_spgm.files import TEMPORARY, check_writable, replacing
from speechbrain_spgm.inference import SPGMSeparation, save_published
from speechbrain_spgm.models import remote
from speechbrain_spgm.models.convert import write_speechbrain
from speechbrain_spgm.models.published import build, read_published
from speechbrain_spgm.training.experiment import user_errors
from tests.conftest import CARD, CONFIG
from tests.corpora.test_generation import plan
from tests.hub_server import Repository, serve
from tests.models.test_hostile import HOSTILE
from tests.recipes.conftest import write_own_corpus
from tests.recipes.test_runs import command
from tests.training import tiny

ROOT = Path(__file__).resolve().parents[1]
SECONDS, MIB = 120, 1000  # most that a case may take, of memory beyond the libraries'
NOBODY = 65534
RATE = 8000

Work = Callable[[], object]  # what a case does; returns its exit code, or None for 0


class Outcome(NamedTuple):
    """How a case ended."""

    code: int  # negative: the signal that ended it
    said: str
    mib: int  # beyond what it had of its parent
    seconds: float

    def trouble(self, *codes: int) -> str:
        """What is wrong with it, or nothing."""
        lines = self.said.strip().splitlines()
        if self.code not in codes:
            return f"exit code {self.code}: {' '.join(lines[-3:])}"
        for mark in ("Traceback", "Exception ignored", "Error in"):
            if mark in self.said:
                return f"{mark}: {lines[-1]}"
        if self.code == 2 and not lines:
            return "refused without a word"
        if any(ord(c) < 32 for line in lines for c in line if c not in "\t\r"):
            return "control characters on the terminal"
        if self.mib > MIB or self.seconds > SECONDS:
            return f"{self.mib} MiB, {self.seconds:.0f} s"
        return ""


class Child:
    """A case in a process of its own.

    Arguments
    ---------
    work : callable
        What it does.
    prepare : callable, optional
        Called first in the process: limits, rights, streams.
    """

    def __init__(self, work: Work, prepare: Work | None = None) -> None:
        self.began = time.monotonic()
        self.inherited = memory("VmRSS")  # a parent that has run other tests has more
        self.reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 2**20)
        sys.stdout.flush()
        with warnings.catch_warnings():  # of threads, none of which the case needs
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid:
            os.close(writer)
            return
        code: object = 1
        try:
            for stream in (1, 2):
                os.dup2(writer, stream)
            sys.stdout = open(1, "w", closefd=False, encoding="utf-8")
            sys.stderr = open(2, "w", closefd=False, encoding="utf-8")
            signal.signal(signal.SIGINT, signal.default_int_handler)
            torch.set_num_threads(1)
            if prepare is not None:
                prepare()
            code = work() or 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
        finally:
            try:
                for stream in (sys.stdout, sys.stderr):
                    if stream is not None:
                        stream.flush()
            finally:
                os._exit(code if isinstance(code, int) else 1)

    def wait(self) -> Outcome:
        """Its end, at the latest after the time a case may take."""
        while not (done := os.wait4(self.pid, os.WNOHANG))[0]:
            if time.monotonic() - self.began > SECONDS + 10:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.005)
        os.set_blocking(self.reader, False)
        said = bytearray()
        try:
            while part := os.read(self.reader, 2**16):
                said += part
        except BlockingIOError:
            pass  # a process that the case started still holds it
        os.close(self.reader)
        code = os.waitstatus_to_exitcode(done[1])
        seconds = time.monotonic() - self.began
        said = said.decode("utf-8", "replace")
        peak = done[2].ru_maxrss * 1024
        return Outcome(code, said, (peak - self.inherited) // 2**20, seconds)


class Job(NamedTuple):
    """Something a user starts: what it does to a folder, and its results there."""

    name: str
    work: Callable[[Path], object]
    results: str

    def read(self, out: Path) -> dict[str, bytes]:
        """The results that stand under their final names."""
        return {
            path.relative_to(out).as_posix(): path.read_bytes()
            for path in sorted(out.glob(self.results))
            if path.is_file()
            and not any(map(TEMPORARY.fullmatch, path.relative_to(out).parts))
        }


def left(folder: Path) -> list[str]:
    """Temporary files and folders."""
    return [p.name for p in folder.rglob("*") if TEMPORARY.fullmatch(p.name)]


class Campaign:
    """All kinds of faults; each yields one text per case, empty if it held.

    Arguments
    ---------
    folder : Path
        For files; empty.
    seed : int
        Draws the cases.
    scale : float
        1 for the numbers in docs/reliability.md.
    """

    def __init__(self, folder: Path, seed: int, scale: float) -> None:
        self.folder, self.scale = folder, scale
        self.random, self.rng = random.Random(seed), np.random.default_rng(seed)
        folder.chmod(0o755)
        torch.manual_seed(0)
        self.model = folder / "model"
        save_published(self.model, *build(CONFIG), CONFIG, CARD)
        self.speechbrain = folder / "speechbrain"
        self.speechbrain.mkdir()
        write_speechbrain(self.speechbrain, *read_published(self.model)[1:])
        wave = 0.1 * self.rng.standard_normal(3 * RATE)
        for name in ("mix", "s1", "s2"):
            soundfile.write(folder / f"{name}.wav", wave, RATE)
        row = "id,duration,mix,s1,s2\na,3,mix.wav,s1.wav,s2.wav\n"
        (folder / "test.csv").write_text(row)
        results = {"test_set": "test", "n": 3, "si_sdri": {"mean": 8.2, "ci95": 0.4}}
        (folder / "results.json").write_text(json.dumps(results))
        self.taken = 0

    def number(self, full: int) -> int:
        """How many cases of a kind."""
        return max(1, math.ceil(full * self.scale))

    def place(self) -> Path:
        """A new folder."""
        self.taken += 1
        place = self.folder / f"case{self.taken}"
        place.mkdir()
        return place

    def separate(self, *files: Path, out: Path) -> int:
        """``spgm separate`` with the tiny model."""
        words = ["--model", str(self.model), "--output", str(out)]
        return spgm(["separate", *map(str, files), *words])

    def jobs(self) -> list[Job]:
        """What is killed and gets no room."""

        def train(out: Path) -> None:
            with user_errors():
                with writing(out / "run"):  # as train.py begins; it sweeps, too
                    (out / "run").mkdir(exist_ok=True)
                    check_writable(out / "run")
                state = tiny.state(tiny.full_run(out / "run", workers=0))
                with replacing(out / "end.safetensors") as temporary:
                    save_file({k: v.clone() for k, v in state.items()}, temporary)

        def generate(out: Path) -> None:
            from speechbrain_spgm.corpora.generation import generate

            with user_errors():
                generate([plan(out, f"m{i}") for i in range(12)], jobs=1)

        def evaluate(out: Path) -> int:
            words = ["--manifest", str(self.folder / "test.csv"), "--views", "1"]
            words += ["--metrics", "si_sdr", "--model", str(self.model)]
            return spgm(["evaluate", *words, "--output", str(out)])

        def convert(out: Path) -> int:
            target = str(out / "converted")
            return spgm(["convert", str(self.model), target, "--to", "speechbrain"])

        def publish(out: Path) -> int:
            words = [str(self.model), "--repo-id", "user/model", "--dry-run"]
            words += ["--results", str(self.folder / "results.json")]
            words += ["--license", "cc0-1.0", "--datasets", "none"]
            return spgm(["publish", *words, "--output", str(out / "published")])

        mix = self.folder / "mix.wav"
        return [
            Job("separate", lambda out: self.separate(mix, out=out), "*.wav"),
            Job("convert", convert, "converted/*"),
            Job("evaluate", evaluate, "*.[cj]s*"),
            Job("generate", generate, "**/*.wav"),
            Job("train", train, "end.safetensors"),
            Job("publish", publish, "published/*"),
        ]

    # The kinds ------------------------------------------------------------

    def audio(self) -> Iterator[str]:
        """Damaged and odd recordings, twenty to a command."""
        wholes = []
        wave = 0.1 * self.rng.standard_normal((800, 2))
        for form, subtype in [
            *(("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("AU", "ULAW")),
            *(("OGG", "VORBIS"), ("AIFF", "PCM_24"), ("CAF", "PCM_16")),
            *(("W64", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("OGG", "OPUS")),
        ]:
            path = self.folder / f"whole.{form.lower()}"
            soundfile.write(path, wave, RATE, format=form, subtype=subtype)
            wholes.append((path.suffix, path.read_bytes()))
        cases = self.number(1000)
        while cases > 0:
            inputs, out = self.place(), self.place()
            files = []
            for i in range(min(20, cases)):
                suffix, whole = self.random.choice(wholes)
                files.append(inputs / f"f{i:02}{suffix}")
                files[-1].write_bytes(self.damage(whole))
            cases -= len(files)
            end = Child(partial(self.separate, *files, out=out)).wait()
            trouble = end.trouble(0, 2) or " ".join(left(out))
            for file in files:
                yield trouble or self.unsound(file, out, end.said)
            shutil.rmtree(out)
            shutil.rmtree(inputs)

    def damage(self, whole: bytes) -> bytes:
        """Bytes that were a recording."""
        data, draw = bytearray(whole), self.random
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(min(len(data), draw.choice([64, 10**9])) or 1)
            match draw.randrange(6):
                case 0:
                    del data[at:]
                case 1:
                    del data[at : at + draw.randint(1, 40)]
                case 2:
                    data[at : at + 4] = draw.randbytes(4)
                case 3:
                    data[at : at + 4] = draw.choice([b"\0" * 4, b"\xff" * 4])
                case 4:
                    data[at:at] = draw.randbytes(draw.randint(1, 2000))
                case 5 if data:
                    data[at % len(data)] ^= 1 << draw.randrange(8)
        return bytes(data)

    @staticmethod
    def unsound(file: Path, out: Path, said: str) -> str:
        """What is wrong with the voices of a file, or with how it was refused."""
        voices = sorted(out.glob(f"{file.stem}_spk*.wav"))
        if not voices:
            return "" if file.name in said else f"{file.name}: not a word"
        if len(voices) != CONFIG["masknet_numspks"]:
            return f"{file.name}: {len(voices)} voices"
        for voice in voices:
            samples, _ = soundfile.read(voice)
            if not len(samples) or not np.isfinite(samples).all():
                return f"{voice.name}: {len(samples)} samples"
        return ""

    def kills(self) -> Iterator[str]:
        """SIGKILL and SIGTERM at any moment; the rerun ends as if nothing had been."""
        references = {}
        for i in range(self.number(50)):
            job = self.jobs()[i % 6]
            if job.name not in references:
                whole = self.place()
                end = Child(partial(job.work, whole)).wait()
                references[job.name] = job.read(whole), end.seconds
            wanted, seconds = references[job.name]
            out = self.place()
            number = signal.SIGTERM if i % 3 == 2 else signal.SIGKILL
            child = Child(partial(job.work, out), prepare=self.armed(number))
            time.sleep(self.random.uniform(0, seconds))
            os.kill(child.pid, number)
            yield (
                f"{job.name}, {number.name}: {text}"
                if (text := self.after(job, out, wanted, child.wait(), number))
                else ""
            )

    @staticmethod
    def armed(number: int) -> Work | None:
        """Until a command has its handler, SIGTERM ends the process at once."""
        if number == signal.SIGKILL:
            return None

        def end(*_: object) -> None:
            os._exit(143)

        return lambda: signal.signal(signal.SIGTERM, end)

    def after(
        self, job: Job, out: Path, wanted: dict, end: Outcome, number: int
    ) -> str:
        """What is wrong after a kill or a full disk, and after the next run."""
        codes = {signal.SIGKILL: (-9, 0), signal.SIGTERM: (143, 0)}.get(number, (0, 2))
        if text := end.trouble(*codes):
            return text
        found = job.read(out)
        if not number and not end.code and found != wanted:
            return "exit code 0, but not all of it is there"
        if broken := [name for name in found if found[name] != wanted.get(name)]:
            return f"half-written: {broken}"
        if number != signal.SIGKILL and (names := left(out)):
            return f"left: {names}"
        if text := Child(partial(job.work, out)).wait().trouble(0):
            return f"the next run: {text}"
        if job.read(out) != wanted:
            return "the next run ends otherwise"
        return f"left for ever: {left(out)}" if left(out) else ""

    def disk(self) -> Iterator[str]:
        """No file may grow beyond a size, as on a full disk."""
        jobs = self.jobs()
        references = {}
        for i in range(self.number(30)):
            job = jobs[i % len(jobs)]
            if job.name not in references:
                whole = self.place()
                Child(partial(job.work, whole)).wait()
                references[job.name] = job.read(whole)
            wanted = references[job.name]
            largest = max(map(len, wanted.values()))
            room = self.random.randrange(largest)

            def limit(room: int = room) -> None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

            out = self.place()
            end = Child(partial(job.work, out), limit).wait()
            text = self.after(job, out, wanted, end, 0)
            yield f"{job.name}, {room} bytes: {text}" if text else ""

    def rights(self) -> Iterator[str]:
        """Folders that may not be written to."""
        for i in range(self.number(6)):
            job, out = self.jobs()[i % 6], self.place()
            out.chmod(0o555)

            def unprivileged() -> None:
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setresgid(NOBODY, NOBODY, NOBODY)
                    os.setresuid(NOBODY, NOBODY, NOBODY)

            text = Child(partial(job.work, out), unprivileged).wait().trouble(2)
            yield f"{job.name}: {text}" if text else ""

    def temporary(self) -> Iterator[str]:
        """No folder takes temporary files."""

        def none() -> None:
            tempfile.tempdir = None
            tempfile._candidate_tempdir_list = lambda: ["/nonexistent"]
            os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)

        for job in self.jobs()[:3] + self.jobs()[5:]:
            out = self.place()
            text = Child(partial(job.work, out), none).wait().trouble(0)
            yield f"{job.name}: {text}" if text else ""
        for words, code in [
            (["info", str(self.model)], 0),
            (["info", str(self.speechbrain)], 0),
            (["info", "http://127.0.0.1:9/model"], 2),
        ]:
            end = Child(partial(spgm, words), none).wait()
            text = end.trouble(code)
            if code and "TMPDIR" not in end.said:
                text = f"TMPDIR is not named: {end.said}"
            yield text

    def streams(self) -> Iterator[str]:
        """Closed, full and unread standard streams."""

        def closed(*numbers: int) -> None:
            for number in numbers:
                os.close(number)
                setattr(sys, ("stdin", "stdout", "stderr")[number], None)

        def led(*numbers: int) -> None:
            full = os.open("/dev/full", os.O_WRONLY)
            for number in numbers:
                os.dup2(full, number)

        def unread() -> None:
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, 1)

        mix = self.folder / "mix.wav"
        for prepare, code in [
            *((partial(closed, *n), 0) for n in ((1,), (2,), (0, 1, 2))),
            *((partial(led, *n), 2) for n in ((1,), (1, 2))),
            *((partial(led, 2), 0), (unread, 0)),
        ]:
            for words in (["info", str(self.model)], ["separate", "--help"]):
                end = Child(partial(spgm, words), prepare).wait()
                text = end.trouble(code)
                yield "" if end.code == code and "refused" in text else text
            out = self.place()
            end = Child(partial(self.separate, mix, out=out), prepare).wait()
            voices = len(list(out.glob("*.wav")))
            yield "" if voices == 2 else f"{voices} voices: {end.said}"

    def locale(self) -> Iterator[str]:
        """Names that the locale cannot spell."""
        for name, locale in [("Müller é.wav", "C"), ("日本.wav", "POSIX")]:
            place = self.place()
            shutil.copy(self.folder / "mix.wav", place / name)
            words = [sys.executable, "-m", "speechbrain_spgm", "separate", name]
            fixed = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
            run = subprocess.run(
                [*words, "--model", self.model, "--output", "out"],
                cwd=place,
                env={**os.environ, "PYTHONPATH": str(ROOT), **fixed},
                capture_output=True,
            )
            voices = len(list((place / "out").glob(f"{name[:-4]}_spk?.wav")))
            yield "" if voices == 2 and not run.returncode else str(run.stderr)

    def yaml(self) -> Iterator[str]:
        """Hostile hyperparams.yaml: nothing is run, nothing takes long."""
        texts = [text for text, _ in HOSTILE.values()]
        for i in range(self.number(200)):
            folder = self.place() / "model"
            shutil.copytree(self.speechbrain, folder)
            canary = folder.parent / "canary"
            path = folder / "hyperparams.yaml"
            text = path.read_text() + texts[i % len(texts)]
            if i >= len(texts):
                text = self.damage(text.encode()).decode("utf-8", "replace")
            text = text.replace("CANARY", str(canary))
            path.write_text(text, encoding="utf-8")
            end = Child(partial(spgm, ["info", str(folder)])).wait()
            trouble = end.trouble(*((2,) if i < len(texts) else (0, 2)))
            yield (
                f"it was run: {text[-80:]}"
                if canary.exists()
                else (f"{list(HOSTILE)[i % len(texts)]}: {trouble}" if trouble else "")
            )
            shutil.rmtree(folder.parent)

    def config(self) -> Iterator[str]:
        """config.json and weights of strangers."""
        odd = [None, -1, 0, 10**9, 10**30, 1e308, "", "x" * 9999, [], {}, True, "\x1b["]
        for i in range(self.number(300)):
            folder = self.place() / "model"
            shutil.copytree(self.model, folder)
            path = folder / ("config.json" if i % 3 else "model.safetensors")
            if i % 3 == 1:
                fields = json.loads(path.read_text())
                for name in self.random.sample(sorted(fields), 2):
                    fields[name] = self.random.choice(odd)
                path.write_text(json.dumps(fields))
            else:
                path.write_bytes(self.damage(path.read_bytes()))
            text = Child(partial(spgm, ["info", str(folder)])).wait().trouble(0, 2)
            yield f"{path.name}, case {i}: {text}" if text else ""
            shutil.rmtree(folder.parent)

    def hub(self) -> Iterator[str]:
        """A Hub on this machine that fails in every way."""
        with serve() as hub:
            constants = huggingface_hub.constants
            hub.repositories["user/model"] = Repository()
            folders = (self.speechbrain, self.model)
            paths = [path for folder in folders for path in folder.iterdir()]
            files = {path.name: path.read_bytes() for path in paths}
            hub.repositories["user/model"].commit("main", files)

            web = f"{hub.address}/user/model/resolve/main"

            def ask(cache: Path, name: str = "user/model") -> int:
                remote.SLOWEST_START = remote.ANSWER_SECONDS = 2.0  # the same, sooner
                remote.SLOWEST_RATE = 1e9
                constants.ENDPOINT = hub.address
                template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
                constants.HUGGINGFACE_CO_URL_TEMPLATE = template
                constants.HF_HUB_DISABLE_XET = True
                constants.HF_HUB_CACHE = str(cache)
                huggingface_hub.utils._http.time.sleep = lambda _: None
                os.environ["no_proxy"] = "127.0.0.1,localhost"
                return spgm(["info", name])

            yield Child(partial(ask, self.place())).wait().trouble(0)
            yield Child(partial(ask, self.place(), web)).wait().trouble(0)
            nobody = Child(partial(ask, self.place(), "http://127.0.0.1:9/x")).wait()
            yield nobody.trouble(2)
            faults = (400, 401, 403, 404, 429, 500, 502, 503, 504)
            faults += ("cut", "slow", "endless", "wait", "continue", "mute")
            cases = [
                (name, pattern, fault)
                for fault in faults
                for name, pattern in (
                    ("user/model", "config.json"),
                    ("user/model", "GET.*(safetensors|large)"),
                    ("user/model", "."),
                    (web, "."),
                )
            ]
            self.random.shuffle(cases)
            for name, pattern, fault in cases[: self.number(len(cases))]:
                hub.faults[pattern] = fault
                place = self.place()
                end = Child(partial(ask, place, name)).wait()
                text = end.trouble(2)
                if not text and end.seconds > 30:
                    text = f"{end.seconds:.0f} s"
                hub.faults.clear()
                # What was cut off is fetched again.
                text = text or Child(partial(ask, place, name)).wait().trouble(0)
                yield f"{name}, {pattern}, {fault}: {text}" if text else ""

    def together(self) -> Iterator[str]:
        """Threads on one model, and processes in one folder."""

        def threads() -> None:
            model = SPGMSeparation.from_pretrained(self.model, device="cpu")
            mixes = [torch.randn(1, 500 + 40 * i) for i in range(20)]
            serial = [model.separate_batch(mix) for mix in mixes]
            wrong = []

            def call(first: int) -> None:
                for i in range(20):
                    i = (i + first) % 20
                    est = model.separate_batch(mixes[i])
                    if not torch.equal(est, serial[i]):
                        wrong.append(i)

            running = [threading.Thread(target=call, args=(i,)) for i in range(8)]
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()
            if wrong:
                raise AssertionError(f"{len(wrong)} calls differ")

        yield Child(threads).wait().trouble(0)
        for job in self.jobs()[:4]:
            whole, out = self.place(), self.place()
            Child(partial(job.work, whole)).wait()
            both = [Child(partial(job.work, out)) for _ in range(2)]
            ends = [child.wait() for child in both]
            text = "".join(end.trouble(0, 2) for end in ends)
            if not text and all(end.code for end in ends):
                text = "both refuse"
            if not text and job.read(out) != job.read(whole):
                text = "the results differ"
            text = text or " ".join(left(out))
            yield f"two of {job.name}: {text}" if text else ""

        corpora = self.place()
        write_own_corpus(corpora / "tests" / "samples" / "own")
        argv = command("LibriMix-spgm-small", corpora / "out", "--number_of_epochs=8")

        def train() -> None:
            os.chdir(corpora)
            sys.argv = argv
            runpy.run_path(argv[0], run_name="__main__")

        both = [Child(train) for _ in range(2)]
        ends = sorted((child.wait() for child in both), key=lambda end: end.code)
        text = ends[0].trouble(0) or ends[1].trouble(2)
        yield f"two trainings: {text}" if text else ""


KINDS = {
    "audio": "damaged recordings in ten formats",
    "kills": "kills (SIGKILL, SIGTERM) in six commands",
    "disk": "a full disk (file size limit) in the same six",
    "rights": "a folder without rights in the same six",
    "temporary": "no folder for temporary files",
    "streams": "closed, full and unread standard streams",
    "locale": "names that the locale cannot spell",
    "yaml": "hostile and damaged hyperparams.yaml",
    "config": "odd config.json and damaged weights",
    "hub": "faults of the Hub",
    "together": "8 threads x 20 calls on a model; two processes in a folder",
}
BEGIN, END = "<!-- table -->", "<!-- end of table -->"


def table(results: dict[str, list[str]]) -> str:
    """Markdown: kind, tried, held.

    Example
    -------
    >>> print(table({"hub": ["", "exit code 1: OSError"]}))
    | kind | tried | held |
    |------|------:|-----:|
    | faults of the Hub | 2 | 1 |
    """
    lines = ["| kind | tried | held |", "|------|------:|-----:|"]
    for kind, texts in results.items():
        lines.append(f"| {KINDS[kind]} | {len(texts)} | {texts.count('')} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Runs the campaign; returns 1 if something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help=",".join(KINDS))
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="at most, for each kind"
    )
    parser.add_argument("--document", type=Path, help="whose table is replaced")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # of which nothing is left in a forked process
    results: dict[str, list[str]] = {}
    with TemporaryDirectory() as folder, surroundings():
        campaign = Campaign(Path(folder), arguments.seed, arguments.scale)
        for kind in arguments.kinds.split(","):
            results[kind], began = [], time.monotonic()
            for text in getattr(campaign, kind)():
                results[kind].append(text)
                if time.monotonic() - began > 60 * arguments.minutes:
                    break
            for text in sorted({t for t in results[kind] if t})[:20]:
                print(f"{kind}: {text[:600]}", file=sys.stderr)
            print(f"{kind}: {results[kind].count('')} of {len(results[kind])} held")
    print("\n" + table(results))
    if arguments.document:
        text = arguments.document.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
        with replacing(arguments.document) as temporary:
            text = f"{before}{BEGIN}\n{table(results)}\n{END}{after}"
            temporary.write_text(text, encoding="utf-8")
    return int(any(text for texts in results.values() for text in texts))


if __name__ == "__main__":
    sys.exit(main())
