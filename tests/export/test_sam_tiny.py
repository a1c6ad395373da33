"""The SAM-tiny that ships against its Paddle form with the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason='needs the export extra: pip install "ovseg[export]"')
paddle = pytest.importorskip("paddle", reason='needs the export extra: pip install "ovseg[export]"')
pytestmark = pytest.mark.export

import ovseg_export.sam_tiny as sam_tiny  # noqa: E402
from ovseg_export.half import fold_and_halve  # noqa: E402
from ovseg_export.sam_tiny import ship  # noqa: E402
from photos import load_photos  # noqa: E402

from ovseg.zoo import find_model  # noqa: E402

WEIGHTS = Path(sam_tiny.__file__).with_name("weights.npz")


def test_onnx_equals_paddle_on_eight_photographs() -> None:
    pictures = [photo.pixels for photo in load_photos()][:8]
    assert len(pictures) == 8
    figures = ship.compare(ship.load_network(WEIGHTS), find_model("SAM-tiny").path, pictures)
    print(figures)
    assert figures["mask_logits_max_difference"] <= 1e-3
    assert figures["mask_pixels_equal"] >= 0.999
    assert figures["iou_max_difference"] <= 1e-3


@pytest.mark.parametrize("path", sorted(find_model("SAM-tiny").path.glob("*.onnx")), ids=lambda path: path.stem)
def test_no_tensor_has_more_dimensions_than_tensorrt_takes(path: Path) -> None:
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    ranks = [len(value.type.tensor_type.shape.dim) for value in graph.value_info]
    assert len(ranks) > 100 and max(ranks) <= 8


def test_another_picture_gives_another_mask() -> None:
    """Else the comparison above would prove nothing."""
    network = ship.load_network(WEIGHTS)
    prompt = ship.prompts_of(np.random.default_rng(0), 4)
    masks = []
    for photo in load_photos()[:2]:
        inputs = (ship.frame_of(photo.pixels), *prompt.values())
        masks.append(network(*map(paddle.to_tensor, inputs))[0].numpy())
    assert ((masks[0] > 0) != (masks[1] > 0)).mean() > 0.01


def test_the_twin_in_torch_is_the_same_network() -> None:
    torch = pytest.importorskip("torch", reason='needs the train extra: pip install "ovseg[train]"')
    from ovseg_export.sam_tiny.twin import SamTiny

    twin = SamTiny().eval()
    state = {name: torch.from_numpy(array) for name, array in fold_and_halve(dict(np.load(WEIGHTS))).items()}
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert not unexpected and all("num_batches" in name for name in missing)
    frame, prompt = ship.frame_of(load_photos()[0].pixels), ship.prompts_of(np.random.default_rng(0), 4)
    theirs = [t.numpy() for t in ship.load_network(WEIGHTS)(*map(paddle.to_tensor, (frame, *prompt.values())))]
    with torch.no_grad():
        embeddings = twin.encoder(torch.from_numpy(frame))
        ours = twin.decode(embeddings, *map(torch.from_numpy, prompt.values()))
    for got, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got.numpy(), expected, atol=1e-3)
