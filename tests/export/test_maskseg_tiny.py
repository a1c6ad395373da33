"""MaskSeg-tiny: its classes and drawings, what it is measured on, its training, its Paddle form against the twin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

paddle = pytest.importorskip("paddle", reason='needs the export extra: pip install "ovseg[export]"')
torch = pytest.importorskip("torch", reason='needs the train extra: pip install "ovseg[train]"')
pytestmark = pytest.mark.export

from ovseg_export.builders.configs import COCO_LABELS  # noqa: E402
from ovseg_export.maskseg_tiny import (  # noqa: E402
    BINS,
    DRAWINGS,
    LABELS,
    PROTOTYPES,
    network,
    protocol,
    things,
    train,
    twin,
)
from ovseg_export.scenes.library import ObjectRecord  # noqa: E402
from scene_store import ellipse, write_store  # noqa: E402

from ovseg.evaluation import read_annotations  # noqa: E402


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two styles to train on and one held out, with every class; and a thing of no class."""
    rng = np.random.default_rng(0)
    titles = [*(names[0] for names in DRAWINGS.values()), "anchor", "dog face"]
    sets = (("flat-3d", "train"), ("named", "classes"), ("noto", "val"))
    drawings = {of: [(t, t.replace(" ", "-"), ellipse(rng.integers(0, 256, 3))) for t in titles] for of in sets}
    return write_store(tmp_path_factory.mktemp("store"), drawings, {"train": "train", "val": "val"}, rng)


def record(name: str, style: str = "noto") -> ObjectRecord:
    return ObjectRecord(style, "val", name, name, 0, 1, 8, 8)


def test_classes_have_coco_names_and_no_drawing_is_of_two() -> None:
    assert len(LABELS) >= 40 and set(DRAWINGS) <= set(COCO_LABELS)
    every = [things.letters(name) for names in DRAWINGS.values() for name in names]
    assert len(every) == len(set(every))


@pytest.mark.parametrize(
    ("name", "label"), [("dog face", "dog"), ("dog-2", "dog"), ("tangerine", "orange"), ("mouse", None)]
)
def test_a_drawing_is_known_by_the_letters_of_its_name(name: str, label: str | None) -> None:
    assert things.label_of(record(name)) == label
    assert things.label_of(record(name, "openclipart")) is None


def test_what_might_pass_for_a_class_is_no_other_thing() -> None:
    assert things.is_other(record("anchor")) and things.is_other(record("snail"))
    for name in ("dog face", "wolf", "racecar2", "man biking", ""):
        assert not things.is_other(record(name)), name
    assert not things.is_other(record("anchor", "openclipart"))


def test_every_class_is_drawn_equally_often_and_nothing_held_out(store: Path) -> None:
    library = things.Things(store, things.TRAINING)
    assert {record.split for record in library.objects} == {"train", "classes"}
    labels = [things.label_of(record) for record in library.objects]
    assert all(labels.count(label) == things.ROUNDS for label in LABELS)
    assert labels.count(None) / len(labels) == pytest.approx(things.OTHERS, abs=0.01)
    styles = [record.set for record, label in zip(library.objects, labels, strict=True) if label == "dog"]
    assert styles.count("named") == styles.count("flat-3d") == things.ROUNDS / 2
    assert [photo.split for photo in library.photos] == ["train"]


def test_small_drawings_keep_their_colour_at_the_edge() -> None:
    bgra = np.zeros((400, 200, 4), np.uint8)
    bgra[50:350, 30:170] = (10, 200, 90, 255)
    small = things.shrunk(bgra, 100)
    assert small.shape == (100, 50, 4)
    shown = small[small[..., 3] > 20]
    assert np.abs(shown[:, :3].astype(int) - (10, 200, 90)).max() <= 2
    assert things.shrunk(small, 100) is small


def test_the_protocol_is_the_same_every_time_and_its_annotations_fit(store: Path, tmp_path: Path) -> None:
    library = things.Things(store, "val", things.STYLES["test"])
    for name in ("first", "again"):
        protocol.write(library, tmp_path / name, 6)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert len(files) == 7
    assert all((tmp_path / "first" / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)
    annotations = read_annotations(tmp_path / "first" / "annotations.json")
    assert tuple(annotations.categories) == LABELS
    assert len(annotations.dataset["annotations"]) >= 6
    assert min(entry["area"] for entry in annotations.dataset["annotations"]) > 50


def truth_of(store: Path) -> train.Batch:
    return train.batch(np.random.default_rng(3), things.Things(store, things.TRAINING, small=True), 128, 4)


def test_a_batch_says_where_things_are(store: Path) -> None:
    truth = truth_of(store)
    real = truth.labels >= 0
    assert real.sum() > 4 and truth.masks.shape == (4, train.MOST, 32, 32)
    for n, k in torch.nonzero(real).tolist():
        x0, y0, x1, y1 = (truth.boxes[n, k] / 4).tolist()
        inside = truth.masks[n, k, int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))].sum()
        assert inside == pytest.approx(float(truth.masks[n, k].sum())) and inside > 0
    twice = train.mirrored(train.mirrored(truth))
    assert all(torch.equal(a, b) for a, b in zip(truth, twice, strict=True))


def answer(truth: train.Batch, right: bool) -> twin.Raw:
    """What a network says that finds everything, or that finds it two cells farther to the right."""
    centres, strides = twin.cell_centres(128, 128)
    cells = len(centres)
    logits = torch.full((4, cells, len(LABELS)), -12.0)
    bins = torch.full((4, cells, 4, BINS), -30.0)
    coefficients, prototypes = torch.zeros(4, cells, PROTOTYPES), torch.zeros(4, PROTOTYPES, 32, 32)
    for n, k in torch.nonzero(truth.labels >= 0).tolist():
        box = truth.boxes[n, k] + (0 if right else 32)
        prototypes[n, k] = (truth.masks[n, k] - 0.5) * 40
        inside = ((centres > truth.boxes[n, k, :2]) & (centres < truth.boxes[n, k, 2:])).all(-1)
        for m in torch.nonzero(inside)[:, 0].tolist():
            logits[n, m], logits[n, m, truth.labels[n, k]] = -12.0, 12.0
            ends = (torch.cat([centres[m] - box[:2], box[2:] - centres[m]]) / strides[m]).clamp(0, BINS - 1.01)
            for side, end in enumerate(ends.tolist()):
                share = end - int(end)
                bins[n, m, side] = -30.0
                bins[n, m, side, int(end)] = float(np.log(max(1 - share, 1e-9)))
                bins[n, m, side, int(end) + 1] = float(np.log(max(share, 1e-9)))
            coefficients[n, m] = torch.nn.functional.one_hot(torch.tensor(k), PROTOTYPES).float()
    return twin.Raw(logits, bins, coefficients, prototypes)


def test_the_loss_is_least_for_the_right_answer(store: Path) -> None:
    truth = truth_of(store)
    _, right = train.loss_of(answer(truth, True), truth)
    _, wrong = train.loss_of(answer(truth, False), truth)
    assert right["named"] < 0.1 and right["boxes"] < 0.1 and right["masks"] < 0.6
    assert wrong["boxes"] > 4 * right["boxes"] and wrong["spread"] > right["spread"]


def test_paddle_gives_what_was_trained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = twin.MaskSeg()
    for module in trained.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    trained.eval()
    weights = {name: tensor.numpy() for name, tensor in trained.state_dict().items() if "num_batches" not in name}
    np.savez(tmp_path / "weights.npz", **weights)
    picture = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        raw = trained(picture)
        boxes = twin.boxes_of(raw.bins, *twin.cell_centres(128, 128))
    scores, their_boxes, coefficients, prototypes = network.load(tmp_path / "weights.npz", 128).raw(
        paddle.to_tensor(picture.numpy())
    )
    np.testing.assert_allclose(scores.numpy()[0].T, raw.logits[0].sigmoid().numpy(), atol=1e-4)
    np.testing.assert_allclose(their_boxes.numpy(), boxes.numpy(), atol=0.1)
    scale = float(raw.coefficients.abs().max()), float(raw.prototypes.abs().max())
    np.testing.assert_allclose(coefficients.numpy()[0].T, raw.coefficients[0].numpy(), atol=0.01 * scale[0])
    np.testing.assert_allclose(prototypes.numpy(), raw.prototypes.numpy(), atol=0.01 * scale[1])
    weights.pop("classify.bias")
    np.savez(tmp_path / "less.npz", **weights)
    with pytest.raises(ValueError, match="classify"):
        network.load(tmp_path / "less.npz", 128)


def test_cells_outside_of_a_box_are_left_out() -> None:
    boxes = np.array([[16, 8, 32, 24], [0, 0, 64, 64]], np.float32)
    ours = train.within(torch.from_numpy(boxes), 16, 16).numpy()
    assert np.array_equal(network.within(paddle.to_tensor(boxes), 16).numpy(), ours)
    assert ours[1].all() and ours[0].sum() == 6 * 6
