"""Free Spoken Digit Dataset: 3,000 recordings of six speakers, 8 kHz mono, as log-mel spectrograms."""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from mmfl_fast.data.archives import read_members
from mmfl_fast.data.dataset import Archive, DataSet, Features, SourceFile
from mmfl_fast.data.progress import tracked

_COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
_RECORDING = r"recordings/\d_[a-z]+_\d+\.wav"
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
_TEST_INDICES = 5  # recordings 0 to 4 of each speaker and digit are the published test part

SAMPLE_RATE = 8000
_WINDOW, _HOP, _FFT = 200, 80, 512  # samples: 25 ms, 10 ms, and the window padded to 64 ms
MEL_BANDS, FRAMES = 40, 24
# Below the quantisation noise of 16-bit audio, so that digital silence has a finite logarithm.
_POWER_FLOOR = 1e-10


def mel_filters(num_bands: int, num_fft: int, sample_rate: int) -> NDArray[np.float64]:
    """Return triangular filters ``[num_bands, num_fft // 2 + 1]`` over the bins of a real FFT.

    Their corners are equally spaced from 0 Hz to half the sample rate on the mel scale of HTK,
    m(f) = 2595 log10(1 + f / 700); each triangle rises from the centre of the band before, is 1 at its own
    centre and falls to the centre of the band behind (The HTK Book 3.4, section 5.6).
    """
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, num_bands + 2) / 2595) - 1)
    low, centre, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    bins = np.fft.rfftfreq(num_fft, d=1 / sample_rate)
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    return np.asarray(np.maximum(triangles, 0))


def log_mel(signal: NDArray[np.float64], filters: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the log-mel spectrogram ``[bands, FRAMES]`` of a signal in [-1, 1].

    Power spectra of Hann windows, 25 ms long and 10 ms apart; the natural logarithm of the filters' outputs
    is then averaged into FRAMES equal parts of the recording, whatever its length.
    """
    frames = np.lib.stride_tricks.sliding_window_view(signal, _WINDOW)[::_HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW), _FFT)) ** 2
    # For a product this small, BLAS spends ten times longer on waking its threads than einsum on the work.
    spectrogram = np.log(np.einsum("bf,tf->bt", filters, power) + _POWER_FLOOR)
    return _averaged(spectrogram, FRAMES).astype(np.float32)


def _averaged(spectrogram: NDArray[np.float64], num_parts: int) -> NDArray[np.float64]:
    """Average ``[bands, T]`` over the columns that each of ``num_parts`` equal parts of the time touches."""
    num_frames = spectrogram.shape[1]
    first = np.arange(num_parts) * num_frames // num_parts
    end = -(-np.arange(1, num_parts + 1) * num_frames // num_parts)
    sums = np.cumsum(np.pad(spectrogram, ((0, 0), (1, 0))), axis=1)
    averages: NDArray[np.float64] = (sums[:, end] - sums[:, first]) / (end - first)
    return averages


def _extract(files: Mapping[str, Path]) -> Features:
    filters = mel_filters(MEL_BANDS, _FFT, SAMPLE_RATE)
    recordings = read_members(files["recordings.zip"], _RECORDING)
    spectrograms, labels, people, is_train = [], [], [], []
    for name in tracked(list(recordings), "FSDD: log-mel spectrograms"):
        digit, speaker, index = PurePosixPath(name).stem.split("_")
        spectrograms.append(log_mel(_samples(recordings[name]), filters))
        labels.append(int(digit))
        people.append(SPEAKERS.index(speaker))
        is_train.append(int(index) >= _TEST_INDICES)
    return Features(
        inputs={"audio": np.stack(spectrograms)},
        labels=np.asarray(labels),
        people=np.asarray(people),
        is_train=np.asarray(is_train),
    )


def _samples(wav: bytes) -> NDArray[np.float64]:
    with wave.open(io.BytesIO(wav)) as recording:
        return np.frombuffer(recording.readframes(recording.getnframes()), dtype="<i2") / 2**15


FSDD = DataSet(
    name="fsdd",
    description="spoken digits of six speakers, log-mel spectrograms of 40 bands x 24 frames",
    modalities={"audio": (MEL_BANDS, FRAMES)},
    classes=dict.fromkeys("0123456789", 300),
    licence="CC BY-SA 4.0",
    source="Z. Jackson et al., Free Spoken Digit Dataset, github.com/Jakobovski/free-spoken-digit-dataset",
    folder="fsdd",
    files=(
        SourceFile(
            "recordings.zip",
            16161380,
            "530c6b84dbca925d94f0db76cbc1a2006a5f386068593abebd329ed17871a980",
            url=f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{_COMMIT}.zip",
            archive=Archive(
                upstream_name=f"free-spoken-digit-dataset-{_COMMIT}.zip",
                members=_RECORDING,
                contents_sha256="1971de6d210a657fc0b609a5bb473095188386d232f7540824707d103ddfcd5d",
            ),
        ),
    ),
    default_clients=10,
    extract=_extract,
    features_version="log-mel-40x24-2",
    people=SPEAKERS,
    num_train=2700,
)
