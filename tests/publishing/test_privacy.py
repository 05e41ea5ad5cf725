"""What must not be published: secrets and places in all spellings, and no others.

The secrets are drawn when the tests run, so that no scanner finds one in this file.
"""

import random
import re
import string
from pathlib import Path

import pytest

from speechbrain_spgm.inference import ModelError
from speechbrain_spgm.inference.separation import find_published
from speechbrain_spgm.models.config import speechbrain_yaml
from speechbrain_spgm.models.published import CARD, read_config
from speechbrain_spgm.publishing.privacy import (
    LONGEST_PIECE,
    OVERLAP,
    _pieces,
    check_folder,
    find_leaks,
)

ROOT = Path(__file__).resolve().parents[2]
B62 = string.ascii_letters + string.digits
HEX, UP = "0123456789abcdef", string.ascii_uppercase + string.digits
NUMBER = "123456789"


def secrets(seed: int) -> dict[str, str]:
    """A line with a secret of each kind."""
    generator = random.Random(seed)

    def draw(length: int, characters: str = B62) -> str:
        return "".join(generator.choice(characters) for _ in range(length))

    return {
        "aws id": "AKIA" + draw(16, UP),
        "aws secret": "aws_secret_access_key = " + draw(40, B62 + "/+"),
        "stripe": "sk_live_" + draw(24),
        "stripe test": "sk_test_" + draw(24),
        "rk": "rk_live_" + draw(30),
        "whsec": "whsec_" + draw(32),
        "npm": "npm_" + draw(36),
        "npmrc": "//registry.npmjs.org/:_authToken=npm_" + draw(36),
        "pypi": "pypi-AgEIcHlwaS5vcmc" + draw(80),
        "slack": "xoxb-" + draw(11, NUMBER) + "-" + draw(12, NUMBER) + "-" + draw(24),
        "slack app": "xapp-1-A"
        + draw(10, UP)
        + "-"
        + draw(13, NUMBER)
        + "-"
        + draw(64, HEX),
        "slackhook": "https://hooks.slack.com/services/T"
        + draw(8, UP)
        + "/B"
        + draw(8, UP)
        + "/"
        + draw(24),
        "discord hook": "https://discord.com/api/webhooks/"
        + draw(18, NUMBER)
        + "/"
        + draw(68),
        "discordapp hook": "https://discordapp.com/api/webhooks/"
        + draw(18, NUMBER)
        + "/"
        + draw(68),
        "discord bot": "M" + draw(23) + "." + draw(6) + "." + draw(27),
        "google": "AIza" + draw(35),
        "ya29": "ya29." + draw(60),
        "gocspx": "GOCSPX-" + draw(28),
        "bearer": "Authorization: Bearer " + draw(30),
        "bearer2": "curl -H 'authorization: bearer " + draw(30, HEX) + "'",
        "basic": "Authorization: Basic " + draw(20) + "==",
        "password=": "password=" + "hunter2",
        "password: ": "password: " + "hunter2",
        "pwd": "PWD_DB='correct horse'",
        "passwd": "passwd=" + "letmein",
        "db pass": "DB_PASSWORD=" + "swordfish",
        "pass phrase": '"passphrase": "open sesame"',
        "netrc": "machine api.wandb.ai login user password " + draw(40, HEX),
        "netrc2": "  password " + draw(12),
        "netrc3": "machine github.com login alice",
        "netrc4": "login alice password s3cret",
        "wandb": "WANDB_API_KEY=" + draw(40, HEX),
        "wandb login": "wandb login " + draw(40, HEX),
        "wandb bare": draw(40, HEX),
        "wandb yaml": "wandb_key: " + draw(40, HEX),
        "hf": "hf_" + draw(34),
        "hf old": "api_org_" + draw(34),
        "gh": "ghp_" + draw(36),
        "gho": "gho_" + draw(36),
        "ghpat": "github_pat_" + draw(22) + "_" + draw(59),
        "gitlab": "glpat-" + draw(20),
        "jwt": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0In0." + draw(43),
        "pem": "-----BEGIN " + "RSA PRIVATE KEY-----",
        "pem2": "-----BEGIN " + "ENCRYPTED PRIVATE KEY-----",
        "pgp": "-----BEGIN " + "PGP PRIVATE KEY BLOCK-----",
        "azure": "AccountKey=" + draw(86, B62 + "+/") + "==",
        "azure sas": "https://a.blob.core.windows.net/x?sv=2020&sig="
        + draw(43)
        + "%3D",
        "azure conn": "DefaultEndpointsProtocol=https;AccountName=x;AccountKey="
        + draw(86)
        + "==",
        "twilio": "AC" + draw(32, HEX),
        "twilio sk": "SK" + draw(32, HEX),
        "twilio auth": "TWILIO_AUTH_TOKEN=" + draw(32, HEX),
        "sendgrid": "SG." + draw(22) + "." + draw(43),
        "basic url": "https://ann:" + "pass1@example.org/x",
        "redis": "redis://" + ":pw12@host:6379",
        "mongo": "mongodb+srv://" + "u:p4ss@c.mongodb.net",
        "url tok": "https://" + draw(20) + "@github.com/x/y",
        "mailgun": "key-" + draw(32, HEX),
        "mailchimp": draw(32, HEX) + "-us12",
        "telegram": draw(9, NUMBER) + ":AA" + draw(33),
        "openai": "sk-" + draw(48),
        "openai proj": "sk-proj-" + draw(48),
        "anthropic": "sk-ant-api03-" + draw(80),
        "do": "dop_v1_" + draw(64, HEX),
        "shopify": "shpat_" + draw(32, HEX),
        "docker": "dckr_pat_" + draw(27),
        "vault": "hvs." + draw(24),
        "age": "AGE-SECRET-KEY-1" + draw(58, UP),
        "postman": "PMAK-" + draw(24, HEX) + "-" + draw(34, HEX),
        "linear": "lin_api_" + draw(40),
        "figma": "figd_" + draw(40),
        "databricks": "dapi" + draw(32, HEX),
        "replicate": "r8_" + draw(37),
        "groq": "gsk_" + draw(52),
        "nvapi": "nvapi-" + draw(64),
        "kaggle": '{"username":"ann","key":"' + draw(32, HEX) + '"}',
        "heroku": "HEROKU_API_KEY=" + "-".join(draw(n, HEX) for n in (8, 4, 4, 4, 12)),
        "secret": "client_secret: " + draw(24),
        "apikey": "X-Api-Key: " + draw(32, HEX),
        "apikey2": "api_key='" + draw(20) + "'",
        "token": "token=" + draw(20),
        "token:": "auth_token: " + draw(20),
        "jupyter": "http://localhost:8888/?token=" + draw(48, HEX),
        "url key": "https://api.x.org/v1?api_key=" + draw(16),
        "cookie": "Cookie: session=" + draw(32),
        "pgpass": "db.example.org:5432:corpus:ann:s3cret",
        "curl": "curl -u " + "ann:s3cret https://x.org",
        "opt": "--password " + "hunter2",
        "opt2": "--api-key " + draw(24),
        "comet": "COMET_API_KEY=" + draw(25),
        "mysql": "MYSQL_PWD=" + "abc123",
        "square": "sq0csp-" + draw(43),
        "facebook": "EAACEdEose0cBA" + draw(40),
        "grafana": "glsa_" + draw(32) + "_" + draw(8, HEX),
        "docker auth": '"auth": "' + draw(24) + '=="',
        "npm auth": "_auth=" + draw(30) + "=",
        "service account": '"private_key_id": "' + draw(40, HEX) + '"',
        "connection": "Endpoint=sb://x;SharedAccessKey=" + draw(43) + "=",
        "sentry": "https://" + draw(32, HEX) + "@o1.ingest.sentry.io/2",
        "firebase": "AAAA" + draw(7) + ":" + draw(140),
        "dropbox": "sl.B" + draw(130),
        "terraform": draw(14) + ".atlasv1." + draw(60),
        "airtable": "pat" + draw(14) + "." + draw(64, HEX),
        "neptune": "NEPTUNE_API_TOKEN='eyJ" + draw(60) + "'",
        "mlflow": "MLFLOW_TRACKING_PASSWORD: " + draw(9),
        "header": "PRIVATE-TOKEN: " + draw(20),
        "zenodo": "https://zenodo.org/api/files?access_token=" + draw(60),
        "url parameter": "wss://x.org/socket?key=" + draw(12),
        "yaml list": "- api_key: '" + draw(12) + "1'",
        "shell": "set -x WANDB_KEY " + draw(30, HEX) + "1a",
        "python": 'login(token="hf_' + draw(34) + '")',
        "export": "export HF_TOKEN=hf_" + draw(34),
        "ssh": "ssh-ed25519 AAAA" + draw(60) + " alice@gpu7",
        "base64": draw(64, B62 + "+/") + "==",
        "json esc": '"password": "abc\\"def1"',
        "password is": "the password is " + "hunter2",
    }


PLACES = [
    "https://x.org/?path=/home/alice",
    "C%3A%5CUsers%5Calice",
    "file%3A%2F%2F%2Fhome",
    "home/alice/data",
    "/path/to/~alice/x",
    "/path/to/$USER",
    "/path/to/home/alice",
    "alice@10.0.0.5",
    "alice@gpu7",
    "192.168.1.7",
    "${HOME:-/root}",
    "expanduser('~')",
    "vscode-remote://ssh-remote+gpu7/home/alice",
    "//home//alice",
    "/path/to/%2e%2e/x",
    "/path/to/../data",
    "</home/alice/x>",
    "alice@gpu7:data",
    "s3://alice-bucket",
    "%2Fhome%2Falice",
    "/path/to/../../home/alice",
    "file:///home/alice",
    "file:/home/alice",
    "FILE://localhost/home/alice",
    r"\\nas\alice",
    "//nas/alice",
    "~alice/x",
    "~/x",
    "$HOME/x",
    "${HOME}/data",
    "%USERPROFILE%\\x",
    "$USER",
    "/Users/alice",
    "C:\\Users\\alice",
    "C:/Users/alice",
    "/mnt/c/Users/alice",
    "/cygdrive/c/Users/alice",
    "gs://alice/x",
    "ssh://alice@gpu7/x",
    "sftp://gpu7/x",
    "hdfs:///user/alice",
    "smb://nas/x",
    "http://gpu7:8888/",
    "http://10.0.0.5/x",
    "http://gpu7.cluster.local/x",
    "http://localhost:6006",
    "ssh alice@gpu7.uni.edu",
    "alice@gpu7:/data",
    "alice@gpu7.uni.edu:~/x",
    "gpu7:/home/alice",
    "[x](/home/alice)",
    "src=/home/alice/x.png",
    "x/home/alice",
    "../../home/alice/x",
    r"\/home\/alice",
    "\\u002fhome\\u002falice",
    "&#47;home&#47;alice",
    "&sol;home&sol;alice",
    "%252Fhome%252Falice",
    "/ho\u200bme/alice",
    "\u2215home\u2215alice",
    "//home/alice",
    "///home/alice",
    "/./home/alice",
    "/export/home/alice",
    "/home2/alice",
    "/data",
    "/scratch/alice",
    "=~alice",
    "cd ~alice",
    "\\Users\\alice",
    "\\\\?\\C:\\Users\\alice",
    "\\\\wsl$\\Ubuntu\\home\\alice",
    "az://x",
    "abfss://c@acc.dfs.core.windows.net/x",
    "/path/to:/home/alice",
    "/path/toxic/alice",
    "$env:USERPROFILE\\x",
    "|/home/alice|",
    "`/home/alice`",
    "/HOME/alice",
    "(/home/alice)",
    "dbfs:/mnt/alice",
    "/nfs/x",
    "/run/user/1000",
    "rsync -a x alice@gpu7:data",
    "http://user.home.lan",
    "@/home/alice/args",
    "x=/home/alice;y",
    "/dev/nullx/alice",
    "d:\\data",
    "D:data\\x",
]

HARMLESS = r"""
Secrets: none were used; the password: see your mail.
login with password in hand, on the machine you login with
The key: value pairs, and the key is that of a minor scale.
commit 0123456789abcdef0123456789abcdef01234567 of SpeechBrain
revision="0123456789abcdef0123456789abcdef01234567"
write to alice@uni.edu, or see https://www.uni.edu/~alice/home/alice
https://drive.google.com/file/d/1AbCdEfGh12345IJKlmnop67890QRs/view
git clone git@github.com:user/repo.git && pip install git+https://github.com/a/b@main
num_tokens: 12345678, tokenizer: facebook/bart-large-960h, max_token_length=100000000
token=True, token: str, token=None, hf auth login, HF_TOKEN, --token TOKEN
$K/2$ frames, ~20 hours, ~half, ~~struck~~, 3/4, n/a, km/h, 24/7
SI-SDR/SI-SDRi and/or either/or/both
LibriSpeechTrainClean100And360, spgm-small-8k, 4077-13754-0001_5142-33396-0065.wav
recipes/LibriMix/separation/hparams/spgm.yaml ../data/x ./data/y data/home.csv
</audio></b></details> <br/> <img src="training_curves.png"/>
[paper](https://arxiv.org/abs/2309.12608v2) doi:10.1109/ICASSP48485.2024.10446117
at 10:30:45, ratio 1:2, epoch:3:loss:4, 16:9
Basic authentication is not needed, bearer of bad news
seed: 1234, lr=1e-3, secret sauce, keyboard=qwerty12345678, monkey: banana
sample_rate: 8000, N_encoder_out: 256
SBtfintra: !new:speechbrain.lobes.models.dual_path.SBTransformerBlock
epoch: 1, lr: 1.50e-04 - train si-snr: -1.02e+01 - valid si-snr: -1.10e+01
torch==2.7.1+cu126, Python 3.11.7 (main) [GCC 12], NVIDIA-A100-SXM4-80GB
Xeon(R) E5-2680v4@2.40GHz
SHA256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
![curve](training_curves.png) | a | b |
keys: a, b. Passwords are not stored. passing=5
password-protected archive: no. The token counts: 15, token type ids
50% of /path/to/LibriSpeech, 100%20 x
a pass at 10 dB; bypass=0.25; pass: second; compass: north; passes=3
precision@1, P@k, model@main, pkg@v2, and alice@uni.edu, GCC 10.2.1
https://example.org/a/b?x=1&y=a/b#/top
the voices said "home/office" and users/speakers
Ann Bell <ann@example.org>: the voice
Home Depot: /dev/null, /path/to
path: /path/to/data/train.csv and {/path/to/x}
""".strip().split("\n")


@pytest.mark.parametrize("seed", range(3))
def test_every_kind_of_secret_is_found_and_not_shown(seed):
    for kind, line in secrets(seed).items():
        leaks = [*find_leaks(f"all is well\n{line}\nand well again")]
        assert leaks and {leak.line for leak in leaks} == {2}, kind
        for drawn in re.findall(r"[A-Za-z0-9]{16,}", line):
            assert not any(drawn in leak.shown for leak in leaks), kind
    token = secrets(seed)["hf"]
    assert all(token not in leak.shown for leak in find_leaks(f"/home/ann/{token}/x"))


@pytest.mark.parametrize("place", PLACES)
def test_every_spelling_of_a_place_is_found(place):
    for line in (place, f"read from {place}", f"--data={place} --lr 1"):
        assert {leak.line for leak in find_leaks(f"all is well\n{line}")} == {2}, line


@pytest.mark.parametrize("line", HARMLESS)
def test_ordinary_lines_are_no_leaks(line):
    assert not [*find_leaks(line)]


def test_our_own_texts_hold_no_leak():
    home = find_published()
    config = read_config(home / "config.json")
    assert CARD in config
    texts = [
        speechbrain_yaml(config),
        *(p.read_text() for p in home.glob("*.[jm][sd]*")),
    ]
    for pattern in (
        "*.md",
        "speechbrain_spgm/**/*.md",
        "docs/**/*.md",
        "docs/**/*.json",
        "**/hparams/*.yaml",
    ):
        texts += [path.read_text(encoding="utf-8") for path in ROOT.glob(pattern)]
    assert len(texts) > 20
    assert not [leak for text in texts for leak in find_leaks(text)]


def test_every_hit_is_named_with_its_line(tmp_path):
    lines = [line for line in secrets(9).values() if "\n" not in line]
    (tmp_path / "a.md").write_text("\n".join(["# A", *lines, *PLACES]))
    with pytest.raises(ModelError) as refused:
        check_folder(tmp_path)
    message = str(refused.value)
    for number in range(2, 2 + len(lines) + len(PLACES)):
        assert f"a.md, line {number}, holds " in message, number
    assert "\n" not in message and "more" not in message


def test_zero_bytes_hide_nothing(tmp_path):
    """Neither those of a file of UTF-16 nor single ones, as they are or in JSON."""
    token = secrets(9)["hf"]
    (tmp_path / "a.md").write_text(f"# A\n{token}\n/home/ann\n", encoding="utf-16")
    (tmp_path / "b.md").write_text(f"# B\0\n{token}")
    (tmp_path / "c.json").write_text("\n" + "\\u0000".join(token))
    (tmp_path / "d.yaml").write_bytes(b"\xff\n" + token.encode())
    with pytest.raises(ModelError) as refused:
        check_folder(tmp_path)
    for name in ("a.md", "b.md", "c.json", "d.yaml"):
        assert f"{name}, line 2, holds a Hugging Face token" in str(refused.value)
    assert "a.md, line 3, holds a local path" in str(refused.value)


def test_a_very_long_line_takes_no_time_that_grows_with_its_square():
    for unit in ("a-", "/", "//", "a.", "key", "ssh "):
        line = unit * (6000 // len(unit)) + " password=" + "hunter2"
        assert any(leak.what == "a secret" for leak in find_leaks(line)), unit
    for unit in ("a", "a ", "key"):
        pieces = [*_pieces(unit * (10**5 // len(unit)))]
        assert max(map(len, pieces)) <= LONGEST_PIECE
        assert len(pieces) < 10**5 / (LONGEST_PIECE - OVERLAP) + 2
