"""What must not be published: paths of somebody's machine, and secrets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from speechbrain_spgm.inference.published import ModelError

PLACEHOLDER = "/path/to"
HARMLESS = (PLACEHOLDER, "/dev/null", "/usr/bin/env", "/bin/bash", "/bin/sh")

URL = re.compile(r"\b(?!file:)[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
# A path begins where no word, URL, relative path or HTML tag goes on.
POSIX_PATH = re.compile(
    r"(?:(?<![\w.~/<)-])|(?<=-[A-Za-z]))"  # also -I/usr/include
    r"/(?:[\w.@+~-]+/[\w.@+~%-]|"  # two parts, or a well-known folder
    r"(?:home|root|Users|data|mnt|media|scratch|tmp|var|opt|srv|work)\b)"
    r"[^\s\"'`,;:)\]}>]*"
)
HOME_PATH = re.compile(r"(?<![\w~/.])~[\w.-]*/[\w.-][^\s\"'`,;)\]}>]*")
WINDOWS_PATH = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z]:(?:\\+|/(?!/))[\w.$~%-][^\s\"'`,;)\]}>]*"
)
SERVER_PATH = re.compile(r"(?<![\\\w])\\\\(?:\\\\)?[\w.$-]+\\+[\w.$-][^\s\"'`,;)\]}>]*")
FILE_URL = re.compile(r"\bfile:/+[^\s\"'`,;)\]}>]*", re.IGNORECASE)
PATHS = (FILE_URL, WINDOWS_PATH, SERVER_PATH, HOME_PATH, POSIX_PATH)

SECRETS = {
    "a Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}",
    "an AWS key": r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})",
    "a GitLab token": r"\bglpat-[\w-]{16,}",
    "a Slack token": r"\bxox[abeprs]-[\w-]{10,}",
    "a Google key": r"\bAIza[\w-]{30,}",
    "an API key": r"\bsk-[\w-]{20,}",
    "a private key": r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY",
    "a signed web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/@]+@",
    # The value must hold a digit: words after "token:" are prose.
    "a secret": r"(?i)(?:api[_-]?key|secret|token|passw(?:or)?d|credential)\w*"
    r"[\"']?\s*[:= ]\s*[\"']?(?=[A-Za-z+/_.=-]*\d)[\w+/.=-]{16,}",
}
SECRET_PATTERNS = {what: re.compile(pattern) for what, pattern in SECRETS.items()}
SECRET_OPTION = re.compile(r"token|secret|passw|credential|api_?key|access_?key", re.I)


class Leak(NamedTuple):
    """Something private: its line (from 1), what it is, and how to show it."""

    line: int
    what: str
    shown: str


def find_leaks(text: str) -> Iterator[Leak]:
    """Local absolute paths and token-like strings in a text.

    Arguments
    ---------
    text : str
        Any number of lines.

    Yields
    ------
    leak : Leak
        Secrets are shown by their first characters only.

    Example
    -------
    >>> for leak in find_leaks("see https://a.org/b/c\\nkey: hf_" + "a1" * 17):
    ...     print(*leak)
    2 a Hugging Face token hf_a...
    >>> for leak in find_leaks("at /home/ann/wsj0, D:\\\\wsj0, /path/to/wsj0, a/b/c"):
    ...     print(*leak)
    1 a local path /home/ann/wsj0
    1 a local path D:\\wsj0
    """
    for number, line in enumerate(text.splitlines(), start=1):
        for what, pattern in SECRET_PATTERNS.items():
            for match in pattern.finditer(line):
                yield Leak(number, what, match[0][:4] + "...")
        found = [match for pattern in PATHS for match in _paths(pattern, line)]
        for match in sorted(found, key=lambda match: match.start()):
            yield Leak(number, "a local path", match[0])


def _paths(pattern: re.Pattern[str], line: str) -> Iterator[re.Match[str]]:
    # Web addresses hold slashes too; blanks in their place keep the columns.
    line = URL.sub(lambda match: " " * len(match[0]), line)
    for match in pattern.finditer(line):
        if not match[0].startswith(HARMLESS):
            yield match


def check_folder(folder: Path) -> None:
    """Refuses a folder with a text file that holds something private.

    Arguments
    ---------
    folder : Path
        Every file below it that can be read as text is searched.

    Raises
    ------
    ModelError
        Naming each file and line; secrets are not shown in full.
    """
    problems = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        for leak in find_leaks(name):
            problems.append(f"the name {name} holds {leak.what} ({leak.shown})")
        if path.is_file() and (text := _read_text(path)) is not None:
            for line, what, shown in find_leaks(text):
                problems.append(f"{name}, line {line}, holds {what} ({shown})")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ModelError(
            f"Nothing is published: {'; '.join(problems[:5])}{more}. Take this out of "
            "the files of the folder that you publish, and try again."
        )


def _read_text(path: Path) -> str | None:
    content = path.read_bytes()
    try:
        return None if b"\0" in content else content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def clean_command(command: str | Sequence[str]) -> str:
    """A command line without local paths and secrets, in one line.

    An absolute path becomes ``/path/to/<its last part>``; of the program, the script
    and the yaml only the last part stays (the yaml's with its folder ``hparams``). The
    value of an option whose name speaks of a secret becomes ``...``.

    Arguments
    ---------
    command : str or sequence of str
        As typed in a shell, or its words.

    Returns
    -------
    command : str
        To be typed in a shell.

    Example
    -------
    >>> clean_command("/usr/bin/python /home/a/train.py /b/x.yaml --data '/d/my x'")
    "python train.py x.yaml --data '/path/to/my x'"
    >>> clean_command(["train.py", "--lists=[/a/b.csv,C:\\\\c\\\\d.csv]", "--token=a"])
    'train.py --lists=[/path/to/b.csv,/path/to/d.csv] --token=...'
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
    if path.startswith(HARMLESS):
        return path
    return f"{PLACEHOLDER}/{_last_part(path)}"


def _is_absolute(path: str) -> bool:
    return (
        path.startswith(("/", "~", "file:", "\\\\"))
        or PureWindowsPath(path).is_absolute()
    )


def _last_part(path: str) -> str:
    windows = "\\" in path or re.match(r"[A-Za-z]:/", path)
    name = (PureWindowsPath if windows else PurePosixPath)(path).name
    return name or "data"
