"""Tokens, keys and passwords in a line of text.

detect-secrets knows the forms of many vendors' tokens. The rules here are for what it
lacks: prefixes of other vendors, and secrets that only their surroundings give away.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from math import log2

# Its other detectors take versions, checksums and prose for secrets.
NOT_USED = {"IPPublicDetector", "KeywordDetector"}
PREFIXES = r"""
    hf_ api_org_ gh[pousr]_ github_pat_
    gl(?:pat|dt|ft|soat|rt|cbt|imt|ptt|agent|oas)- npm_ pypi- xox[a-z]- xoxe\. xapp-
    [srp]k_(?:live|test)_ whsec_ AIza ya29\. GOCSPX- sk- gsk_ xai- nvapi- r8_ pplx-
    tvly- wandb_v\d_ do[opr]_v1_ shp(?:at|ca|pa|ss)_ dckr_pat_ hv[sb]\. PMAK-
    lin_api_ figd_ NRAK- sntry[su]_ gl(?:sa|c)_ dapi AGE-SECRET-KEY-
    pscale_(?:tkn|pw|oauth)_ secret_ ntn_ SG\. AT(?:AT|CT)T EAA LTAI AKID sbp_
    tskey- sq0[a-z]{3}- key- amzn\.mws\. rdme_ rubygems_ CFPAT- shippo_ lsv2_ phc_
    patk?_ rnd_ fio-u- dt0[a-z]\d\d\. sl\.[A-Z] pcsk_ sk_ KGAT_ nfp_ sb_secret_ tfp_
    pnu_ aio_ EZ[AT]K xkeysib- AQVN dp\.[a-z]+\. \w{14}\.atlasv1\. pat\w{14}\.
    access-(?:sandbox|production)- AAAA[\w-]{7}: sess- v1\.0-
"""
NAME = (  # of a setting that holds a secret
    r"(?:api[_-]?|access[_-]?|auth[_-]?|private[_-]?|account[_-]?|secret[_-]?|"
    r"shared[_-]?|\b|[a-z_-])key(?:[_-]?(?:id|file))?|secret\w*|token(?![iz])\w*|"
    r"(?<![a-z])auth|credentials?|pass(?:word|wd|phrase|code)\w*|(?<![a-z])pwd\w*|\bpat\b"
)
PASSWORD = r"pass(?:word|wd|phrase|code)?\w*|pwd"
WEBHOOKS = (
    r"hooks\.slack\.com/|discord(?:app)?\.com/api/webhooks/|hooks\.zapier\.com/|"
    r"[\w.-]*webhook\.office\.com/|outlook\.office\.com/webhook|maker\.ifttt\.com/|"
    r"chat\.googleapis\.com/v1/spaces/|api\.telegram\.org/bot\w|"
    r"(?:open\.feishu\.cn/open-apis|qyapi\.weixin\.qq\.com/cgi-bin|oapi\.dingtalk\.com/"
    r"robot)"
)
# Ways to name a value without giving it.
NO_VALUE = re.compile(
    r"[\"'`(\[]*(?:$|[<{$%!*&.…]|x{3,}|[\w.]+[(\[]|(?:your|my|the)[_-]|os\.|getpass|"
    r"(?:none|null|true|false|yes|no|str|string|int|bytes|bool|optional|required|"
    r"any|unknown|default|hidden|redacted|removed|secret|token|password|key|"
    r"hf_(?:token|x+|\.+)|[A-Z]+(?:_[A-Z]+)+)(?:[\W_]*$|[,;:)\]} ]))",
    re.IGNORECASE,
)
RULES = [
    (what, re.compile(pattern))
    for what, pattern in (
        ("a Hugging Face token", r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}"),
        (  # with a digit or mixed case: words after "sk-" are prose
            "a token",
            rf"(?<![A-Za-z0-9])(?:{'|'.join(PREFIXES.split())})"
            r"(?=[\w.=-]*(?:\d|[a-z][A-Z]))[\w.=-]{16,}",
        ),
        ("an AWS key", r"\b(?:AKIA|ASIA|AROA|AIDA|ABIA|ACCA)[A-Z0-9]{12,}\b"),
        ("a Telegram token", r"\b\d{8,10}:[\w-]{35}\b"),
        ("a private key", r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY|PuTTY-User-Key-File"),
        ("a public key", r"\b(?:ssh-(?:rsa|dss|ed25519)|ecdsa-\S+)\s+AAAA\S+"),
        ("a signed web token", r"\beyJ[\w-]{10,}\.[\w-]{10,}"),
        ("an address for messages", rf"(?i)https?://(?:{WEBHOOKS})\S*"),
        ("a password in an address", r"(?i)\b[a-z][a-z0-9+.-]*://[^\s/:@]*:[^\s/@]+@"),
        ("a token in an address", r"(?i)\b[a-z][a-z0-9+.-]*://[\w-]{16,}@"),
        (
            "a signature in an address",
            r"(?i)[?&][\w.-]*(?:token|key|sig|signature|secret|passw\w*|pwd|credential)"
            r"=[^\s&\"'<>{}$]{6,}",
        ),
        (
            "a login",
            r"(?i)^\W*(?:machine\s+\S+\s+|default\s+)?login\s+\S+(?:\s+password\s+\S+)?\s*$|"
            r"\bmachine\s+\S+\.\S+\s+login\b|^\W*machine\s+\S+\s+login\b|"
            r"^\s*password\s+\S+\s*$|"
            r"^[\w.*-]+:(?:\d+|\*):[^:\s]+:[^:\s]+:\S+$|\bsshpass\s+-p\s*\S+|"
            r"\bcurl\b.*\s(?:-u|--user)[ =]*\S+:\S+",
        ),
        (
            "an authorisation",
            r"(?i)\b(?:bearer|basic)\s+(?=[\w+/.~-]*[\d=])[\w+/.=~-]{12,}|"
            r"\bauthorization[\"']?\s*[:=]\s*[\"']?(?:\w+\s+)?[\w+/.=~-]{12,}|"
            r"\b(?:set-)?cookie[\"']?\s*[:=]\s*[\"']?[\w-]+=[^\s;]{8,}",
        ),
    )
]
SETTINGS = re.compile(  # name, how it is joined to its value, value
    rf"(?i)([\w-]{{0,40}}?(?:{NAME}))[\"'`]?(\s*(?::=|=>|[:=]+)\s*|\s+(?:is\s+)?)([\"'`]?[^\s,;]+)"
)
LONG_HEX = re.compile(r"(?<![\w/@.-])[0-9a-fA-F]{40}(?![\w.-])")
A_COMMIT = re.compile(r"(?i)commit|revision|\brev\b|\bsha|hash|\bgit\b|checksum|digest")
WORD = re.compile(r"(?<![\w./-])[A-Za-z0-9+/]{24,}={0,2}(?![\w.-])")


def find_tokens(line: str) -> Iterator[tuple[str, str]]:
    """What looks like a secret in a line: what it is, and its text.

    Example
    -------
    >>> list(find_tokens("password=" + "hunter" + "2, tokens: 12"))
    [('a secret', 'password=hunter2')]
    """
    for detector in _detectors():
        for found in detector.analyze_string(line):
            yield f"a secret of the kind {detector.secret_type}", found
    for what, rule in RULES:
        for match in rule.finditer(line):
            yield what, match[0]
    for match in SETTINGS.finditer(line):
        if _is_secret(*match.groups(), rest=line[match.end() :]):
            yield "a secret", match[0]
    if not A_COMMIT.search(line):
        for match in LONG_HEX.finditer(line):
            yield "a key", match[0]
    for match in WORD.finditer(line):
        if _is_random(match[0]):
            yield "a key", match[0]


@cache
def _detectors() -> tuple:
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.plugins.base import RegexBasedDetector

    kinds = get_mapping_from_secret_type_to_class().values()
    return tuple(
        kind()
        for kind in sorted(kinds, key=lambda kind: kind.__name__)
        if issubclass(kind, RegexBasedDetector) and kind.__name__ not in NOT_USED
    )


def _is_secret(name: str, joint: str, value: str, rest: str) -> bool:
    """Whether a setting gives a secret, and not only its name, type or place."""
    if NO_VALUE.match(value):
        return False
    quoted = value[:1] in "\"'`"
    value = value.strip("\"'`()[]{}.").split("`")[0]
    odd = re.search(r"\d", value) is not None
    if re.search(PASSWORD, name, re.IGNORECASE):
        alone = quoted or not rest.strip(" \"'`,;.)}")  # no sentence goes on
        if joint.strip() in ("=", ":=", "=="):
            return len(value) >= 3
        return len(value) >= 4 and (odd or (bool(joint.strip()) and alone))
    if (
        re.fullmatch(r"[\d.,_e+-]*", value)
        or not odd
        and ("/" in value or name.lower() == "key")
    ):
        return False
    if joint.strip() in ("=", ":="):
        return len(value) >= (8 if odd or quoted else 16)
    return len(value) >= (8 if quoted else 16) and (odd or quoted)


def _is_random(word: str) -> bool:
    """Whether letters of both cases and digits follow each other as in no name."""
    kinds = ["+" if c in "+/=" else "aA0"[c.isupper() + 2 * c.isdigit()] for c in word]
    if not {*kinds} >= {*"aA0"}:
        return False
    changes = sum(a != b for a, b in zip(kinds, kinds[1:], strict=False))
    shares = [word.count(c) / len(word) for c in {*word}]
    entropy = -sum(share * log2(share) for share in shares)
    return changes >= 0.45 * (len(word) - 1) and entropy > 3.5
