"""What must not be published: paths of somebody's machine, and secrets."""

from __future__ import annotations

import html
import re
import shlex
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple
from urllib.parse import unquote

from speechbrain_spgm.errors import shown
from speechbrain_spgm.models.published import ModelError
from speechbrain_spgm.publishing.tokens import find_tokens

PLACEHOLDER = "/path/to"
PATH, MACHINE = "a local path", "a private address"
HARMLESS = ("/dev/null", "/usr/bin/env", "/bin/bash", "/bin/sh")

END = r"[^\s\"'`,;)\]}>|]*"
# Addresses of the public web hold slashes too; those of machines and buckets do not
# belong in a card.
URL = re.compile(
    r"(?i)\b(?:https?|hf|doi|git|git\+https|mailto|env|urn)://"
    r"(?:[^\s/\"'<>`|]+\.)+[a-z]{2,}(?::\d+)?(?![\w.-])[^\s\"'<>`|?]*|\benv://"
)
PRIVATE_HOST = re.compile(
    r"(?i)\b[a-z][a-z0-9+.-]*://(?:[^\s/@]*@)?(?:(?:[\w-]+\.)+(?:local|lan|internal|"
    r"intranet|intra|corp|home|cluster|private|localdomain|arpa)|[\d.]+|\[[\da-f:]+\]|"
    r"[\w-]+)(?=[:/\s\"'`)\]>]|$)" + END
)
STORAGE = re.compile(
    r"(?i)\b(?!https?:|hf:|doi:|git(?:\+https)?:|env:|urn:)"
    r"[a-z][a-z0-9+.-]*:/(?:/|(?=[\w/]))" + END.replace("*", "+")
)
# user@host:path, but of the public places of code.
REMOTE = re.compile(
    r"(?<![\w/.+-])[\w.+-]+@(?!(?:github|gitlab|bitbucket|huggingface|hf)\.\w+:)"
    r"[\w.-]+:(?=[\w/~.$-])" + END
)
LOGIN = re.compile(
    r"\b(?:ssh|scp|sftp|rsync|mosh)\s(?:.*\s)?[\w.-]+@[\w.-]+|"
    r"(?<![\w/.+-])[a-z][\w.-]*@(?:[a-z]{2,}[a-z-]*\d+\b(?![.\w])|\d+(?:\.\d+){3})|"
    r"(?<![\w.])(?<!==)(?:10(?:\.\d{1,3}){3}|192\.168(?:\.\d{1,3}){2})(?![\w.])"
)
# A path begins where no word, relative path or HTML tag goes on.
POSIX_PATH = re.compile(
    r"(?:(?<![\w.~/<)-])|(?<=-[A-Za-z])|(?<=<)(?=/+[\w.-]+/))"  # also -I/usr/include
    r"/+(?:[\w.@+~-]+/+[\w.@+~%$-]|"  # two parts, or a well-known folder
    r"(?:home|root|Users|Volumes|data|mnt|media|scratch|tmp|var|opt|srv|work|nfs|net|"
    r"gpfs|lustre|beegfs|export|afs|projects?|storage|datasets|workspace|private)\b)"
    + END
)
# Homes are looked for everywhere, also behind a relative path.
HOME = re.compile(
    r"(?:(?i:/+(?:home|users)\d*/+[\w.~$%@{<-])|(?<![\w/.-])home/+\w[\w.-]*/+\w)" + END
)
HOME_PATH = re.compile(
    r"(?<=[\"'])~(?=[\"'])|"
    r"(?<![\w~/.])~(?:[\w.-]*/+[\w.-]|(?:(?<=[=:\"'`(]~)|(?<=\bcd ~))[a-z_]\w+\b)" + END
)
VARIABLES = (
    r"HOME\w*|USER(?:NAME|PROFILE)?|LOGNAME|(?:LOCAL)?APPDATA|\w*TMP(?:DIR)?|TEMP|PWD|"
    r"\w*SCRATCH\w*|WORK\w*|PROJECT\w*|STORE|SystemDrive|PUBLIC|DATA\w*"
)
VARIABLE = re.compile(
    rf"(?i)(?:\$(?:env:)?\{{?(?:env:)?(?:{VARIABLES})\b\}}?|%(?:{VARIABLES})%)(?:[/\\]+{END}|"
    r"(?=[\s\"'`,;:)\]]|$))"
)
WINDOWS_PATH = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z]:(?:\\+|/(?!/)|(?=\w+\\))[\w.$~%-][^\s\"'`,;)\]}>|]*"
)
SERVER_PATH = re.compile(
    r"(?<![\\\w])\\{2,4}[\w.$?-]+\\+[\w.$-]" + END + r"|"
    r"(?<![\\\w])\\+(?:Users|home|Documents and Settings)\\+\w" + END
)
FILE_URL = re.compile(r"(?i)\bfile:/*(?:\\+|[\w./~%-])" + END)
PATHS = (FILE_URL, WINDOWS_PATH, SERVER_PATH, HOME_PATH, VARIABLE, POSIX_PATH, HOME)
MACHINES = (STORAGE, REMOTE, LOGIN)

SECRET_OPTION = re.compile(r"token|secret|passw|credential|api_?key|access_?key", re.I)
LONGEST_PIECE, OVERLAP = 2000, 300  # characters
TEXTS = (".json", ".md", ".yaml")  # that are read whatever bytes they hold
SLASHES = str.maketrans(dict.fromkeys("\u2044\u2215\u29f8\uff0f", "/"))
ESCAPED = re.compile(r"\\(?:u00|x)([0-7][0-9a-fA-F])")


class Leak(NamedTuple):
    """Something private: its line (from 1), what it is, and how to show it."""

    line: int
    what: str
    shown: str


class Private(ModelError):
    """Files hold what must not be published; every place is named."""

    longest = None


def find_leaks(text: str) -> Iterator[Leak]:
    """Local paths, private machines and token-like strings in a text.

    Each is found as well in percent, HTML, JSON or other spellings; secrets are shown
    by their first characters only.
    """
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        secrets: dict[str, str] = {}  # what was found, by its text
        places: dict[str, str] = {}
        for spelling in (s for piece in _pieces(line) for s in _spellings(piece)):
            for what, found in find_tokens(spelling):
                if not any(found in other or other in found for other in secrets):
                    secrets[found] = what
            for _, what, found in sorted(_places(spelling)):
                if not any(found in other for other in places):
                    places[found] = what
        for found, what in secrets.items():
            yield Leak(number, what, _begin(found))
        for found, what in places.items():
            for secret in secrets:
                found = found.replace(secret, _begin(secret))
            yield Leak(number, what, found)


def _begin(secret: str) -> str:
    return f"{secret[: min(4, len(secret) // 4)]}..."


def _pieces(line: str) -> Iterator[str]:
    """A line, or parts of a very long one, for the patterns' time grows faster."""
    while len(line) > LONGEST_PIECE:
        blank = line.rfind(" ", LONGEST_PIECE - OVERLAP, LONGEST_PIECE)
        yield line[: blank if blank > 0 else LONGEST_PIECE]
        line = line[blank if blank > 0 else LONGEST_PIECE - OVERLAP :]
    yield line


def _spellings(line: str) -> Iterator[str]:
    """A line as it stands and, where that differs, with its escapes resolved."""
    plain = "".join(c for c in line if unicodedata.category(c) != "Cf")
    seen = []
    for _ in range(4):  # an escape may itself be escaped
        plain = plain.replace("\0", "")  # which readers pass over
        if plain in seen:
            return
        seen.append(plain)
        yield plain
        plain = html.unescape(unquote(plain)).translate(SLASHES).replace("\\/", "/")
        plain = ESCAPED.sub(lambda match: chr(int(match[1], 16)), plain)


def _places(line: str) -> Iterator[tuple[int, str, str]]:
    """Paths and machines in a line: where each begins, what it is, its text."""
    for match in PRIVATE_HOST.finditer(line):
        yield match.start(), MACHINE, match[0]
    # Blanks in the place of web addresses keep the columns.
    line = URL.sub(lambda match: " " * len(match[0]), line)
    for what, patterns in ((PATH, PATHS), (MACHINE, MACHINES)):
        for pattern in patterns:
            for match in pattern.finditer(line):
                if not _is_harmless(match[0]):
                    yield match.start(), what, match[0]


def _is_harmless(path: str) -> bool:
    return (
        path in HARMLESS
        or f"{path}/".startswith(f"{PLACEHOLDER}/")
        and not re.search(r"\.\.|[~$%]", path)
        and not HOME.search(path)
    )


def check_folder(folder: Path) -> None:
    """Refuses a folder with a text that holds something private; names each line."""
    problems = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        for leak in find_leaks(name):
            problems.append(f"the name {name} holds {leak.what} ({leak.shown})")
        if path.is_file() and (text := _read_text(path)) is not None:
            for line, what, found in find_leaks(text):
                place = shown(found, 80)
                problems.append(f"{name}, line {line}, holds {what} ({place})")
    if problems:
        raise Private(
            f"Nothing is published: {'; '.join(problems)}. Take this out of the files "
            "of the folder that you publish, and try again."
        )


def _read_text(path: Path) -> str | None:
    content = path.read_bytes()
    if path.suffix in TEXTS:
        return content.decode("utf-8", errors="replace")
    try:
        return None if b"\0" in content else content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def clean_command(command: str | Sequence[str]) -> str:
    """A command line without local paths and secrets, in one line.

    An absolute path becomes ``/path/to/<its last part>``; of the program, the script
    and the yaml only the last part stays (the yaml's with its folder ``hparams``). The
    value of an option whose name speaks of a secret becomes ``...``.
    """
    if isinstance(command, str):
        command = _words(command)
    cleaned: list[str] = []
    secret = False
    for previous, word in zip(["", *command], command, strict=False):
        option, equals, value = word.partition("=")
        is_option = option.startswith("-")
        # The program, the script, and the yaml after it.
        is_own = not previous or word.endswith(".py") or previous.endswith(".py")
        if secret and not is_option:
            cleaned.append("...")
        elif is_option and equals and SECRET_OPTION.search(option):
            cleaned.append(f"{option}=...")
        elif equals and (is_option or option.isidentifier()):
            cleaned.append(f"{option}={_clean_value(value)}")
        elif is_own and _is_absolute(word):
            name = _last_part(word)
            in_hparams = re.search(r"[/\\]hparams[/\\][^/\\]+$", word)
            cleaned.append(f"hparams/{name}" if in_hparams else name)
        else:
            cleaned.append(_clean_value(word))
        secret = is_option and not equals and bool(SECRET_OPTION.search(option))
    return " ".join(_quote(word) for word in cleaned)


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command.replace("\\\n", " "))
    except ValueError:  # an unfinished quotation
        return command.split()


def _quote(word: str) -> str:
    return word if re.fullmatch(r"[\w@%+=:,./\[\]~-]+", word) else shlex.quote(word)


def _clean_value(value: str) -> str:
    if _is_absolute(value) and not re.search(r"[,\s].*[/\\]", value):
        return f"{PLACEHOLDER}/{_last_part(value)}"
    for pattern in PATHS:
        value = pattern.sub(_replace, value)
    return value


def _replace(match: re.Match[str]) -> str:
    path = match[0]
    return path if _is_harmless(path) else f"{PLACEHOLDER}/{_last_part(path)}"


def _is_absolute(path: str) -> bool:
    return (
        path.startswith(("/", "~", "file:", "\\\\"))
        or PureWindowsPath(path).is_absolute()
    )


def _last_part(path: str) -> str:
    windows = "\\" in path or re.match(r"[A-Za-z]:/", path)
    name = (PureWindowsPath if windows else PurePosixPath)(path).name
    return name or "data"
