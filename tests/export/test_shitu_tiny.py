"""ShiTu-tiny: what it is measured on, its Paddle form against the one that is trained, its views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

paddle = pytest.importorskip("paddle", reason='needs the export extra: pip install "ovseg[export]"')
torch = pytest.importorskip("torch", reason='needs the train extra: pip install "ovseg[train]"')
pytestmark = pytest.mark.export

from ovseg_export.scenes.library import Library  # noqa: E402
from ovseg_export.shitu_tiny import (  # noqa: E402
    DET_SIZE,
    DET_STRIDE,
    REC_SIZE,
    network,
    protocol,
    refit,
    train_det,
    training,
    twin,
)
from ovseg_export.shitu_tiny.render import Objects  # noqa: E402
from scene_store import Drawing, ellipse, write_store  # noqa: E402


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two training sets and the two validation styles, each with the same 230 keys."""
    rng = np.random.default_rng(0)

    def drawing(number: int) -> Drawing:
        bgra = ellipse(rng.integers(0, 256, 3))
        bgra[10:20, 12:28, :3] = rng.integers(0, 256, 3)
        return f"1f{number:03x}", f"thing {number}", bgra

    sets = (("flat", "train"), ("round", "train"), ("noto", "val"), ("openmoji", "val"))
    drawings = {of: [drawing(number) for number in range(230)] for of in sets}
    photos = {"0": "val", "1": "val", "2": "train", "3": "train"}
    return write_store(tmp_path_factory.mktemp("store"), drawings, photos, rng)


def test_no_held_out_identity_can_be_trained_on(store: Path, tmp_path: Path) -> None:
    held_out = protocol.held_out(store)
    assert len(held_out) == 200
    kept = Library(store, None, protocol.trainable(store)).objects
    assert len(kept) == 2 * 30
    assert not {record.key for record in kept} & held_out
    assert {record.split for record in kept} == {"train"}
    objects = Objects(store, tmp_path / "objects.npz")
    assert len(objects.pixels) == len(kept) and len(objects.photos) == 2


def test_the_protocol_is_the_same_every_time_and_judges(store: Path) -> None:
    first, again = (protocol.retrieval(store, "noto", 1) for _ in range(2))
    assert len(first.gallery) == len(first.queries) == 200
    assert all((a == b).all() for a, b in zip(first.queries, again.queries, strict=True))
    table = {picture.tobytes(): float(i) for i, picture in enumerate([*first.gallery, *first.queries])}

    def oracle(pictures: list[np.ndarray]) -> np.ndarray:
        return np.stack([np.eye(200)[int(table[picture.tobytes()]) % 200] for picture in pictures])

    assert protocol.recall_at_1(first, oracle) == 1.0
    assert protocol.recall_at_1(first, lambda pictures: np.roll(oracle(pictures), len(pictures) % 3, 0)[:, ::-1]) <= 1.0
    rng = np.random.default_rng(0)
    assert protocol.recall_at_1(first, lambda pictures: rng.normal(size=(len(pictures), 16))) < 0.1


def test_average_precision_of_known_detections() -> None:
    picture = np.zeros((100, 100, 3), np.uint8)
    truth = np.array([[10.0, 10, 30, 30], [50, 50, 90, 90]])
    right = np.array([[0.9, 10, 10, 30, 30], [0.8, 52, 50, 90, 90]])
    assert protocol.ap50(iter([(picture, truth)]), lambda _: right) == 1.0
    twice = np.vstack([right, [[0.95, 11, 10, 30, 30]]])  # the second box on one object is wrong
    assert protocol.ap50(iter([(picture, truth)]), lambda _: twice) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert protocol.ap50(iter([(picture, truth)]), lambda _: right[:1]) == pytest.approx(51 / 101)
    assert protocol.ap50(iter([(picture, truth)]), lambda _: right + np.array([0, 40, 0, 40, 0])) == 0.0


@pytest.mark.parametrize("recoloured", [False, True])
def test_views_show_the_whole_object_at_any_size(store: Path, tmp_path: Path, recoloured: bool) -> None:
    objects, rng = Objects(store, tmp_path / "objects.npz"), np.random.default_rng(1)
    identity = next(i for i in (objects.identity(rng, 3) for _ in range(50)) if (i.colours is not None) == recoloured)
    for size in (48, 96):
        clean, query = objects.clean(rng, identity, size), objects.query(rng, identity, size)
        assert clean.shape == query.shape == (size, size, 3) and clean.dtype == query.dtype == np.uint8
        # The corners are background, and the middle is not.
        assert np.abs(clean[0, 0].astype(int) - clean[size // 2, size // 2]).max() > 5


def randomised(module: torch.nn.Module, path: Path) -> torch.nn.Module:
    """Weights with BatchNorm statistics that matter, rounded as they ship, and saved as training does."""
    generator = torch.Generator().manual_seed(0)
    for norm in (part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)):
        for value in (norm.running_mean, norm.bias.data):
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
        for value in (norm.running_var, norm.weight.data):
            value.copy_(0.6 + torch.rand(value.shape, generator=generator))
    np.savez(path, **{k: v.numpy() for k, v in module.state_dict().items() if "num_batches" not in k})
    return module.eval()


def test_the_embedding_network_is_the_twin_folded(tmp_path: Path) -> None:
    trained = randomised(twin.Rec(), tmp_path / "weights.npz")
    ours = network.load(network.Rec(REC_SIZE), tmp_path / "weights.npz")
    x = np.random.default_rng(0).normal(size=(3, 3, REC_SIZE, REC_SIZE)).astype(np.float32)
    with torch.no_grad():
        expected = trained(torch.from_numpy(x)).numpy()
    got = ours(paddle.to_tensor(x)).numpy()
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-5)
    assert ((got * expected).sum(1) > 0.9999).all()  # the weights are rounded to float16
    assert np.abs(expected[0] - expected[1]).max() > 1e-3


def test_the_detector_is_the_twin_folded(tmp_path: Path) -> None:
    trained = twin.Det()
    with torch.no_grad():
        trained.head.bias[0] = 0.0
    trained = randomised(trained, tmp_path / "weights.npz")
    ours = network.load(network.Det(DET_SIZE), tmp_path / "weights.npz")
    x = np.random.default_rng(0).normal(size=(1, 3, DET_SIZE, DET_SIZE)).astype(np.float32)
    with torch.no_grad():
        logits, boxes = trained(torch.from_numpy(x))
    expected = train_det.select(logits[0].sigmoid().numpy(), boxes[0].numpy())
    rows, count = ours(paddle.to_tensor(x), paddle.to_tensor(np.array([[0.5, 2.0]], np.float32)))
    rows = rows.numpy()
    assert count.tolist() == [len(rows)] and len(rows) > 10 and (rows[:, 0] == 0).all()
    scale = np.array([2.0, 0.5, 2.0, 0.5])
    best = expected[0]
    near = np.abs(rows[:, 2:] * scale - best[1:]).max(1).argmin()
    np.testing.assert_allclose(rows[near, 2:] * scale, best[1:], atol=0.2)
    assert rows[near, 1] == pytest.approx(best[0], abs=2e-3)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    randomised(twin.Rec(), tmp_path / "weights.npz")
    with pytest.raises(ValueError, match="does not fit"):
        network.load(network.Det(DET_SIZE), tmp_path / "weights.npz")


def test_the_discriminant_sees_past_what_views_change() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.ones(400)
    spread[:40] = 30.0  # what views change most

    def draw(count: int) -> torch.Tensor:
        centres = torch.randn(count, 1, 400, generator=generator)
        return 5 + centres + 0.7 * spread * torch.randn(count, 3, 400, generator=generator)

    matrix, bias = refit.discriminant(draw(900), 0.01)
    assert matrix.shape == (256, 400) and bias.shape == (256,)
    fresh = draw(200)

    def recall(found: torch.Tensor) -> float:
        unit = torch.nn.functional.normalize(found, dim=2)
        return float(((unit[:, 1] @ unit[:, 0].T).argmax(1) == torch.arange(200)).float().mean())

    assert recall(fresh @ matrix.T + bias) > 0.9
    assert recall(fresh) < 0.2


def test_boxes_follow_the_scene_and_what_is_pasted() -> None:
    """Black things on white: a box must hold all of the black that is nearer to it than to any other."""
    thing = np.zeros((96, 96, 4), np.uint8)
    thing[8:89, 8:89, 3] = 255
    side = train_det.SIDE
    scene = np.full((side, side, 3), 255, np.uint8)
    scene[160:290, 100:240] = 0
    boxes = np.zeros((12, 4), np.float32)
    boxes[0] = 100, 160, 240, 290
    rng, pasted = np.random.default_rng(0), 0
    for _ in range(30):
        canvas, found = scene.copy(), boxes.copy()
        canvas = train_det.paste(rng, canvas, found, lambda _: thing, 3)
        kept = found[found[:, 2] > found[:, 0]].astype(int)
        pasted += len(kept) - 1
        covered = np.zeros((side, side), bool)
        for x0, y0, x1, y1 in kept:
            covered[y0:y1, x0:x1] = True
        assert (canvas[~covered] > 100).mean() > 0.995
        picture, moved = train_det.augment(rng, scene, boxes, 256, lambda _: thing)
        assert picture.shape == (256, 256, 3) and moved.shape == (12, 4)
        assert (moved >= 0).all() and (moved <= 256).all()
    assert pasted > 15


def test_what_is_pasted_is_of_every_kind(store: Path, tmp_path: Path) -> None:
    sprites = train_det.Sprites(store, tmp_path / "objects.npz")
    rng, sides = np.random.default_rng(0), set()
    for _ in range(60):
        sprite = sprites.draw(rng)
        assert sprite.ndim == 3 and sprite.shape[2] == 4 and sprite.dtype == np.uint8
        assert (sprite[..., :3].max(2) <= sprite[..., 3]).all()  # premultiplied
        sides.add(sprite.shape[0])
    assert train_det.SPRITE in sides and len(sides) > 5  # an object, and cut-outs and shapes of any size
    assert sprites.window(rng).shape == (train_det.SIDE, train_det.SIDE, 3)


def test_cells_answer_for_the_object_whose_box_they_give() -> None:
    """Two objects with one middle: the cells give the box of either, and answer for that one."""
    boxes = torch.zeros(1, 12, 4)
    boxes[0, 0] = torch.tensor([0.0, 0, 160, 160])
    boxes[0, 1] = torch.tensor([60.0, 60, 100, 100])
    side = 160 // DET_STRIDE
    found = boxes[:, :1].repeat(1, side * side, 1)
    left = (twin.cell_centres(side, side)[:, 0] < 80)[None]
    found[left] = boxes[0, 1]
    positive, targets, quality = train_det.assign(torch.zeros(1, side * side), found, boxes)
    assert 0 < positive.sum() <= 2 * train_det.ANSWERS
    sure = positive & (quality > 0.1)  # ten answer for the smaller one too, of which some are to know that they do not
    assert (targets[sure & left] == boxes[0, 1]).all() and (targets[sure & ~left] == boxes[0, 0]).all()
    assert (sure & left).any() and (sure & ~left).any()
    assert quality[sure].tolist() == pytest.approx([1.0] * int(sure.sum()))
    cells = positive[0].reshape(side, side)
    assert not cells[0].any() and not cells[:, -1].any()
    assert not train_det.assign(torch.zeros(1, side * side), found, torch.zeros(1, 12, 4))[0].any()


def test_a_detector_learns_one_picture() -> None:
    """The loss falls with the weights that may change, and the others stay."""
    torch.manual_seed(0)
    network = twin.Det()
    optimisers, parameters = training.adam_for_trunk_and_rest(1e-3, 1e-2)(network)
    kernel = network.trunk.blocks[5].depthwise.weight.clone()
    picture = torch.randn(1, 3, 96, 96)
    boxes = torch.zeros(1, 12, 4)
    boxes[0, 0] = torch.tensor([20.0, 24, 70, 80])
    losses = []
    for _ in range(15):
        loss = train_det.detection_loss(*network(picture), boxes)
        losses.append(float(loss.detach()))
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
    assert losses[-1] < 0.7 * losses[0]
    assert torch.equal(kernel, network.trunk.blocks[5].depthwise.weight) and len(parameters) > 50
