"""A trained separator, ready to use.

Axes: B utterances, T samples, spks sources.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from speechbrain.dataio.preprocess import AudioNormalizer
from speechbrain.inference.separation import SepformerSeparation
from speechbrain.lobes.models.dual_path import Dual_Path_Model
from speechbrain.utils.distributed import infer_device
from speechbrain.utils.fetching import FetchConfig, FetchSource, LocalStrategy
from speechbrain.utils.run_opts import RunOptions
from torch import Tensor, nn

from speechbrain_spgm.audio import (
    AudioFileError,
    Recording,
    Source,
    name_of,
    to_tensor,
)
from speechbrain_spgm.choices import LOOK_BACK, PRECISIONS, STREAM_VIEWS
from speechbrain_spgm.errors import UserError
from speechbrain_spgm.files import scratch
from speechbrain_spgm.inference.augment import check_views, separate_augmented, views_of
from speechbrain_spgm.inference.band import UpperBand, pieces_of
from speechbrain_spgm.inference.files import (
    from_file,
    from_samples,
    separate_to_files,
    separate_to_tensor,
    spare,
)
from speechbrain_spgm.inference.level import (
    Centre,
    bring_to_level,
    check_levels,
    check_peak,
    check_voices,
    find_centre,
    restore_level,
    scale_to_peak,
    share_rest,
)
from speechbrain_spgm.inference.long.spool import resample_in_pieces
from speechbrain_spgm.inference.options import WRITING, Options
from speechbrain_spgm.inference.stream import SPGMStream
from speechbrain_spgm.lobes import intra
from speechbrain_spgm.lobes.chunking import row_seconds
from speechbrain_spgm.lobes.engine import Watch
from speechbrain_spgm.lobes.masknet import SPGMMaskNet
from speechbrain_spgm.lobes.quantised import quantise
from speechbrain_spgm.lobes.separator import NO_MPS, count_voices, separate
from speechbrain_spgm.lobes.spgm import SPGMBlock
from speechbrain_spgm.lobes.statistics import Statistics
from speechbrain_spgm.models.published import (
    CARD,
    ModelError,
    load_published,
    weights_in,
)
from speechbrain_spgm.models.remote import (
    fetch_published,
    keep,
    local_audio,
    open_source,
    source_name,
)
from speechbrain_spgm.models.safe_yaml import load_safely
from speechbrain_spgm.models.sources import (
    REPORTED,
    YAML_FILE,
    best_checkpoint,
    has_speechbrain_layout,
    is_model,
    is_run,
    is_url,
    locate,
)
from speechbrain_spgm.models.speechbrain import PARTS, card_config, load_weights

logger = logging.getLogger(__name__)

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class SPGMSeparation(SepformerSeparation):
    """Separates the voices of a recording with a trained SPGM model.

    A SpeechBrain ``SepformerSeparation`` that also loads the published layout without
    running code, keeps the utterances of a batch apart, and reads any audio file. Build
    it by ``from_pretrained`` or ``from_hparams``. It has no state that a call changes:
    several threads may share one.

    Arguments
    ---------
    modules : dict of str to torch.nn.Module
        ``encoder``, ``masknet`` and ``decoder``. A ``Dual_Path_Model`` with SPGM blocks
        is run as an ``SPGMMaskNet`` on the same parameters: same results, but no
        utterance depends on the others in its batch.
    hparams : dict
        ``sample_rate`` is needed for files.
    run_opts : dict or RunOptions, optional
        SpeechBrain's, such as ``{"device": "cpu"}``; by default a CUDA GPU if there is
        one. With ``compile`` (and if you like ``compile_mode``) ``torch.compile`` makes
        the transformers faster, after slow first calls; a CPU in fp32 or int8 has its
        own fast path and stays as it is.
    freeze_params : bool
        Freezes the parameters and sets evaluation mode.
    precision : str, optional
        ``"fp32"`` (default): as the weights are. ``"bf16"``: matrix products of the
        mask network in bfloat16, for GPUs and processors that have it. ``"fp16"``:
        likewise in float16, on GPUs only. ``"int8"``: linears of the transformers in 8
        bits, on the CPU only. The weights in memory stay as they are in all of them.

    Raises
    ------
    ModelError
        If a module is missing, a run option does nothing here, or the device or the
        precision cannot be used.

    Example
    -------
    >>> model = SPGMSeparation.from_pretrained(device="cpu")
    >>> model.separate_batch(torch.rand(2, 800), lengths=[800, 350]).shape
    torch.Size([2, 800, 2])
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        hparams: Mapping[str, Any],
        run_opts: Mapping[str, Any] | RunOptions | None = None,
        freeze_params: bool = True,
        precision: str | None = None,
    ) -> None:
        missing = [name for name in self.MODULES_NEEDED if name not in modules]
        if missing:
            raise ModelError(
                f"The model has no {' and no '.join(missing)}: its yaml must name "
                "modules encoder, masknet and decoder."
            )
        if not isinstance(run_opts, RunOptions):
            run_opts = dict(run_opts or {})
            given = (run_opts.get("device"), hparams.get("device"))
            found = infer_device()
            found = "cpu" if found.startswith("mps") else found  # see usable_device
            device = next((x for x in given if x not in (None, "")), found)
            run_opts["device"] = usable_device(device)
        masknet = packed(modules["masknet"])
        check_run_opts(run_opts, masknet, precision)
        super().__init__(
            {**modules, "masknet": masknet}, dict(hparams), run_opts, freeze_params
        )
        self.precision = prepare_precision(precision, self.mods, self.device)

    def _compile(self) -> None:
        """Compiles the transformers, which do most of the work, for any lengths."""
        # SpeechBrain wraps the whole mask network, and a wrapped one takes no frames.
        if not isinstance(self.mods.masknet, SPGMMaskNet):
            super()._compile()
            return
        if self.compile or "masknet" in (self.compile_module_keys or ()):
            self.mods.masknet.transform = torch.compile(
                intra.transform, mode=self.compile_mode, dynamic=True
            )

    @classmethod
    def from_hparams(
        cls,
        source: str | Path | FetchSource,
        hparams_file: str = YAML_FILE,
        savedir: str | Path | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        trust_remote_code: bool = False,
        overrides: Mapping[str, Any] | str | None = None,
        overrides_must_match: bool = True,
        download_only: bool = False,
        local_strategy: LocalStrategy = LocalStrategy.SYMLINK,
        fetch_config: FetchConfig | None = None,
        precision: str | None = None,
        use_auth_token: str | bool | None = None,
        **kwargs: Any,
    ) -> SPGMSeparation | None:
        """Loads a SpeechBrain-style folder: hyperparams.yaml and a .ckpt per module.

        The yaml may name SpeechBrain's, torch.nn's and this package's networks and
        plain values; seed calls and parts of a training are left out. Anything else is
        refused by name. A .ckpt may hold tensors only, under exactly the names that its
        module has. See SECURITY.md.

        Arguments
        ---------
        source : str or Path or FetchSource
            A folder, a run's output folder, a Hub repository or a web address.
        hparams_file : str
            The name of the yaml.
        savedir : str or Path, optional
            Where the files are linked or copied to. By default a folder is read where
            it is and leaves nothing anywhere; Hub files stay in the Hub's cache.
        revision, token, cache_dir
            As in ``from_pretrained``.
        trust_remote_code : bool
            Builds whatever the yaml names, as SpeechBrain's own ``from_hparams`` does:
            this can run any code. Only for sources that you trust.
        overrides : dict or str, optional
            Your own values in place of the yaml's; what they name is trusted.
        overrides_must_match : bool
            Whether each override must replace a value.
        download_only : bool
            Fetches and checks the files, but gives no model.
        local_strategy : LocalStrategy
            Whether files are linked or copied to ``savedir``.
        fetch_config : FetchConfig, optional
            SpeechBrain's; its revision, token and cache are used if not given here.
        precision : str, optional
            ``"fp32"``, ``"bf16"``, ``"fp16"`` or ``"int8"``, see the class.
        use_auth_token : str or bool, optional
            SpeechBrain's name for ``token``.
        **kwargs
            ``run_opts`` and ``freeze_params``, see the class.

        Returns
        -------
        model : SPGMSeparation
            None if ``download_only=True`` is passed.

        Raises
        ------
        ModelError
            If there is no such folder or repository, it has no such yaml, the yaml
            names what is not allowed, or the weights are not those of its modules.
        """
        fetching = fetch_config or FetchConfig()
        token = use_auth_token if token is None else token
        hub = {
            "revision": revision or fetching.revision,
            "token": (fetching.token or None) if token is None else token,
            "cache_dir": cache_dir or fetching.huggingface_cache_dir,
            "local_only": not fetching.allow_network,
        }
        source = check_source(source, hparams_file)
        with open_source(source, hparams_file, **hub) as find:
            if trust_remote_code:
                find(hparams_file)  # names what is wrong with the source
                with TemporaryDirectory(dir=scratch()) as temporary:
                    return super().from_hparams(
                        source if isinstance(source, FetchSource) else str(source),
                        hparams_file=hparams_file,
                        overrides=overrides or {},
                        overrides_must_match=overrides_must_match,
                        savedir=temporary
                        if is_url(source) and not savedir
                        else savedir,
                        download_only=download_only,
                        local_strategy=local_strategy,
                        fetch_config=replace(
                            fetching,
                            revision=hub["revision"],
                            token=hub["token"],
                            huggingface_cache_dir=hub["cache_dir"],
                        ),
                        precision=precision,
                        **kwargs,
                    )
            files: dict[str, Path] = {}

            def noted(name: str) -> Path:
                files[name] = find(name)
                return files[name]

            hparams = load_safely(noted, hparams_file, overrides, overrides_must_match)
            load_weights(hparams, source_name(source), noted)
            config = card_config(noted)
            if savedir is not None:
                way = LocalStrategy.COPY if is_url(source) else local_strategy
                keep(files, savedir, way)
        if download_only:
            return None
        check_hparams(hparams, hparams_file)
        if not isinstance(hparams.get("config"), Mapping):
            hparams["config"] = config
        hparams["savedir"] = savedir
        try:
            return cls(
                modules=hparams["modules"],
                hparams=hparams,
                precision=precision,
                **kwargs,
            )
        except (KeyError, TypeError) as error:  # odd names of keys or modules
            reason = (str(error).splitlines() or [""])[0]
            raise ModelError(
                f"{hparams_file} makes no separator ({type(error).__name__}: {reason})."
            ) from None

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        device: str | torch.device | int | None = None,
        use_auth_token: str | bool | None = None,
        run_opts: Mapping[str, Any] | None = None,
        freeze_params: bool = True,
        precision: str | None = None,
    ) -> SPGMSeparation:
        """Loads a model in the published layout: config.json and its weights.

        The weights are model.safetensors or, where there is none, pytorch_model.bin. No
        code from the source is run, and none of its other files is opened.

        Arguments
        ---------
        source : str or Path, optional
            A model folder or a run's output folder; the name of a model that is shipped
            with this package; ``"spgm-base"`` or ``"spgm-opt"``, the authors' models; a
            Hub repository USER/NAME; in this order. By default the shipped one.
        revision : str, optional
            Branch, tag or commit of a Hub repository.
        token : str or bool, optional
            For private Hub repositories.
        cache_dir : str or Path, optional
            In place of the Hub's own cache.
        device : str or torch.device or int, optional
            By default a GPU if there is one.
        use_auth_token : str or bool, optional
            SpeechBrain's name for ``token``.
        run_opts : dict, optional
            SpeechBrain's other run options.
        freeze_params : bool
            Freezes the parameters and sets evaluation mode.
        precision : str, optional
            ``"fp32"``, ``"bf16"``, ``"fp16"`` or ``"int8"``, see the class.

        Returns
        -------
        model : SPGMSeparation
            ``model.hparams.config`` holds config.json.

        Raises
        ------
        ModelError
            If the source cannot be found or downloaded, or is not such a model.
        """
        token = use_auth_token if token is None else token
        folder = find_published(source, revision, token, cache_dir)
        encoder, masknet, decoder, config = load_published(folder)
        known = REPORTED.get(str(locate(source)))
        config = {CARD: known, **config} if known else config
        return cls(
            modules={"encoder": encoder, "masknet": masknet, "decoder": decoder},
            hparams={
                "sample_rate": config["sample_rate"],
                "num_spks": config["masknet_numspks"],
                "config": config,
                "audio_normalizer": AudioNormalizer(config["sample_rate"]),
            },
            run_opts={"device": device, **(run_opts or {})},
            freeze_params=freeze_params,
            precision=precision,
        )

    @property
    def sample_rate(self) -> int:
        """The rate in Hz that the model works at."""
        if not hasattr(self.hparams, "sample_rate"):
            raise ModelError("The model's yaml names no sample_rate: add it.")
        return int(self.hparams.sample_rate)

    @property
    def num_spks(self) -> int:
        """How many voices the model separates."""
        stated = getattr(self.hparams, "num_spks", None)
        try:
            return count_voices(self.mods.masknet, stated)
        except ValueError as error:
            raise ModelError(str(error)) from None

    @property
    def views(self) -> int:
        """How many views of a recording are separated unless the caller says."""
        return views_of(getattr(self.hparams, "config", None))

    def separate_batch(
        self,
        mix: Tensor,
        lengths: Tensor | Sequence[float] | None = None,
        views: int = 1,
        *,
        level: bool = False,
        grad: bool = False,
        statistics: Statistics | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Separates a batch of mixtures; each gets what it would get alone.

        Arguments
        ---------
        mix : torch.Tensor
            ``[B, T]`` at the model's sample rate, T >= 1.
        lengths : torch.Tensor or sequence, optional
            Valid part of each mixture, ``[B]``: in samples if whole numbers, as a share
            of T if floats (SpeechBrain's relative lengths). By default all T. What mix
            holds beyond is never read.
        views : int
            1: the network's own output, as SpeechBrain's. More, up to 8: the mean over
            so many delays and both polarities of the mixture, which is nearer to the
            voices and takes as many times as long.
        level : bool
            Whether each mixture is freed of its mean and brought to the level of the
            training's mixtures on its way in, and its voices back to its own on their
            way out: then they depend on neither. Without, as in SpeechBrain, they do.
        grad : bool
            Whether gradients are kept, for a loss on the voices that ``mix``, or with
            ``freeze_params=False`` the weights, are to learn from. It takes several
            times as much memory. Not in int8.
        statistics : Statistics, optional
            Over which chunks SPGM's averages are taken, see
            ``speechbrain_spgm.lobes.statistics``; by default over the whole recording.
        watch : callable, optional
            ``watch(rows, total)`` is told, by several threads at a time, how many of a
            view's ``total`` chunks (times blocks) have just been computed.

        Returns
        -------
        est : torch.Tensor
            ``[B, T, spks]`` on the model's device, in the type of its weights, float32
            as a rule; zero beyond the lengths. Without gradient unless ``grad`` is
            given.

        Raises
        ------
        ValueError
            If a shape, a length or the number of views is wrong, the valid part holds
            NaN or infinity, statistics are a word, or gradients are asked for in int8.
        """
        views = check_views(views)
        if not isinstance(statistics, Statistics | None):
            raise UserError(
                f"statistics is {statistics!r}, but must be Statistics: take "
                "speechbrain_spgm.lobes.statistics.statistics_of('running', "
                "model.row_seconds), or 'window' there."
            )
        if grad and self.precision == "int8":
            raise UserError("int8 has no gradients: take precision fp32.")
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            return self._separate_batch(mix, lengths, views, level, statistics, watch)

    def _separate_batch(
        self,
        mix: Tensor,
        lengths: Tensor | Sequence[float] | None,
        views: int,
        level: bool,
        statistics: Statistics | None,
        watch: Watch | None,
    ) -> Tensor:
        mix = to_tensor(mix)
        if mix.ndim != 2 or mix.numel() == 0 or mix.is_complex():
            raise UserError(
                f"mix has shape {list(mix.shape)} and type {mix.dtype}, but must be "
                "real [B, T] with at least one utterance and one sample."
            )
        weight = next(self.mods.encoder.parameters())
        mix = mix.to(weight.device, mix.dtype if level else weight.dtype)
        B, T = mix.shape
        samples = samples_of([T] * B if lengths is None else lengths, B, T)
        check_finite(mix, samples)
        if level:
            mix, levels = bring_to_level(mix, samples.tolist())
            mix = mix.to(weight.dtype)

        def once(mix: Tensor, samples: Tensor, view: int) -> Tensor:
            return separate(
                self.mods.encoder,
                self.mods.masknet,
                self.mods.decoder,
                mix,
                samples,
                autocast=HALVES.get(self.precision),
                statistics=statistics and statistics.of_view(view),
                watch=watch,
            )

        stride = self.mods.encoder.conv1d.stride[0]
        period = max(1, getattr(self.mods.masknet, "K", 2) // 2) * stride
        est = separate_augmented(once, mix, samples, views, period)
        return (est * levels.unsqueeze(-1)).to(est.dtype) if level else est

    def stream(
        self,
        warm_up: float = 1.0,
        horizon: float | None = None,
        views: int | None = None,
        look_back: float = LOOK_BACK,
    ) -> SPGMStream:
        """Begins to separate a talk that comes piece by piece, as from a microphone.

        Arguments
        ---------
        warm_up : float
            The first seconds, 0 to 60, are held back and have their averages in common.
        horizon : float, optional
            Seconds after which the past counts a third: voices may then come and go.
            By default nothing is forgotten.
        views : int, optional
            1, or 2: better voices for twice the computing, and no more delay. By
            default what the model's card asks for, at most 2.
        look_back : float
            Seconds, 0 to 60, up to which the talk so far is separated anew whenever it
            has become twice as long, so that no voice changes its output. 0: never.

        Returns
        -------
        stream : SPGMStream
            Takes samples, gives voices; ``stream.latency`` is its delay in seconds.

        Raises
        ------
        UserError
            If a number of seconds or of views is wrong.
        ModelError
            If the model is no SPGM network, or in training mode.
        """
        if views is None:
            views = min(self.views, max(STREAM_VIEWS))
        return SPGMStream(
            self.mods.encoder,
            self.mods.masknet,
            self.mods.decoder,
            self.sample_rate,
            warm_up,
            horizon,
            HALVES.get(self.precision),
            views,
            look_back,
        )

    @property
    def row_seconds(self) -> float | None:
        """Seconds from one chunk of SPGM to the next; None of another network."""
        if not isinstance(self.mods.masknet, SPGMMaskNet):
            return None
        stride = self.mods.encoder.conv1d.stride[0]
        return row_seconds(self.mods.masknet.K, stride, self.sample_rate)

    def separate_file(
        self,
        path: Source,
        savedir: str | Path | None = None,
        normalize: str | None = None,
        **options: Any,
    ) -> Tensor:
        """Separates an audio file of any length.

        The result depends neither on the file's level nor on an offset: the file is
        brought to one level and freed of its mean on its way in. The voices have the
        file's level again, but no offset.

        Arguments
        ---------
        path : str or Path or bytes or file object
            Any file that libsndfile reads, and with PyAV any that FFmpeg reads, at any
            rate, with any number of channels (their mean is taken); or a web address,
            or USER/NAME/FILE on the Hub; or the content of a file, or an open one.
        savedir : str or Path, optional
            Where a download is kept. Nothing is ever stored for local files.
        normalize : str, optional
            ``None`` keeps the mixture's level, ``"peak"`` gives every output peak 1.
        **options
            ``mode``, ``max_memory``, ``window``, ``overlap``, ``views``, ``progress``,
            ``statistics``, ``statistics_seconds``, ``consistent``, ``channel`` and
            ``full_band``: see
            ``speechbrain_spgm.inference.options.Options``.

        Returns
        -------
        est : torch.Tensor
            ``[1, T, spks]`` at the file's own rate and length, on the CPU.

        Raises
        ------
        AudioFileError
            If the file cannot be read or holds NaN or infinity.
        UserError
            If an option is wrong, or the exact mode is asked for and does not fit.
        """
        chosen = Options.of({"normalize": normalize, **options}, WRITING).checked(self)
        with local_audio(path, savedir) as local:
            return separate_to_tensor(self, from_file(local), name_of(path), chosen)

    def separate_audio(
        self, samples: np.ndarray | Tensor, sample_rate: int, **options: Any
    ) -> Tensor:
        """Separates a recording that is in memory.

        Arguments
        ---------
        samples : np.ndarray or torch.Tensor
            ``[T]`` or ``[T, channels]``: floats, full scale is 1, or signed integers of
            any width.
        sample_rate : int
            In Hz.
        **options
            Those of ``separate_file``, but for ``savedir``.

        Returns
        -------
        est : torch.Tensor
            ``[1, T, spks]`` at the same rate, on the CPU.

        Raises
        ------
        AudioFileError
            If the shape, the type or the rate is wrong, or a sample NaN or infinite.
        UserError
            As ``separate_file``.

        Example
        -------
        >>> model = SPGMSeparation.from_pretrained(device="cpu")
        >>> model.separate_audio(torch.rand(800, 2), 16000).shape
        torch.Size([1, 800, 2])
        """
        chosen = Options.of(options, WRITING).checked(self)
        sound = from_samples(samples, sample_rate)
        return separate_to_tensor(self, sound, "the recording", chosen)

    def separate_to_files(
        self,
        path: Source,
        outputs: Sequence[str | Path],
        normalize: str | None = None,
        *,
        report: str | Path | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Separates an audio file into one file per voice.

        In the stitched mode nothing is held whole in memory: an hour needs no more than
        a minute. Temporary files lie in a hidden folder beside the first output; it is
        removed at the end, also after Ctrl-C.

        Arguments
        ---------
        path, normalize
            As in ``separate_file``.
        outputs : sequence of str or Path
            One per voice; they appear when all is done.
        report : str or Path, optional
            A JSON file to write: the mode, the estimated memory, and for every seam its
            time in seconds, the permutation, its confidence from 0.5 to 1, and whether
            all voices are heard there.
        **options
            As in ``separate_file``, and ``format`` and ``subtype``: see
            ``speechbrain_spgm.inference.options.Options``.

        Returns
        -------
        facts : dict
            What the report holds.

        Raises
        ------
        AudioFileError
            If the file cannot be read or the outputs cannot be written.
        UserError
            If an option is wrong, two files would have one name, one would take the
            recording's place, or the exact mode is asked for and does not fit.
        """
        paths = [Path(output) for output in outputs]
        chosen = Options.of({"normalize": normalize, **options})
        chosen = chosen.checked(self, next(iter(paths), ""))
        report = None if report is None else Path(report)
        with local_audio(path) as local:
            spare(local, [*paths, *([report] if report else [])])
            return separate_to_files(
                self, from_file(local), name_of(path), paths, chosen, report
            )

    def separate_recording(
        self,
        recording: Recording,
        normalize: str | None = None,
        views: int | None = None,
        watch: Watch | None = None,
        *,
        consistent: bool = False,
        full_band: bool = False,
        statistics: Statistics | None = None,
    ) -> Tensor:
        """Separates a recording that is in memory; see ``separate_file``.

        Arguments
        ---------
        recording : Recording
            Samples ``[T]`` and their rate.
        normalize : str, optional
            ``None`` or ``"peak"``.
        views, consistent, full_band
            As in ``separate_file``.
        watch, statistics
            As in ``separate_batch``.

        Returns
        -------
        est : torch.Tensor
            ``[1, T, spks]`` at the recording's rate, on the CPU.
        """
        check_levels(normalize, consistent)
        samples, rate, name = recording[:3]
        if not len(samples):
            raise AudioFileError(f"{name} holds no samples: copy or record it again.")
        centre = find_centre([samples])
        check_peak(name, centre)
        mix = resample_in_pieces(centre.of(samples).float(), (rate, self.sample_rate))
        views = self.views if views is None else views
        est = self.separate_batch(
            mix.unsqueeze(0),
            views=views,
            level=True,
            statistics=statistics,
            watch=watch,
        )[0]
        est = est.float().cpu().t().contiguous()  # [T', spks] to [spks, T']
        # Resampling rounds up twice, so there are T samples or some more.
        est = resample_in_pieces(est, (self.sample_rate, rate))[:, : len(samples)].t()
        check_voices(name, est)
        if not (full_band and rate > self.sample_rate):
            est = restore_level(est, samples, centre, normalize, consistent)
            return est.unsqueeze(0)
        est = restore_level(est, samples, centre)
        self._add_band(est, samples, centre, rate)
        if normalize:
            est = scale_to_peak(est)
        return (share_rest(est, samples) if consistent else est).unsqueeze(0)

    def _add_band(
        self, est: Tensor, samples: Tensor, centre: Centre, rate: int
    ) -> None:
        """Gives voices ``[T, spks]``, in place, their shares of the upper band."""
        band = UpperBand(
            lambda start, stop: centre.of(samples[start:stop, None]).float(),
            lambda start, stop: est[start:stop],
            *(len(est), rate, self.sample_rate, float(centre.peak)),
        )
        for start, stop in pieces_of(len(est), rate):
            est[start:stop] += (band.split(start, stop) * centre.peak).float()


def find_published(
    source: str | Path | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """The folder of a model in the published layout, downloaded if need be."""
    place = locate(source)
    if isinstance(place, Path):
        if has_speechbrain_layout(place):
            raise ModelError(
                f"The folder {place} is in SpeechBrain's layout ({YAML_FILE}): "
                "load it by from_hparams."
            )
        return place
    if is_url(place):
        raise ModelError(
            f"{place} is a web address, where from_hparams loads models in "
            "SpeechBrain's layout: download this one into a folder."
        )
    return fetch_published(place, revision, token, cache_dir)


def check_source(
    source: str | Path | FetchSource, hparams_file: str
) -> str | Path | FetchSource:
    """Where from_hparams finds a source, if there is such a yaml."""
    if not isinstance(source, FetchSource):
        source = locate(source)
        if isinstance(source, Path) and not (source / hparams_file).is_file():
            published = weights_in(source) is not None
            remedy = "load it by from_pretrained" if published else "check its name"
            raise ModelError(f"The folder {source} has no {hparams_file}: {remedy}.")
        if isinstance(source, Path) and is_run(source) and not is_model(source):
            best_checkpoint(source)  # or says that there is none
    return source


def check_hparams(hparams: Mapping[str, Any], hparams_file: str) -> None:
    """Refuses a built yaml that makes no separator."""
    for name, highest in {"sample_rate": 1_000_000, "num_spks": 100}.items():
        value = hparams.get(name, 1)
        if type(value) is not int or not 1 <= value <= highest:
            raise ModelError(
                f"{hparams_file} has {name}: {value!r}, but it must be a whole number "
                f"from 1 to {highest}."
            )
    for name, module in hparams["modules"].items():
        if not isinstance(module, nn.Module):
            raise ModelError(
                f"{hparams_file} has a {type(module).__name__} as module {name}, "
                "but it must be a torch.nn.Module."
            )
        if name in PARTS and not any(True for _ in module.parameters()):
            raise ModelError(
                f"{hparams_file} has a {type(module).__name__}, which learns nothing, "
                f"as {name}: it makes no separator."
            )
    encoder = hparams["modules"].get("encoder")
    if encoder is not None and not hasattr(encoder, "conv1d"):
        raise ModelError(
            f"{hparams_file} has a {type(encoder).__name__} as encoder, but it must be "
            "SpeechBrain's Encoder, with conv1d."
        )
    for name, wanted in {
        "masknet": "a mask network such as SpeechBrain's Dual_Path_Model",
        "decoder": "SpeechBrain's Decoder",
    }.items():
        part = hparams["modules"].get(name)
        layer = type(part).__module__.startswith("torch.nn.modules.")
        if layer and not isinstance(part, nn.Sequential):
            raise ModelError(
                f"{hparams_file} has a {type(part).__name__} as {name}, but it must be "
                f"{wanted}."
            )


def check_run_opts(
    run_opts: Mapping[str, Any] | RunOptions, masknet: nn.Module, precision: str | None
) -> None:
    """Refuses run options that a separator would not heed."""
    if not isinstance(run_opts, RunOptions):
        known = RunOptions().as_dict()
        for name in map(str, run_opts):
            if name not in known:
                near = get_close_matches(name, known, 1)
                remedy = f"did you mean {near[0]}?" if near else "leave it out."
                raise ModelError(f"SpeechBrain has no run option {name}: {remedy}")
    for name in ("data_parallel_backend", "distributed_launch"):
        if run_opts.get(name):
            raise ModelError(
                f"{name} is for training, not for separating: load a model on each "
                "device, and give each its share of the recordings."
            )
    for name in ("precision", "eval_precision"):
        value = run_opts.get(name)
        if value not in (None, "fp32", precision):
            raise ModelError(
                f"The run option {name}, {value!r}, has no effect on a separator: give "
                f"the argument precision={value!r} instead."
            )
    for name in ("jit", "jit_module_keys"):
        if run_opts.get(name) and isinstance(masknet, SPGMMaskNet):
            raise ModelError(
                f"The run option {name} has no effect on an SPGM network: leave it "
                "out, or give compile."
            )


def packed(masknet: nn.Module) -> nn.Module:
    """Runs a Dual_Path_Model with SPGM blocks as an SPGMMaskNet on the same parameters.

    The network itself if it has no SPGM blocks or cannot be packed; then its blocks are
    told to keep utterances apart. One in int8 is another model's: it is run in float.

    Example
    -------
    >>> from speechbrain.lobes.models.dual_path import Dual_Path_Model
    >>> from speechbrain.lobes.models.dual_path import SBTransformerBlock
    >>> intra = SBTransformerBlock(1, 8, 2)
    >>> type(packed(Dual_Path_Model(8, 8, intra, SPGMBlock(8, "att"), K=20))).__name__
    'SPGMMaskNet'
    >>> type(packed(Dual_Path_Model(8, 8, intra, intra, K=20))).__name__
    'Dual_Path_Model'
    """
    if isinstance(masknet, SPGMMaskNet):
        if masknet.int8 is None:
            return masknet
        return SPGMMaskNet.from_dual_path(masknet, masknet.rows_per_step)
    if not any(isinstance(part, SPGMBlock) for part in masknet.modules()):
        return masknet
    try:
        return SPGMMaskNet.from_dual_path(masknet)
    except ValueError as reason:
        logger.warning("%s The model runs unpacked, which is slower.", reason)
    for part in masknet.modules():
        for block in part.modules() if isinstance(part, Dual_Path_Model) else ():
            if isinstance(block, SPGMBlock):
                block.chunk_size = block.chunk_size or part.K
    return masknet


def prepare_precision(
    precision: str | None, modules: nn.ModuleDict, device: str
) -> str:
    """Checks a precision; for int8, puts a quantised mask network in place."""
    precision = precision or "fp32"
    if precision not in PRECISIONS:
        raise ModelError(
            f"precision is {precision!r}, but must be one of {', '.join(PRECISIONS)}."
        )
    kind = torch.device(device).type
    if precision == "bf16" and (
        not torch.amp.is_autocast_available(kind)
        or (kind == "cuda" and not torch.cuda.is_bf16_supported())
    ):
        raise ModelError(f"The device {device} has no bf16: take precision fp32.")
    if precision == "fp16" and kind != "cuda":
        raise ModelError(f"fp16 is for GPUs, not for {device}: take precision fp32.")
    if precision == "int8":
        if any(module.training for module in modules.values()):
            raise ModelError(
                "int8 is for separating only: leave freeze_params on, or take "
                "precision fp32."
            )
        try:
            modules["masknet"] = quantise(modules["masknet"])
        except ValueError as error:
            raise ModelError(str(error)) from None
    return precision


def usable_device(device: str | torch.device | int) -> str:
    """The full name of a device, if this machine has it.

    Example
    -------
    >>> usable_device(torch.device("cpu"))
    'cpu'
    """
    if str(device).isdigit():
        device = f"cuda:{device}"
    if str(device).split(":")[0] == "mps":
        raise ModelError(f"{NO_MPS}: take cpu.")
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError):
        raise ModelError(
            f"The device {device} cannot be used on this machine: take cpu."
        ) from None
    return str(found)


def samples_of(lengths: Tensor | Sequence[float], B: int, T: int) -> Tensor:
    """Lengths ``[B]`` in samples, int64, from samples or from shares of T.

    Example
    -------
    >>> samples_of([1.0, 0.299], B=2, T=100), samples_of([100, 30], B=2, T=100)
    (tensor([100,  30]), tensor([100,  30]))
    """
    lengths = torch.as_tensor(lengths, device="cpu")
    if lengths.is_floating_point():
        # As SpeechBrain rounds, but in float64: a share of an hour is exact enough.
        samples = torch.round(lengths.double() * T)
    else:
        samples = lengths.real.long()  # torch compares no unsigned ones
    numbers = lengths.dtype != torch.bool and not lengths.is_complex()
    fits = numbers and lengths.shape == (B,)
    if not fits or not ((samples >= 1) & (samples <= T)).all():
        raise UserError(
            f"lengths is {lengths.tolist()}, but must hold {B} values, one per "
            f"utterance: whole numbers of samples from 1 to {T}, or floats, which are "
            f"shares of {T} samples, up to 1.0."
        )
    return samples.long()


def check_finite(mix: Tensor, samples: Tensor) -> None:
    """Refuses NaN and infinity in the valid samples ``[B]`` of a batch ``[B, T]``."""
    valid = torch.arange(mix.shape[1], device="cpu") < samples.unsqueeze(1)  # [B, T]
    bad = ~mix.isfinite() & valid.to(mix.device)
    if bad.any():
        first = int(bad.any(dim=1).nonzero()[0])
        raise UserError(f"Utterance {first} of mix holds NaN or infinity: clean it.")
