"""The scene generator on a small store made here: no package is fetched."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from scene_store import write_store

sys.path.insert(0, str(Path(__file__).parents[2] / "export"))

from ovseg_export.scenes import Library, Mix, compose
from ovseg_export.scenes.assets import SETS, AssetSet, emoji_key, members, package_file, trim
from ovseg_export.scenes.compose import (
    MIN_VISIBLE_PIXELS_512,
    MIXES,
    _blend,
    _place,
    _visible,
    premultiplied,
)
from ovseg_export.scenes.library import FORMAT
from ovseg_export.scenes.pregenerate import Job, _done, generate, scene

OBJECTS_ONLY = Mix(objects=1.0, cutouts=0.0, shapes=0.0)


def disc(side: int, colour: tuple[int, int, int]) -> np.ndarray:
    bgra = np.zeros((side, side, 4), np.uint8)
    alpha = np.zeros((side, side), np.uint8)
    cv2.circle(alpha, (side // 2, side // 2), side // 2 - 1, 255, -1, cv2.LINE_AA)
    bgra[alpha > 0, :3] = colour
    bgra[..., 3] = alpha
    return bgra


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    colours = {"a": (128, (0, 0, 255)), "b": (64, (255, 0, 0)), "c": (200, (0, 255, 0))}
    discs = {key: (key, f"disc {key}", disc(*one)) for key, one in colours.items()}
    drawings = {("discs", "train"): [discs["a"], discs["b"]], ("discs", "val"): [discs["c"]]}
    drawings["more", "classes"] = [("d", "disc d", disc(90, (9, 99, 199)))]
    photos = {"0": "train", "1": "train", "2": "val"}
    return write_store(tmp_path_factory.mktemp("store"), drawings, photos, np.random.default_rng(0))


def test_library_splits_do_not_share_pictures(store: Path) -> None:
    train, val = Library(store, "train"), Library(store, "val")
    assert {record.key for record in train.objects} == {"a", "b"}
    assert {record.key for record in val.objects} == {"c"}
    assert not {photo.file for photo in train.photos} & {photo.file for photo in val.photos}
    assert val.object_pixels(val.objects[0]).shape == (200, 200, 4)


def test_library_of_another_format_is_refused(store: Path, tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(ValueError, match="prepare it again"):
        Library(tmp_path)
    with pytest.raises(FileNotFoundError):
        Library(tmp_path / "nothing")


def test_photos_are_drawn_by_weight(store: Path) -> None:
    library = Library(store, "train")
    library._photo_steps = np.array([0.0, 1.0])
    rng = np.random.default_rng(0)
    assert all(np.array_equal(library.draw_photo(rng), library.photo_pixels(1)) for _ in range(5))


@pytest.mark.parametrize("size", [64, 256, 512])
def test_scene_is_well_formed(store: Path, size: int) -> None:
    library = Library(store, "train")
    least = MIN_VISIBLE_PIXELS_512 * (size / 512) ** 2
    seen = 0
    for seed in range(25):
        made = compose(np.random.default_rng(seed), library, size)
        assert made.image.shape == (size, size, 3) and made.image.dtype == np.uint8
        assert made.ids.shape == (size, size) and made.ids.dtype == np.uint8
        assert [i.id for i in made.instances] == list(range(1, len(made.instances) + 1))
        assert set(np.unique(made.ids)) - {0} == {i.id for i in made.instances}
        for instance in made.instances:
            mask = made.ids == instance.id
            assert mask.sum() == instance.pixels >= least
            assert MIXES["crowded"].min_visible <= instance.visible <= 1
            ys, xs = np.nonzero(mask)
            x1, y1, x2, y2 = instance.box
            assert x1 <= xs.min() and xs.max() < x2 and y1 <= ys.min() and ys.max() < y2
            seen += 1
    assert seen > 25


def test_same_seed_same_scene(store: Path) -> None:
    first, again = (compose(np.random.default_rng([3, 7]), Library(store, "train"), 256) for _ in range(2))
    other = compose(np.random.default_rng([3, 8]), Library(store, "train"), 256)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.ids, again.ids)
    assert first.instances == again.instances
    assert not np.array_equal(first.image, other.image)


def test_ids_lie_where_the_object_is(store: Path) -> None:
    # One red disc at a time: its pixels differ from the same canvas without it, and nothing else does much.
    library = Library(store, "train", keep=lambda record: record.key == "a")
    assert [record.key for record in library.objects] == ["a"]
    for seed in range(10):
        rng = np.random.default_rng(seed)
        placed = _place(rng, library.object_pixels(library.objects[0]), 120, 256)
        assert placed is not None
        colour, alpha = placed
        whole = alpha >= 128
        canvas = np.full((*alpha.shape, 3), (255, 255, 0), np.uint8)
        _blend(canvas, colour, alpha)
        assert np.abs(canvas[alpha == 255].astype(int) - (0, 0, 255)).max() <= 3
        assert (canvas[alpha == 0] == (255, 255, 0)).all()
        redder = canvas[..., 2] > canvas[..., 1]
        assert (redder != whole).mean() < 0.01
        assert 0.6 * np.pi / 4 * 120**2 * 0.7 < whole.sum() < 1.5 * np.pi / 4 * 120**2


def test_hidden_and_tiny_instances_are_dropped_and_the_rest_renumbered() -> None:
    ids = np.zeros((512, 512), np.uint8)
    ids[:50, :50] = 1  # 2500 of 2500: stays
    ids[100:120, :100] = 2  # 2000 of 10000: a fifth, dropped
    ids[200:209, :11] = 3  # 99 pixels, dropped
    ids[300:310, :20] = 4  # split by an occluder: one id
    ids[330:340, :20] = 4
    box = (0, 0, 1, 1)
    pasted = [
        ("a", "s", "", 2500, box),
        ("b", "s", "", 10000, box),
        ("c", "s", "", 99, box),
        ("d", "s", "", 800, box),
    ]
    instances, out = _visible(ids, pasted, 512, 0.25)
    assert [(i.id, i.key, i.pixels, i.visible) for i in instances] == [
        (1, "a", 2500, 1.0),
        (2, "d", 400, 0.5),
    ]
    assert (out[:50, :50] == 1).all() and (out[300:310, :20] == 2).all() and (out[330:340, :20] == 2).all()
    assert (out[100:209] == 0).all()


def test_a_mix_of_one_kind_gives_that_kind(store: Path) -> None:
    library = Library(store, "train")
    for mix, sets in (
        (OBJECTS_ONLY, {"discs"}),
        (Mix(0.0, 1.0, 0.0), {"cutout"}),
        (Mix(0.0, 0.0, 1.0), {"shape"}),
    ):
        found = {i.set for seed in range(5) for i in compose(np.random.default_rng(seed), library, 256, mix).instances}
        assert found == sets


def test_max_instances_holds(store: Path) -> None:
    library = Library(store, "train")
    counts = [len(compose(np.random.default_rng(s), library, 256, Mix(max_instances=1)).instances) for s in range(10)]
    assert max(counts) == 1


def test_premultiply() -> None:
    bgra = np.array([[[200, 100, 50, 128], [200, 100, 50, 0]]], np.uint8)
    assert np.abs(premultiplied(bgra).astype(int) - [[[100, 50, 25, 128], [0, 0, 0, 0]]]).max() <= 1


def test_trim_cuts_to_alpha_shrinks_and_refuses() -> None:
    big = np.zeros((900, 1200, 4), np.uint8)
    big[100:700, 300:900] = cv2.resize(disc(600, (10, 20, 30)), (600, 600))
    cut = trim(big)
    assert cut is not None and cut.shape == (256, 256, 4)
    assert np.abs(cut[128, 128].astype(int) - (10, 20, 30, 255)).max() <= 1
    edge = cut[(cut[..., 3] > 60) & (cut[..., 3] < 200)]
    assert np.abs(edge[:, :3].astype(int) - (10, 20, 30)).max() <= 4  # no dark fringe
    assert trim(np.zeros((50, 50, 4), np.uint8)) is None
    assert trim(np.full((100, 100, 4), 255, np.uint8)) is None  # an opaque rectangle
    thin = np.zeros((300, 300, 4), np.uint8)
    thin[100:115, :] = 255
    assert trim(thin) is None


def test_emoji_keys_of_different_sets_agree() -> None:
    assert emoji_key("1F436") == emoji_key("1f436-fe0f") == "1f436"
    assert emoji_key("0023-fe0f-20e3") == emoji_key("23-20e3") == "23-20e3"


def test_set_table_is_sound() -> None:
    assert len({entry.name for entry in SETS}) == len(SETS)
    for entry in SETS:
        assert entry.kind in ("objects", "photos") and entry.client in ("npm", "deb")
        assert entry.split in ("train", "classes", "val")
        # What trains is permissively licensed.
        if entry.split in ("train", "classes"):
            assert not any(word in entry.licence for word in ("GPL", "BY-SA", "NC", "ND"))


def test_members_and_cache(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "some-thing-1.0.tgz", "w:gz") as archive:
        for name, data in (("package/b.svg", b"bb"), ("package/a.svg", b"aa"), ("package/readme", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    entry = AssetSet("x", "npm", "@some/thing", "1.0", "MIT", "objects", "train", r"package/(\w+)\.svg")
    path = package_file(entry, [tmp_path], tmp_path / "downloads")
    assert [(match.group(1), data) for _, match, data in members(path, entry.pattern)] == [
        ("a", b"aa"),
        ("b", b"bb"),
    ]


def test_pregenerate_is_deterministic_and_resumes(store: Path, tmp_path: Path) -> None:
    job = Job(str(store), "train", 128, 5, "crowded")
    assert generate(job, tmp_path / "a", 6) == 6
    assert generate(job, tmp_path / "a", 6) == 0
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"job.json", "index.jsonl", *(f"{i:06d}.{e}" for i in range(6) for e in ("jpg", "png"))}
    # A run that was killed: one file missing, one line cut short.
    index = tmp_path / "a" / "index.jsonl"
    before = index.read_text("utf-8")
    index.write_text(before.rstrip()[:-10], "utf-8")
    (tmp_path / "a" / "000002.jpg").unlink()
    assert sorted(_done(tmp_path / "a")) == [0, 1, 3, 4]
    assert generate(job, tmp_path / "a", 6) == 2
    lines = sorted(index.read_text("utf-8").splitlines(), key=lambda line: json.loads(line)["index"])
    assert lines == before.splitlines()
    ids = cv2.imread(str(tmp_path / "a" / "000002.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(ids, scene(job, Library(store, "train"), 2).ids)
    with pytest.raises(ValueError, match="another job"):
        generate(Job(str(store), "train", 128, 6, "crowded"), tmp_path / "a", 6)


def test_scenes_of_the_drawings_for_classes_stand_on_photographs_for_training(store: Path, tmp_path: Path) -> None:
    generate(Job(str(store), "classes", 128, 5, "ordinary"), tmp_path, 8)
    lines = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text("utf-8").splitlines()]
    sets = {instance["set"] for line in lines for instance in line["instances"]}
    assert "more" in sets and "discs" not in sets and "cutout" in sets  # cut out of photographs


def test_objects_keep_the_share_in_sight_that_the_mix_asks_for(store: Path) -> None:
    library = Library(store, "train")
    for seed in range(40):
        made = compose(np.random.default_rng(seed), library, 256, MIXES["ordinary"])
        assert all(instance.visible >= 0.6 for instance in made.instances)
        # Nothing was pasted and then dropped for being hidden: what is in the picture has an id.
        assert len(made.instances) <= 6
