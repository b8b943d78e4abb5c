"""HAPT: waist-worn smartphone accelerometer and gyroscope of 30 volunteers, 12 activities.

Successive windows of a recording overlap by half, and the 80/20 split inside a client draws windows at
random, as M3Fed does. So a test window shares samples with the training windows beside it, and accuracies are
higher than on an unseen person.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmfl_fast.data.archives import read_members
from mmfl_fast.data.dataset import Archive, DataSet, Features, SourceFile
from mmfl_fast.data.progress import tracked

_MEMBER = r"RawData/(?:(?:acc|gyro)_exp\d\d_user\d\d|labels)\.txt|(?:Train|Test)/(?:y|subject_id)_\w+\.txt"
_ARCHIVE = "HAPT_Data_Set.tar.xz"

TRAIN_SUBJECTS = (1, 3, 5, 6, 7, 8, 11, 14, 15, 16, 17, 19, 21, 22, 23, 25, 26, 27, 28, 29, 30)
WINDOW, STRIDE = 128, 64  # samples at 50 Hz: 2.56 s, half of it shared with the next window
CHANNELS = 6  # acceleration x y z in g, angular velocity x y z in rad/s


def _extract(files: Mapping[str, Path]) -> Features:
    """Cut each labelled segment into whole windows, in the order of ``labels.txt``.

    Activities and subjects of the windows equal the published ``y_*`` and ``subject_id_*`` files. A segment
    is one uninterrupted bout of one activity; segments share no sample.
    """
    members = read_members(files[_ARCHIVE], _MEMBER)
    segments = _table(members["RawData/labels.txt"]).astype(np.int64)
    recordings = {
        (experiment, user): _recording(members, experiment, user)
        for experiment, user in tracked(np.unique(segments[:, :2], axis=0).tolist(), "HAPT: recordings")
    }
    windows, labels, people, sequence = [], [], [], []
    for number, (experiment, user, activity, first, last) in enumerate(segments.tolist()):
        # Sample numbers count from 1 and include both ends.
        cut = _windows(recordings[experiment, user][first - 1 : last])
        windows.append(cut)
        labels += [activity - 1] * len(cut)
        people += [user - 1] * len(cut)
        sequence += [number] * len(cut)
    subjects = np.asarray(people)
    return Features(
        inputs={"motion": np.concatenate(windows)},
        labels=np.asarray(labels),
        people=subjects,
        is_train=np.isin(subjects + 1, TRAIN_SUBJECTS),
        sequence=np.asarray(sequence),
    )


def _recording(members: Mapping[str, bytes], experiment: int, user: int) -> NDArray[np.float32]:
    """Return both sensors of one experiment, ``[T, CHANNELS]``."""
    sensors = [_table(members[f"RawData/{s}_exp{experiment:02}_user{user:02}.txt"]) for s in ("acc", "gyro")]
    return np.concatenate(sensors, axis=1).astype(np.float32)


def _windows(segment: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the whole windows of ``segment`` ``[T, CHANNELS]`` as ``[n, WINDOW, CHANNELS]``; n may be 0."""
    if len(segment) < WINDOW:
        return np.empty((0, WINDOW, CHANNELS), dtype=np.float32)
    views = np.lib.stride_tricks.sliding_window_view(segment, WINDOW, axis=0)
    windows: NDArray[np.float32] = views[::STRIDE].transpose(0, 2, 1)
    return windows


def _table(text: bytes) -> NDArray[np.float64]:
    return np.loadtxt(io.BytesIO(text))


HAPT = DataSet(
    name="hapt",
    description="12 activities and postural transitions of 30 people, windows of 128 samples x 6 channels",
    modalities={"motion": (WINDOW, CHANNELS)},
    classes={
        "WALKING": 1722,
        "WALKING_UPSTAIRS": 1544,
        "WALKING_DOWNSTAIRS": 1407,
        "SITTING": 1801,
        "STANDING": 1979,
        "LAYING": 1958,
        "STAND_TO_SIT": 70,
        "SIT_TO_STAND": 33,
        "SIT_TO_LIE": 107,
        "LIE_TO_SIT": 85,
        "STAND_TO_LIE": 139,
        "LIE_TO_STAND": 84,
    },
    licence="none stated in the files, research use with citation; CC BY 4.0 as listed by UCI",
    source="Reyes-Ortiz, Oneto, Sama, Parra, Anguita, Neurocomputing 2016 (v2.1, UCI repository, set 341)",
    folder="hapt",
    files=(
        SourceFile(
            _ARCHIVE,
            12908160,
            "79833f389652b0e1b4f7804c6b4e8769121ede32b7ad6a2a0e6bd6cad55930c0",
            url="https://archive.ics.uci.edu/static/public/341/"
            "smartphone+based+recognition+of+human+activities+and+postural+transitions.zip",
            archive=Archive(
                upstream_name="smartphone+based+recognition+of+human+activities+and+postural+transitions.zip",
                members=_MEMBER,
                contents_sha256="88aa5bd2942132d1fca008573eefb14127006c9c75ff9b303cc6b2daeaf96d1c",
            ),
        ),
    ),
    default_clients=6,
    extract=_extract,
    features_version="windows-128-64-2",
    people=tuple(str(subject) for subject in range(1, 31)),
    num_train=7767,
)
