"""The active level of speech, ITU-T P.56 (12/2011), method B.

The level of a recording falls with every pause in it. The active level does not: it is
the energy divided by the time in which somebody speaks. Somebody speaks where the
envelope is above a threshold, and the threshold lies 15.9 dB below the active level
itself: so the level is measured for thresholds 3 dB apart, and interpolated to where
the two agree.

WSJ0-mix was made with VOICEBOX's ``activlev``, whose choices this module shares:
nothing below 200 Hz counts, 0.35 s of silence are appended, and the thresholds are
powers of two. So a gain moves the result by that gain exactly if it is a power of two,
and to within about a tenth of a decibel else.

Axes: T samples, J thresholds.
"""

from __future__ import annotations

from math import acosh, atan, ceil, cosh, exp, pi, sqrt, tan

import numpy as np
from scipy.ndimage import maximum_filter1d
from scipy.signal import cheby2, lfilter, sosfilt

MARGIN_DB = 15.9  # between the active level and the threshold
HANGOVER = 0.2  # seconds that still count as speech after the envelope has fallen
TIME_CONSTANT = 0.03  # of each of the two filters that smooth the envelope, in seconds
TAIL = 0.35  # seconds of silence appended, in which the last hangover ends
THRESHOLDS = 20  # J, factors of two in power below the largest
BAND = (200.0, 5500.0)  # Hz, the edges of what counts,
EDGE_DB = 0.25  # where the filters are down by this,
STOP_DB = 50.0  # with this attenuation far outside
ORDER = 5


def active_level(samples: np.ndarray, rate: int) -> float:
    """The mean power of samples [T] while somebody speaks; 0 for silence.

    Divide by its square root to bring a recording to an active level of 0 dB.
    """
    samples = np.concatenate([np.asarray(samples, float), np.zeros(ceil(TAIL * rate))])
    samples = band_pass(samples, rate)
    energy = np.square(samples).sum()
    envelope = np.square(smooth(np.abs(samples), rate))
    if energy == 0 or envelope.max() == 0:
        return 0.0
    # Power 2^(e-1) <= envelope < 2^e; the largest e in the last 0.2 s decides.
    exponents = np.where(envelope > 0, np.frexp(envelope)[1], np.iinfo(np.int32).min)
    exponents = running_max(exponents, ceil(HANGOVER * rate) + 1).astype(np.int64)
    top = exponents.max()

    # Threshold j is 2^(top - 1 - j): active[j] samples reach it. All [J].
    steps = np.minimum(top - exponents, THRESHOLDS - 1)
    active = np.bincount(steps, minlength=THRESHOLDS).cumsum()
    levels = 10 * np.log10(energy / active)
    thresholds = 10 * np.log10(2) * (top - 1 - np.arange(THRESHOLDS))
    level = interpolate(levels - thresholds - MARGIN_DB, levels)
    return float(10 ** (level / 10))


def smooth(samples: np.ndarray, rate: int) -> np.ndarray:
    """Two exponential averages, one after the other, of samples [T]."""
    pole = exp(-1 / (TIME_CONSTANT * rate))
    return lfilter([(1 - pole) ** 2], [1, -2 * pole, pole**2], samples)


def running_max(values: np.ndarray, width: int) -> np.ndarray:
    """The largest of the last ``width`` values.

    Example
    -------
    >>> running_max(np.array([3, 1, 0, 0, 2]), 3)
    array([3, 3, 3, 1, 2])
    """
    # origin moves the window from the middle to the past: [t - width + 1, t].
    return maximum_filter1d(values, width, origin=(width - 1) // 2, mode="nearest")


def interpolate(margins: np.ndarray, levels: np.ndarray) -> float:
    """The level where the margin grows through 0, [J] each.

    Example
    -------
    >>> interpolate(np.array([-3.0, -1.0, 1.0]), np.array([-10.0, -12.0, -16.0]))
    -14.0
    """
    crossings = np.flatnonzero((margins[:-1] < 0) & (margins[1:] >= 0))
    if len(crossings) == 0:  # the whole range lies on one side
        return float(levels[0] if margins[-1] > 0 else levels[-1])
    j = crossings[0]
    part = margins[j] / (margins[j] - margins[j + 1])
    return float(levels[j] + part * (levels[j + 1] - levels[j]))


def band_pass(samples: np.ndarray, rate: int) -> np.ndarray:
    """Samples [T] between 200 Hz and, where the rate allows it, 5.5 kHz."""
    # Chebyshev filters of type 2 are designed by the edge of the stop band. In units of
    # the -0.25 dB edge it follows from |H|^2 = 1 / (1 + 1 / (e T_5(1 / edge))^2).
    ripple = sqrt((10 ** (STOP_DB / 10) - 1) / (10 ** (EDGE_DB / 10) - 1))
    edge = 1 / cosh(acosh(ripple) / ORDER)

    low, high = BAND
    stop = atan(tan(pi * low / rate) * edge) * rate / pi  # the bilinear transform
    filters = [cheby2(ORDER, STOP_DB, stop, "highpass", fs=rate, output="sos")]
    if rate >= 2.2 * high:
        stop = atan(tan(pi * high / rate) / edge) * rate / pi
        filters += [cheby2(ORDER, STOP_DB, stop, "lowpass", fs=rate, output="sos")]
    return sosfilt(np.concatenate(filters), samples)
