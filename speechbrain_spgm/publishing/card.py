"""The README.md of a published model: metadata for the Hub, and the card to read.

Axes: K frames of a chunk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from speechbrain_spgm.models.config import count_parameters
from speechbrain_spgm.models.published import ModelError
from speechbrain_spgm.models.speechbrain import PARTS
from speechbrain_spgm.publishing.source import NOTES_BEGIN, NOTES_END, Results, Source

TAGS = [
    "speechbrain",
    "audio-to-audio",
    "audio-source-separation",
    "speech-separation",
    "spgm",
]
AUTHORS_CODE = "https://github.com/Yip-Jia-Qi/spgm_standalone"
# What the Hub calls licences; anything else is "other", with its own name.
LICENCES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m
    bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause
    bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0
    cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
    cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
    creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl
    lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c
    mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 open-mdw openrail openrail++ osl-3.0
    pddl postgresql unlicense wtfpl zlib
    """.split()
)
NO_LICENCE = {"", "none", "not stated", "unknown", "null", "?"}

CITATION = """```bibtex
@inproceedings{yip2024spgm,
  title     = {{SPGM}: Prioritizing Local Features for Enhanced Speech Separation Performance},
  author    = {Yip, Jia Qi and Zhao, Shengkui and Ma, Yukun and Ni, Chongjia and Zhang, Chong and Wang, Hao and Nguyen, Trung Hieu and Zhou, Kun and Ng, Dianwen and Chng, Eng Siong and Ma, Bin},
  booktitle = {ICASSP},
  year      = {2024}
}

@misc{speechbrain,
  title         = {{SpeechBrain}: A General-Purpose Speech Toolkit},
  author        = {Mirco Ravanelli and Titouan Parcollet and Peter Plantinga and Aku Rouhe and Samuele Cornell and Loren Lugosch and Cem Subakan and Nauman Dawalatabad and Abdelwahab Heba and Jianyuan Zhong and Ju-Chieh Chou and Sung-Lin Yeh and Szu-Wei Fu and Chien-Feng Liao and Elena Rastorgueva and François Grondin and William Aris and Hwidong Na and Yan Gao and Renato De Mori and Yoshua Bengio},
  year          = {2021},
  eprint        = {2106.04624},
  archivePrefix = {arXiv},
  primaryClass  = {eess.AS}
}
```"""  # noqa: E501


class Terms(NamedTuple):
    """What the publisher states: licence, data sets of the Hub, where it will lie."""

    repo: str
    licence: str
    datasets: tuple[str, ...]
    revision: str
    private: bool


def licence_of(given: str | None, card: Mapping[str, Any]) -> str:
    """The licence to publish under, in small letters if the Hub knows it.

    Example
    -------
    >>> licence_of(None, {"licence": "CC-BY-4.0"})
    'cc-by-4.0'
    """
    stated = given
    if given is None:
        stated = card.get("licence") or card.get("license") or ""
    stated = " ".join(str(stated).split())
    if stated.lower() in NO_LICENCE:
        raise ModelError(
            "No licence: give one by --license, for example cc-by-4.0. Without it "
            "nobody may use the model."
        )
    return stated.lower() if stated.lower() in LICENCES else stated


def write_card(source: Source, terms: Terms, files: Sequence[str]) -> str:
    """The text of README.md: Markdown with the Hub's metadata on top.

    The picture and the example are shown if ``files`` has them. It depends on its
    inputs and on the versions of the installed packages only, not on the time.
    """
    name = terms.repo.split("/")[1]
    parts = [
        f"# {name}",
        _introduction(source),
        "## Results",
        _results(source.results),
        *_example(terms, files),
        "## Use it",
        _usage(source, terms),
        "## How it was trained",
        *_training(source, files),
        "## What it is not good at",
        _limits(source),
        f"{NOTES_BEGIN}\n\n{source.notes}\n\n{NOTES_END}",
        "## Licence and citation",
        f"The weights are under the licence {terms.licence}.",
        CITATION,
    ]
    data = _metadata(source, terms, name)
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"
    _check(text, data)
    return text


def _metadata(source: Source, terms: Terms, name: str) -> ModelCardData:
    known = terms.licence in LICENCES
    results = source.results
    # Of the metrics, what is the model's own.
    measured = [m for m in results.measured if not m.name.endswith("the mixtures")]
    return ModelCardData(
        license=terms.licence if known else "other",
        license_name=None if known else _slug(terms.licence),
        library_name="speechbrain",
        pipeline_tag="audio-to-audio",
        tags=TAGS,
        datasets=list(terms.datasets) or None,
        metrics=[metric.name for metric in measured],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="audio-to-audio",
                task_name="Speech separation",
                dataset_type=(*terms.datasets, _slug(results.test_set))[0],
                dataset_name=results.test_set,
                metric_type=_slug(metric.name),
                metric_name=f"{metric.name} ({metric.unit})"
                if metric.unit
                else metric.name,
                metric_value=metric.mean,
                metric_args={"n": metric.n}
                | ({} if metric.ci95 is None else {"ci95": metric.ci95}),
            )
            for metric in measured
        ],
    )


def _check(text: str, data: ModelCardData) -> None:
    """The client must read from the text what was meant."""
    read = ModelCard(text).data.to_dict()
    if read != data.to_dict():
        raise ModelError(
            "The card's metadata cannot be written as YAML: take unusual characters "
            "out of the licence, the data sets and the name of the test set."
        )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "other"


def _introduction(source: Source) -> str:
    config = source.config
    rate = config["sample_rate"]
    parts = [source.model.mods[name] for name in PARTS]
    return (
        f"Separates the voices of {config['masknet_numspks']} people who talk at once: "
        f"speech at {rate} Hz, {count_parameters(parts):,} parameters. "
        "The network is **SPGM** (Single-Path Global Modulation, [Yip et al., ICASSP "
        "2024](https://arxiv.org/abs/2309.12608)): SepFormer whose inter-chunk "
        "transformer is replaced by a pooling and a small modulation."
    )


def _results(results: Results) -> str:
    rows = [
        f"| {m.name} | {m.n} | {f'{m.mean:.2f}{m.interval} {m.unit}'.strip()} |"
        for m in results.measured
    ]
    table = "\n".join(
        ["| metric | n | mean ± 95% confidence interval |", "|---|---|---|", *rows]
    )
    views = f", {results.views} views of each" if (results.views or 1) > 1 else ""
    about = f"Measured on {results.test_set}, n = {results.n} mixtures{views}"
    return f"{about}:\n\n{table}"


def _example(terms: Terms, files: Sequence[str]) -> list[str]:
    recordings = [name for name in files if name.endswith(".flac")]
    if not recordings:
        return []
    rows = []
    for name in recordings:
        label = "mixture"
        if match := re.search(r"_spk(\d+)\.flac$", name):
            label = f"voice {match[1]}"
        address = f"https://huggingface.co/{terms.repo}/resolve/{terms.revision}/{name}"
        rows.append(
            f'| {label} | <audio controls src="{address}"></audio> [{name}]({name}) |'
        )
    table = "\n".join(["| | |", "|---|---|", *rows])
    return [
        "## Listen",
        f"A mixture and what the model makes of it. The recording keeps the licence of "
        f"its data.\n\n{table}",
    ]


def _usage(source: Source, terms: Terms) -> str:
    repo, name = terms.repo, terms.repo.split("/")[1]
    at = "" if terms.revision == "main" else f', revision="{terms.revision}"'
    # SpeechBrain's own class takes the revision and the token in its FetchConfig.
    fetch = ["token=True"] * terms.private
    fetch += [f'revision="{terms.revision}"'] * bool(at)
    fetch_import = (
        "\nfrom speechbrain.utils.fetching import FetchConfig" if fetch else ""
    )
    fetch_option = f", fetch_config=FetchConfig({', '.join(fetch)})" if fetch else ""
    log_in = "\n\nThe repository is private: log in first (`hf auth login`)."
    log_in = log_in if terms.private else ""
    return f"""Install the SpeechBrain plugin `speechbrain_spgm` {_version("speechbrain_spgm")}.{log_in}

Any audio file, any sample rate and length; nothing of the repository is run as code:

```python
from speechbrain_spgm.inference import SPGMSeparation

model = SPGMSeparation.from_pretrained("{repo}"{at})
voices = model.separate_file("mixture.wav")  # [1, T, spks], at the file's own rate
```

The same from SpeechBrain's files, hyperparams.yaml and .ckpt:

```python
from speechbrain_spgm.inference import SPGMSeparation

model = SPGMSeparation.from_hparams(source="{repo}"{at})
```

With SpeechBrain's own class, for mixtures at the rate of the model:

```python
from speechbrain.inference.separation import SepformerSeparation{fetch_import}

model = SepformerSeparation.from_hparams(
    source="{repo}", savedir="pretrained_models/{name}"{fetch_option}
)
voices = model.separate_batch(mix)  # [B, T] -> [B, T, spks]
```{_authors_way(source, repo, at)}"""  # noqa: E501


def _authors_way(source: Source, repo: str, at: str) -> str:
    if source.config["spgm_block_pool"] == "none":
        return ""  # which the author's code does not know
    return f"""

With the [code of SPGM's author]({AUTHORS_CODE}), which reads config.json and
model.safetensors by huggingface_hub's `PyTorchModelHubMixin`:

```python
from model.SPGM import SPGMWrapper

model = SPGMWrapper.from_pretrained("{repo}"{at})
voices = model(mix)  # one mixture at a time: [1, T] -> [1, T, spks]
```"""  # noqa: E501


def _training(source: Source, files: Sequence[str]) -> list[str]:
    card, config = source.card, source.config
    lines = [
        f"- **Network:** {config['encoder_out_nchannels']} filters, kernel "
        f"{config['encoder_kernel_size']}, chunks of {config['masknet_chunksize']} "
        f"frames, {config['masknet_numlayers']} blocks of {config['intra_numlayers']} "
        f"layers, {config['intra_nhead']} heads, d_ffn {config['intra_dffn']}, pooling "
        f"{config['spgm_block_pool']}."
    ]
    if data := card.get("training_data"):
        lines.append(f"- **Data:** {data}.")
    if (seed := card.get("seed")) is not None:
        lines.append(f"- **Seed:** {seed}.")
    if source.versions:
        lines.append(f"- **Trained with:** {listed(source.versions)}.")
    elif trained := card.get("trained_with"):
        lines.append(f"- **Trained with:** {trained}.")
    lines.append(f"- **Checked before publishing with:** {listed(installed())}.")
    if source.command:
        lines.append("- **Command,** in the recipe's folder:")
        command = f"```bash\n{source.command}\n```"
    else:
        lines.append("- **Command:** not recorded by the run.")
        command = ""
    picture = [
        f"![SI-SDR on training and validation mixtures, epoch by epoch]({name})"
        for name in files
        if name.endswith(".png")
    ]
    return ["\n".join(lines), *([command] if command else []), *picture]


def _limits(source: Source) -> str:
    config = source.config
    rate, spks = config["sample_rate"], config["masknet_numspks"]
    stride = config["encoder_kernel_size"] // 2
    chunk = 1000 * config["masknet_chunksize"] * stride / rate
    return "\n".join(
        [
            f"- It always gives {spks} voices, whether fewer or more people talk.",
            f"- It hears nothing above {rate // 2} Hz; higher rates are resampled.",
            f"- A frame sees its own chunk ({chunk:g} ms) and a summary of the whole "
            "recording, so a voice may change sides within a long recording.",
            "- It knows recordings like those it was trained on"
            + (f" ({data})" if (data := source.card.get("training_data")) else "")
            + ": expect less with other noise, rooms, languages and microphones.",
        ]
    )


def installed() -> dict[str, str]:
    """The versions of what runs the model here."""
    names = ("speechbrain_spgm", "speechbrain", "torch")
    return {"Python": python_version(), **{name: _version(name) for name in names}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(version unknown)"


def listed(versions: Mapping[str, str]) -> str:
    """Versions in one line.

    Example
    -------
    >>> listed({"Python": "3.11.7", "torch": "2.11.0"})
    'Python 3.11.7, torch 2.11.0'
    """
    return ", ".join(f"{name} {number}" for name, number in versions.items())
