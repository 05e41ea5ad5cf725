"""The page itself, made with Gradio; it speaks to the machine it runs on alone."""

from __future__ import annotations

import html
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from speechbrain_spgm.errors import UserError, first_line, require
from speechbrain_spgm.files import temporary_folder
from speechbrain_spgm.inference import SPGMSeparation
from speechbrain_spgm.models.sources import DEFAULT_MODEL, SHORT_NAMES
from speechbrain_spgm.web.work import Outcome, separate

MODELS = (DEFAULT_MODEL, *SHORT_NAMES)
MOST_VOICES = 5  # players on the page
HOUR, MINUTE = 3600, 60
LARGEST = "2gb"  # of a file that is uploaded
UPLOADS = "gradio"  # the folder of these, and of what is handed out

Loader = Callable[[str], SPGMSeparation]


def serve(
    load: Loader,
    models: Sequence[str] = MODELS,
    max_minutes: float = 10,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    say: Callable[[str], object] = print,
) -> None:
    """Shows the page until the process is interrupted; leaves no file behind.

    Arguments
    ---------
    load : callable
        Makes a model from its name.
    models : sequence of str
        The names to choose from; the first is chosen at the start.
    max_minutes : float
        Longer recordings are refused.
    host : str
        ``"0.0.0.0"`` lets other machines see the page.
    port : int, optional
        By default the first free one from 7860.
    share : bool
        Whether Gradio makes a public link, through its servers.
    say : callable
        Gets the line that names the address.

    Raises
    ------
    UserError
        If the port is taken or no port, Gradio is not installed or cannot begin.
    """
    if port is not None and not 1 <= port < 2**16:
        raise UserError(f"The port is {port}, but must be from 1 to 65535.")
    with temporary_folder() as folder:
        page = build_page(load, models, max_minutes, folder)
        pass_by_proxies(host)
        try:
            _, address, public = page.launch(
                server_name=host,
                server_port=port,
                share=share,
                quiet=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                run_history=False,
                footer_links=[],
                max_file_size=LARGEST,
                theme=offline_theme(),
            )
        except OSError:
            raise UserError(
                f"the page cannot be shown on {host}, port {port or '7860 to 7959'}: "
                "take another --port."
            ) from None
        except UserError:
            raise
        except Exception as error:  # of Gradio or of the network
            raise UserError(
                f"the page cannot be shown on {host} ({first_line(error)}): check "
                "--host and your network."
            ) from None
        try:
            say(f"The page is at {public or address} (Ctrl-C ends it).")
            while True:
                time.sleep(MINUTE)
                remove_old(folder / UPLOADS, 2 * HOUR)
        finally:
            page.close(verbose=False)


def pass_by_proxies(host: str) -> None:
    """Gradio asks its own page whether it is there, which no proxy can see."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    hosts = ",".join(filter(None, (known, "localhost", "127.0.0.1", host)))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = hosts


def remove_old(folder: Path, seconds: float) -> None:
    """Removes older files: of uploads that broke off, of which Gradio knows nothing."""
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            with suppress(OSError):  # Gradio may be quicker
                if time.time() - path.stat().st_ctime > seconds:
                    path.unlink()


def gradio(folder: Path) -> Any:
    """Gradio, told to report nothing to anybody and to keep its files in a folder."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(folder / UPLOADS)
    return require("gradio", "gradio", "The page")


def offline_theme() -> Any:
    """Gradio's look with the system's own letters, which no server need hand out."""
    themes = require("gradio.themes", "gradio", "The page")
    letters = ["ui-sans-serif", "system-ui", "sans-serif"]
    return themes.Default(font=letters, font_mono=["ui-monospace", "monospace"])


def build_page(
    load: Loader, models: Sequence[str], max_minutes: float, folder: Path
) -> Any:
    """The page as a ``gradio.Blocks``; arguments as ``serve`` has them.

    Arguments
    ---------
    load, models, max_minutes
        As in ``serve``.
    folder : Path
        For what is uploaded and what is made of it.

    Returns
    -------
    page : gradio.Blocks
        To be launched.
    """
    gr = gradio(folder)
    loaded, lock = lru_cache(maxsize=2)(load), Lock()

    def run(
        file: str | None,
        spoken: str | None,
        references: list[str] | None,
        name: str,
        progress: Any = gr.Progress(),  # noqa: B008 (Gradio looks for it there)
    ) -> Iterator[list[Any]]:
        def tell(done: int, total: int) -> None:
            progress((done, total), desc="separating", unit="steps")

        with temporary_folder(folder) as own:  # until Gradio has copied what is in it
            try:
                if not (file or spoken):
                    raise UserError("Give a file, or record something.")
                progress(0, desc=f"loading {name}")
                with lock:
                    model = loaded(name)
                outcome = separate(
                    model,
                    Path(file or spoken),
                    own,
                    [Path(path) for path in references or ()],
                    max_minutes,
                    tell,
                )
            except UserError as error:
                raise message(gr, str(error)) from None
            except Exception as error:
                line = f"This failed ({type(error).__name__}: {first_line(error)})."
                raise message(gr, line) from error
            yield shown_on(gr, outcome)

    with gr.Blocks(
        title="Separate voices", analytics_enabled=False, delete_cache=(HOUR, HOUR)
    ) as page:
        gr.Markdown(
            "# Two people talk at once: hear each of them\n"
            f"Any recording or video of up to {max_minutes:g} minutes. It stays on the "
            "machine that runs this page."
        )
        with gr.Row():
            with gr.Column(), gr.Tabs():
                with gr.Tab("File"):
                    file = gr.File(label="recording or video", elem_id="recording")
                with gr.Tab("Record"):
                    spoken = gr.Audio(sources=["microphone"], type="filepath")
            with gr.Column():
                name = gr.Dropdown(
                    list(models),
                    value=models[0],
                    label="model",
                    info="spgm-base (115 MB) and spgm-opt (152 MB) are downloaded once",
                )
                with gr.Accordion("I have the voices themselves", open=False):
                    references = gr.File(
                        label="to measure against: one file for each voice",
                        file_count="multiple",
                        elem_id="references",
                    )
                button = gr.Button("Separate", variant="primary", elem_id="separate")
        remarks = gr.Markdown(elem_id="remarks", min_height=40)  # and how far it is
        panels = []
        for i in range(MOST_VOICES + 1):
            title = f"voice {i}" if i else "mixture"
            with gr.Row():
                player = gr.Audio(
                    label=title,
                    visible=False,
                    interactive=False,
                    buttons=["download"],
                    elem_id=f"player{i}",
                )
                picture = gr.Image(
                    label=title,
                    visible=False,
                    show_label=False,
                    interactive=False,
                    buttons=[],
                    elem_id=f"picture{i}",
                )
            panels += [player, picture]
        scores = gr.Markdown(elem_id="scores")
        files = gr.File(label="all files", visible=False, elem_id="files")
        button.click(
            run,
            [file, spoken, references, name],
            [remarks, *panels, scores, files],
            concurrency_limit=1,
            show_progress_on=[remarks],
            api_visibility="private",
        )
    return page


def message(gr: Any, line: str) -> Exception:
    """What shows a line in the browser until it is closed."""
    return gr.Error(html.escape(line), duration=None, print_exception=False)


def shown_on(gr: Any, outcome: Outcome) -> list[Any]:
    """The values of the page's fields, in their order."""
    remarks = "\n\n".join(map(html.escape, outcome.remarks))
    panels: list[Any] = []
    waves = [outcome.mixture, *outcome.voices][: MOST_VOICES + 1]
    for wave, picture in zip(waves, outcome.pictures, strict=False):
        panels.append(gr.update(value=str(wave), visible=True))
        panels.append(gr.update(value=str(picture), visible=True))
    while len(panels) < 2 * (MOST_VOICES + 1):
        panels.append(gr.update(value=None, visible=False))
    files = [str(path) for path in (outcome.archive, *outcome.voices)]
    return [remarks, *panels, outcome.scores, gr.update(value=files, visible=True)]
