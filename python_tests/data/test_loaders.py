"""The five published sets against the counts and shapes that their publishers state."""

from __future__ import annotations

import io
import re
import shutil
import wave

import numpy as np
import pytest
import torch

import mmfl_fast.data as data
from mmfl_fast.data.archives import read_members
from mmfl_fast.data.dataset import CorruptDataError
from mmfl_fast.data.sources import fsdd, hapt
from mmfl_fast.data.sources.mnist import read_idx

# Name, modality, shape, samples per class, clients of the default partition.
PUBLISHED = [
    ("mnist", "image", (28, 28), [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958], 20),
    ("fsdd", "audio", (40, 24), [300] * 10, 6),
    ("hapt", "motion", (128, 6), [1722, 1544, 1407, 1801, 1979, 1958, 70, 33, 107, 85, 139, 84], 30),
    ("meld", "text", (1024,), [6436, 2308, 1636, 1607, 1002, 361, 358], 20),
    ("sign", "image", (32, 32), [205, 206, 206, 206, 207, 207, 207, 206, 208, 204], 8),
]


def only_task(name, root, **options):
    (task,) = data.load(name, root=root, **options).tasks
    return task


@pytest.mark.parametrize(("name", "modality", "shape", "counts", "clients"), PUBLISHED)
def test_counts_shapes_and_split(real_data, name, modality, shape, counts, clients):
    fed = data.load(name, root=real_data(name))
    (task,) = fed.tasks
    features = task.inputs[modality]
    assert fed.name == task.name == name
    assert features.shape == (sum(counts), *shape)
    assert features.dtype == torch.float32
    assert features.isfinite().all()
    assert 300 <= features[0].numel() <= 2048
    assert torch.bincount(task.labels).tolist() == counts
    assert task.num_classes == len(counts)
    assert task.present.all()
    assert len(fed.clients) == clients
    for client in fed.clients:
        total = client.num_train + len(client.test_rows)
        assert len(client.test_rows) == max(1, round(total / 5))


@pytest.mark.parametrize("name", [published[0] for published in PUBLISHED])
def test_the_second_load_comes_from_the_cache(real_data, tmp_path, caplog, name):
    first = only_task(name, real_data(name))
    second = only_task(name, tmp_path / "no files here")
    (modality,) = first.modalities
    assert torch.equal(first.inputs[modality], second.inputs[modality])
    assert torch.equal(first.labels, second.labels)
    assert caplog.records == []


@pytest.mark.parametrize("name", [published[0] for published in PUBLISHED])
def test_check_finds_everything_in_order(real_data, name):
    assert data.check(name, real_data(name)) == []


@pytest.mark.parametrize("name", [published[0] for published in PUBLISHED])
def test_dirichlet_partition_cap_and_seed(real_data, name):
    root = real_data(name)
    task = only_task(name, root, alpha=0.4, clients=9, seed=3)
    assert task.client_names == tuple("012345678")
    full = torch.bincount(task.owner, minlength=9)
    again = only_task(name, root, alpha=0.4, clients=9, seed=3)
    assert torch.equal(task.owner, again.owner)
    assert torch.equal(task.is_train, again.is_train)
    assert not torch.equal(task.owner, only_task(name, root, alpha=0.4, clients=9, seed=4).owner)
    capped = only_task(name, root, alpha=0.4, clients=9, seed=3, samples_per_client=50)
    assert torch.bincount(capped.owner, minlength=9).tolist() == full.clamp(max=50).tolist()
    modality = task.modalities[0]
    first = task.owner == 0
    kept = {row.numpy().tobytes() for row in capped.inputs[modality][capped.owner == 0]}
    assert kept <= {row.numpy().tobytes() for row in task.inputs[modality][first]}
    with pytest.raises(ValueError, match="samples_per_client must be >= 3, got 2"):
        data.load(name, root=root, samples_per_client=2)


@pytest.mark.parametrize(
    ("name", "default_clients"), [("mnist", 20), ("fsdd", 10), ("hapt", 6), ("meld", 20), ("sign", 8)]
)
def test_default_number_of_dirichlet_clients(real_data, name, default_clients):
    task = only_task(name, real_data(name), alpha=1.0, samples_per_client=3)
    assert len(task.client_names) == default_clients


def test_mnist_pixels(real_data):
    root = real_data("mnist")
    pixels = only_task("mnist", root).inputs["image"]
    assert (float(pixels.min()), float(pixels.max())) == (0.0, 1.0)
    tests = read_idx(root / "mnist" / "t10k-images-idx3-ubyte.gz")
    assert torch.equal((pixels[60000:] * 255).round().to(torch.uint8), torch.from_numpy(tests.copy()))
    labels = read_idx(root / "mnist" / "t10k-labels-idx1-ubyte.gz")
    assert only_task("mnist", root).labels[60000:].tolist() == labels.tolist()


def test_fsdd_has_one_client_per_speaker(real_data):
    fed = data.load("fsdd", root=real_data("fsdd"))
    names = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
    assert fed.tasks[0].client_names == names
    assert [(c.num_train, len(c.test_rows)) for c in fed.clients] == [(400, 100)] * 6
    for client in fed.clients:
        rows = torch.cat([client.train_rows, client.test_rows])
        assert torch.bincount(client.task.labels[rows]).tolist() == [50] * 10


def test_fsdd_spectrogram_against_a_plain_computation(real_data):
    root = real_data("fsdd")
    members = read_members(root / "fsdd" / "recordings.zip", r"recordings/7_theo_13\.wav")
    with wave.open(io.BytesIO(members["recordings/7_theo_13.wav"])) as recording:
        assert recording.getframerate() == fsdd.SAMPLE_RATE
        samples = np.frombuffer(recording.readframes(-1), dtype="<i2") / 32768
    task = only_task("fsdd", root)
    # Position in the sorted names: digit, then speaker, then the index as text ("0", "1", "10", ...).
    row = 7 * 300 + 4 * 50 + sorted(map(str, range(50))).index("13")
    filters = fsdd.mel_filters(40, 512, 8000)
    columns = []
    for start in range(0, len(samples) - 199, 80):
        spectrum = np.fft.rfft(samples[start : start + 200] * np.hanning(200), 512)
        columns.append(np.log(filters @ np.abs(spectrum) ** 2 + 1e-10))
    frames, parts = len(columns), []
    for part in range(24):
        low, high = part * frames // 24, -(-(part + 1) * frames // 24)
        parts.append(np.mean(columns[low:high], axis=0))
    assert task.inputs["audio"][row].numpy() == pytest.approx(np.stack(parts, axis=1), abs=1e-4)


def test_mel_filters_cover_the_spectrum():
    filters = fsdd.mel_filters(40, 512, 8000)
    assert filters.shape == (40, 257)
    assert (filters >= 0).all()
    assert (filters.max(axis=1) > 0.5).all()
    # Neighbouring triangles add to one between the first and the last centre.
    bins = np.fft.rfftfreq(512, 1 / 8000)
    mel = 2595 * np.log10(1 + bins / 700)
    step = 2595 * np.log10(1 + 4000 / 700) / 41
    inside = (mel > step) & (mel < 40 * step)
    assert filters.sum(axis=0)[inside] == pytest.approx(np.ones(inside.sum()))


@pytest.mark.parametrize("frequency", [300.0, 1000.0, 2500.0])
def test_a_tone_is_loudest_in_its_own_band(frequency):
    tone = 0.5 * np.sin(2 * np.pi * frequency * np.arange(4000) / 8000)
    spectrogram = fsdd.log_mel(tone, fsdd.mel_filters(40, 512, 8000))
    step = 2595 * np.log10(1 + 4000 / 700) / 41
    band = round(2595 * np.log10(1 + frequency / 700) / step) - 1
    assert spectrogram.shape == (40, 24)
    assert abs(spectrogram.argmax(axis=0) - band).max() <= 1


def test_hapt_windows_equal_the_published_labels_and_subjects(real_data):
    root = real_data("hapt")
    fed = data.load("hapt", root=root)
    (task,) = fed.tasks
    assert task.client_names == tuple(map(str, range(1, 31)))
    published = read_members(
        root / "hapt" / "HAPT_Data_Set.tar.xz", r"(?:Train|Test)/(?:y|subject_id)_\w+\.txt"
    )

    def column(name):
        return [int(line) for line in published[name].split()]

    subjects = task.owner + 1
    for part, count in [("Train", 7767), ("Test", 3162)]:
        expected = column(f"{part}/subject_id_{part.lower()}.txt")
        mine = torch.isin(subjects, torch.tensor(expected))
        assert int(mine.sum()) == count
        assert subjects[mine].tolist() == expected
        assert (task.labels[mine] + 1).tolist() == column(f"{part}/y_{part.lower()}.txt")


def test_hapt_windows_overlap_by_half_and_hold_both_sensors(real_data):
    root = real_data("hapt")
    task = only_task("hapt", root)
    windows = task.inputs["motion"]
    # The first segment of labels.txt: experiment 1, user 1, standing, samples 250 to 1232.
    raw = [
        np.loadtxt(io.BytesIO(content))[249:1232]
        for content in read_members(
            root / "hapt" / "HAPT_Data_Set.tar.xz", r"RawData/(?:acc|gyro)_exp01_user01\.txt"
        ).values()
    ]
    expected = np.concatenate(raw, axis=1).astype(np.float32)
    for k in range((len(expected) - 128) // 64 + 1):
        assert np.array_equal(windows[k].numpy(), expected[64 * k : 64 * k + 128])
    assert (windows.shape[1], windows.shape[2]) == (hapt.WINDOW, hapt.CHANNELS)


def test_meld_text_is_hashed_to_unit_length(real_data):
    task = only_task("meld", real_data("meld"))
    lengths = task.inputs["text"].norm(dim=1)
    # One utterance is a lone exclamation mark and has no word.
    assert int((lengths == 0).sum()) == 1
    assert lengths[lengths > 0].numpy() == pytest.approx(np.ones(len(lengths) - 1), abs=1e-5)
    # "also I was the point person ...": neutral is class 0; the second and third utterances share no words.
    assert task.labels[:3].tolist() == [0, 0, 0]
    text = task.inputs["text"]
    assert float(text[0] @ text[1]) == pytest.approx(0, abs=0.2)


def test_sign_images_are_upright_grey_photographs(real_data):
    root = real_data("sign")
    task = only_task("sign", root)
    images = task.inputs["image"]
    assert images.min() >= 0
    assert images.max() <= 1
    names = list(read_members(root / "sign_language_digits" / "dataset.zip", r"Dataset/\d/IMG_\d+\.JPG"))
    # Published lying on its side with an orientation tag: upright, the fingers point to the light top and
    # the wrist darkens the bottom edge, not the right one.
    large = images[names.index("Dataset/7/IMG_5874.JPG")]
    assert large[-1].min() < large[:, -1].min()


def test_m3fed_five(real_data):
    root = real_data("m3fed-five")
    fed = data.load("m3fed-five", root=root, samples_per_client=40)
    assert [(t.name, t.modalities, len(t.client_names)) for t in fed.tasks] == [
        ("mnist", ("image",), 20),
        ("hapt", ("motion",), 6),
        ("sign", ("image",), 8),
        ("fsdd", ("audio",), 10),
        ("meld", ("text",), 20),
    ]
    assert len(fed.clients) == 64
    assert all(client.num_train >= 2 for client in fed.clients)
    assert all(1 <= len(client.test_rows) <= 8 for client in fed.clients)
    alone = only_task("sign", root, alpha=1.0, samples_per_client=40)
    assert torch.equal(fed.tasks[2].owner, alone.owner)
    assert torch.equal(fed.tasks[2].is_train, alone.is_train)


def test_m3fed_five_scales_its_clients(real_data):
    fed = data.load("m3fed-five", root=real_data("m3fed-five"), scale=3, alpha=0.4, samples_per_client=10)
    assert [len(task.client_names) for task in fed.tasks] == [60, 18, 24, 30, 60]


def copied(real_data, name, tmp_path, monkeypatch):
    """Return a data root with a writable copy of one set, and an empty cache."""
    monkeypatch.setenv("MMFL_CACHE", str(tmp_path / "cache"))
    folder = data.describe(name).datasets[0].folder
    (tmp_path / "root" / folder).mkdir(parents=True)
    for file in data.describe(name).datasets[0].files:
        target = tmp_path / "root" / folder / file.name
        shutil.copyfile(real_data(name) / folder / file.name, target)
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        (
            "mnist",
            "t10k-images-idx3-ubyte.gz",
            "expected 1648877 bytes with sha256 8d42.*, found 1648777 bytes",
        ),
        ("meld", "dev_sent_emo.csv", "expected 121640 bytes .*, found 121540 bytes"),
        ("fsdd", "recordings.zip", "is not a readable zip or tar archive"),
        ("hapt", "HAPT_Data_Set.tar.xz", "is not a readable zip or tar archive"),
    ],
)
def test_a_truncated_file_is_refused(real_data, tmp_path, monkeypatch, name, file, message):
    root = copied(real_data, name, tmp_path, monkeypatch)
    path = root / data.describe(name).datasets[0].folder / file
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptDataError, match=message) as caught:
        data.load(name, root=root)
    assert str(path) in str(caught.value)
    assert f"mmfl-fast data fetch {name}" in str(caught.value)
    assert not list((tmp_path / "cache").glob("*"))
    (problem,) = data.check(name, root)
    assert problem.startswith(f"{path}: ")
    assert re.search(message, problem)
