from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import torch

import mmfl_fast.data as data
from mmfl_fast.data.archives import read_members
from mmfl_fast.data.cache import load_features
from mmfl_fast.data.sources import hapt
from mmfl_fast.data.sources.hapt import HAPT

# Experiment, user, activity, first and last sample: 3 windows, none, 2 of another activity, 1 of subject 2.
SEGMENTS = [(1, 1, 5, 3, 258), (1, 1, 7, 259, 380), (1, 1, 4, 381, 600), (2, 2, 5, 1, 191)]


@pytest.fixture
def archive(tmp_path):
    """Write recordings whose samples say sensor, experiment and number in the published layout."""

    def table(sensor, experiment):
        numbers = np.arange(1, 651)[:, None] + np.array([0.1, 0.2, 0.3])
        return numbers + 1000 * experiment + 10000 * (sensor == "gyro")

    def text(rows):
        buffer = io.BytesIO()
        np.savetxt(buffer, rows, fmt="%.6g")
        return buffer.getvalue()

    members = {"RawData/labels.txt": text(SEGMENTS)}
    for experiment in (1, 2):
        for sensor in ("acc", "gyro"):
            name = f"RawData/{sensor}_exp{experiment:02}_user{experiment:02}.txt"
            members[name] = text(table(sensor, experiment))
    path = tmp_path / "HAPT_Data_Set.tar.xz"
    with tarfile.open(path, "w:xz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"HAPT Data Set/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_windows_of_the_published_layout(archive):
    features = HAPT.extract({"HAPT_Data_Set.tar.xz": archive})
    assert features.labels.tolist() == [4, 4, 4, 3, 3, 4]
    assert features.people.tolist() == [0, 0, 0, 0, 0, 1]
    assert features.sequence.tolist() == [0, 0, 0, 2, 2, 3]
    assert features.is_train.tolist() == [True] * 5 + [False]
    starts = features.inputs["motion"][:, 0]
    assert starts[:, 0] == pytest.approx([1003.1, 1067.1, 1131.1, 1381.1, 1445.1, 2001.1])
    assert starts[1] == pytest.approx([1067.1, 1067.2, 1067.3, 11067.1, 11067.2, 11067.3])


@pytest.fixture(scope="module")
def root(real_data):
    return real_data("hapt-sensors")


def only_task(root, **options):
    (task,) = data.load("hapt-sensors", root=root, **options).tasks
    return task


def test_windows_equal_the_published_labels_and_subjects(root):
    task = only_task(root, split="published")
    published = read_members(
        root / "hapt" / "HAPT_Data_Set.tar.xz", r"(?:Train|Test)/(?:y|subject_id)_\w+\.txt"
    )
    for part, mine, count in [("Train", task.is_train, 7767), ("Test", ~task.is_train, 3162)]:
        labels, subjects = (
            [int(line) for line in published[f"{part}/{what}_{part.lower()}.txt"].split()]
            for what in ("y", "subject_id")
        )
        assert len(labels) == count
        assert (task.labels[mine] + 1).tolist() == labels
        assert (task.owner[mine] + 1).tolist() == subjects


def test_sensors_are_the_halves_of_the_six_channels(root):
    task = only_task(root)
    motion = data.load("hapt", root=root).tasks[0].inputs["motion"]
    assert task.modalities == ("acc", "gyro")
    assert torch.equal(torch.cat([task.inputs["acc"], task.inputs["gyro"]], dim=2), motion)
    assert task.inputs["acc"].shape == task.inputs["gyro"].shape == (10929, hapt.WINDOW, 3)
    # At rest the accelerometer feels gravity, in g, and the gyroscope next to nothing, in rad/s.
    standing = task.labels == list(HAPT.classes).index("STANDING")
    assert task.inputs["acc"][standing].norm(dim=2).median() == pytest.approx(1, abs=0.05)
    assert task.inputs["gyro"][standing].norm(dim=2).median() < 0.2


def test_subjects_are_tested_on_later_bouts(root):
    fed = data.load("hapt-sensors", root=root)
    (task,) = fed.tasks
    features = load_features(HAPT, root)
    assert task.labels.tolist() == features.labels.tolist()
    is_train = task.is_train.numpy()
    for subject in range(30):
        for activity in range(12):
            mine = (features.people == subject) & (features.labels == activity)
            train, test = features.sequence[mine & is_train], features.sequence[mine & ~is_train]
            assert train.size or not mine.any()
            assert test.size or len(set(train)) <= 1
            # A bout is a sequence, and its windows share no sample with those of another.
            assert test.size == 0 or train.max() < test.min()
    assert len(fed.clients) == 30
    assert all(
        c.num_train > 0 and 0.15 < len(c.test_rows) / (c.num_train + len(c.test_rows)) < 0.3
        for c in fed.clients
    )
    counts = [torch.bincount(task.labels[side], minlength=12) for side in (task.is_train, ~task.is_train)]
    assert min(counts[0]) >= 20
    assert min(counts[1]) >= 10


def test_published_split_has_clients_without_training_rows(root):
    fed = data.load("hapt-sensors", root=root, split="published")
    unseen = {int(c.name.split("/")[1]) for c in fed.clients if c.num_train == 0}
    assert unseen == {2, 4, 9, 10, 12, 13, 18, 20, 24}
    assert all((c.num_train == 0) != (len(c.test_rows) == 0) for c in fed.clients)
    assert all(c.modalities == ("acc", "gyro") for c in fed.clients)


def test_basic_activities_are_those_of_uci_har(root):
    every, basic = only_task(root), only_task(root, activities="basic")
    kept = every.labels < 6
    assert basic.num_classes == 6
    for name in ("labels", "owner", "is_train"):
        assert torch.equal(getattr(basic, name), getattr(every, name)[kept])
    assert torch.equal(basic.inputs["gyro"], every.inputs["gyro"][kept])
    assert torch.bincount(basic.labels).tolist() == list(HAPT.classes.values())[:6]


@pytest.mark.parametrize("alpha", [0.1, 5.0])
def test_clients_inside_each_subject(root, alpha):
    whole = only_task(root, split="published", activities="basic")
    fed = data.load(
        "hapt-sensors", root=root, split="published", activities="basic", clients_per_subject=5, alpha=alpha
    )
    (task,) = fed.tasks
    training = [client for client in fed.clients if client.num_train]
    assert (len(training), len(fed.clients)) == (105, 114)
    assert min(client.num_train for client in training) >= 2
    subject = [int(task.client_names[k].split("-")[0]) for k in task.owner]
    assert subject == (whole.owner + 1).tolist()
    assert torch.equal(task.is_train, whole.is_train)
    shares = torch.zeros(len(fed.clients), 6)
    shares.index_put_((task.owner, task.labels), torch.tensor(1.0), accumulate=True)
    shares = shares[[c.index for c in training]]
    largest = float((shares.max(dim=1).values / shares.sum(dim=1)).mean())
    assert largest > 0.6 if alpha == 0.1 else largest < 0.4


def test_random_split_and_cap(root):
    task = only_task(root, split="random", seed=4)
    assert torch.equal(task.is_train, data.load("hapt", root=root, seed=4).tasks[0].is_train)
    few = data.load("hapt-sensors", root=root, samples_per_client=20)
    assert all(c.num_train + len(c.test_rows) == 20 and len(c.test_rows) >= 4 for c in few.clients)
