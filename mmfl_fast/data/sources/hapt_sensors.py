"""HAPT as two modalities, accelerometer and gyroscope; subjects are clients.

Neighbouring windows share half of their samples, and windows of one bout look alike. A random split puts
such twins on both sides, so its scores say little about what comes later. The default therefore tests each
subject on its last bouts of each activity, which share no sample with what it trained on.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mmfl_fast.data.arguments import require_choice, require_integer
from mmfl_fast.data.assemble import capped, split_rows, split_task
from mmfl_fast.data.cache import load_features
from mmfl_fast.data.dataset import Root
from mmfl_fast.data.entry import Entry
from mmfl_fast.data.federation import Federation
from mmfl_fast.data.partition import dirichlet
from mmfl_fast.data.sources.hapt import HAPT, WINDOW

AXES = 3
BASIC_ACTIVITIES = 6  # the first labels: walking, stairs up, stairs down, sitting, standing, laying


def build(
    *,
    root: Root,
    activities: str,
    split: str,
    clients_per_subject: int,
    alpha: float | None,
    samples_per_client: int | None,
    seed: int,
) -> Federation:
    """Make each subject a client, or deal the windows of each to ``clients_per_subject`` by Dir(alpha).

    Args:
        root: folder of the data sets.
        activities: ``"all"`` 12, six of them rare postural transitions, or the 6 ``"basic"`` ones, which
            are the classes of UCI-HAR.
        split: ``"time"``: of each subject and activity the last whole bouts test, as many as come nearest to
            a fifth of the windows; a single bout trains. ``"published"``: 9 of the 30 subjects test, as in
            UCI-HAR; they are clients without training rows, who never take part in a round and are
            evaluated on what they are sent, so a method with personal parts has nothing trained for them.
            ``"random"``: a fifth of each subject's windows, which flatters.
        clients_per_subject: 1, or more with ``alpha``; 5 with a published split are the 105 training
            clients of FedMultimodal. No row changes sides.
        alpha: concentration of the shares; None exactly if each subject is one client.
        samples_per_client: keep at most so many windows of a client, drawn at random.
        seed: fixes shares, cap and random split.
    """
    activities = require_choice("activities", activities, ["all", "basic"])
    parts = require_integer("clients_per_subject", clients_per_subject, minimum=1)
    if (alpha is None) != (parts == 1):
        raise ValueError(
            f"alpha deals the windows of a subject to several clients: give it with clients_per_subject > 1; "
            f"got alpha={alpha!r} and clients_per_subject={parts}"
        )
    features = load_features(HAPT, root)
    num_classes = len(HAPT.classes)
    if activities == "basic":
        num_classes = BASIC_ACTIVITIES
        features = features.take(np.flatnonzero(features.labels < num_classes))
    motion = features.inputs["motion"]
    sensors = {"acc": motion[..., :AXES], "gyro": motion[..., AXES:]}
    features = replace(features, inputs={name: np.ascontiguousarray(x) for name, x in sensors.items()})
    is_train = split_rows(features, split, seed)
    task = split_task("hapt-sensors", features, num_classes, is_train, HAPT.people)
    fed = Federation(task.name, (task,))
    if alpha is not None:
        fed = dirichlet(fed, parts, alpha, seed, within_clients=True)
    return capped(fed, samples_per_client, seed)


HAPT_SENSORS = Entry(
    name="hapt-sensors",
    description=f"HAPT in two modalities, windows of {WINDOW} samples x {AXES} axes each; 30 people, 12 "
    "activities or the 6 of UCI-HAR, tested on later bouts",
    modality="acc, gyro",
    licence=HAPT.licence,
    source=HAPT.source,
    options={
        "activities": "all",
        "split": "time",
        "clients_per_subject": 1,
        "alpha": None,
        "samples_per_client": None,
        "seed": 0,
    },
    datasets=(HAPT,),
    build=build,
)
