"""What the routes answer, over a real socket."""

from __future__ import annotations

import base64
import io
import uuid
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
import requests
from pycocotools import mask as coco_mask
from recognition_graphs import halves, plain
from service_process import Service, as_base64

from ovseg import create_pipeline

PROMPT = "/open-vocabulary-segmentation"
INSTANCE = "/instance-segmentation"
RED, GREEN, BLUE = (20, 20, 250), (20, 250, 20), (250, 20, 20)
BRIGHT = as_base64(plain((250, 250, 250), 64, 80))


def pixels_of(photo: str) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(base64.b64decode(photo), np.uint8), cv2.IMREAD_COLOR)


def decode(mask: dict[str, Any]) -> np.ndarray:
    assert mask["rleResult"] == mask["counts"]
    return coco_mask.decode(mask)


class TestEnvelope:
    def test_success(self, service: Service, photo: str) -> None:
        answer = service.post(PROMPT, image=photo, prompt=[[10, 10, 90, 90]], prompt_type="box").json()
        assert answer.keys() == {"logId", "errorCode", "errorMsg", "result"}
        assert answer["errorCode"] == 0 and answer["errorMsg"] == "Success"
        assert uuid.UUID(answer["logId"])

    def test_failure_has_the_status_as_its_code(self, service: Service) -> None:
        response = service.post(PROMPT, image="", prompt=[[1, 2]], prompt_type="point")
        assert response.status_code == 422
        assert response.json().keys() == {"logId", "errorCode", "errorMsg"}
        assert response.json()["errorCode"] == 422

    @pytest.mark.parametrize("path", ["/nowhere", "/instance-segmentation/x", "/samples/../x", "/page/nothing.js"])
    def test_unknown_path(self, service: Service, path: str) -> None:
        response = requests.get(service.url + path)
        assert response.status_code == 404 and response.json()["errorCode"] == 404

    def test_wrong_method(self, service: Service) -> None:
        response = requests.get(service.url + PROMPT)
        assert (
            response.status_code == 405 and response.json()["errorCode"] == 405 and response.headers["allow"] == "POST"
        )

    def test_the_log_has_one_line_for_a_request_and_none_of_its_contents(self, service: Service) -> None:
        secret = base64.b64encode(b"a secret picture").decode()
        log_id = service.post(PROMPT, image=secret, prompt=[[1, 2]], prompt_type="point").json()["logId"]
        health_id = requests.get(service.url + "/health").json()["logId"]
        assert service.logged(health_id)  # its line comes after the other's
        (line,) = service.logged(log_id)
        assert '"status": 422' in line and PROMPT in line
        assert not any(secret in line for line in service.log)


class TestPrompts:
    def test_masks_are_those_of_the_pipeline(self, service: Service, photo: str, sam_folders: Any) -> None:
        boxes = [[10, 10, 90, 90], [50, 20, 150, 100]]
        pipeline = create_pipeline("open_vocabulary_segmentation", model_dir=sam_folders["general"], device="cpu")
        expected = next(iter(pipeline.predict(pixels_of(photo), prompt=boxes, prompt_type="box")))
        result = service.result(PROMPT, image=photo, prompt=boxes, prompt_type="box")
        for mask, wanted in zip(result["masks"], expected["masks"], strict=True):
            assert np.array_equal(decode(mask), wanted) and mask["size"] == list(wanted.shape)
        assert [info["score"] for info in result["mask_infos"]] == pytest.approx(expected.predicted_iou)

    def test_both_spellings(self, service: Service, photo: str) -> None:
        asked = {"image": photo, "prompt": [[80, 60]]}
        guide = service.result(PROMPT, **asked, prompt_type="point")
        release = service.result(PROMPT, **asked, promptType="point")
        assert guide == release
        assert guide["mask_infos"] == guide["maskInfos"]
        assert guide["mask_infos"][0]["label"] == "point_prompt" and guide["mask_infos"][0]["prompt"] == [80, 60]

    def test_picture(self, service: Service, photo: str) -> None:
        asked = {"image": photo, "prompt": [[80, 60]], "prompt_type": "point"}
        picture = service.result(PROMPT, **asked)["image"]
        opened = PIL.Image.open(io.BytesIO(base64.b64decode(picture)))
        assert opened.format == "JPEG" and opened.size == (160, 120)
        assert service.result(PROMPT, **asked, visualize=None)["image"] == picture
        assert "image" not in service.result(PROMPT, **asked, visualize=False)

    def test_labelled_points(self, service: Service, photo: str) -> None:
        asked = {"image": photo, "prompt_type": "point"}
        one = decode(service.result(PROMPT, **asked, prompt=[[80, 60]])["masks"][0])
        result = service.result(PROMPT, **asked, prompt=[[[80, 60], [84, 60]]], pointLabels=[[1, 0]])
        less = decode(result["masks"][0])
        assert 0 < less.sum() < one.sum()
        assert result["mask_infos"][0]["point_labels"] == [1, 0]

    def test_polygons(self, service: Service, photo: str) -> None:
        asked = {"image": photo, "prompt": [[40, 30, 120, 90]], "prompt_type": "box"}
        mask = service.result(PROMPT, **asked, polygons=True)["masks"][0]
        drawn = np.zeros(mask["size"], np.uint8)
        for line in mask["polygons"]:
            cv2.fillPoly(drawn, [np.array(line, np.int32).reshape(-1, 2)], 1)
        assert np.array_equal(drawn, decode(mask))
        assert "polygons" not in service.result(PROMPT, **asked)["masks"][0]

    def test_line_breaks_in_base64(self, service: Service, photo: str) -> None:
        broken = "\n".join(photo[i : i + 76] for i in range(0, len(photo), 76))
        assert service.post(PROMPT, image=broken, prompt=[[80, 60]], prompt_type="point").status_code == 200


class TestInstances:
    def test_masks_are_cropped_as_in_paddlex(self, service: Service, instance_folders: Any) -> None:
        pipeline = create_pipeline("instance_segmentation", model_dir=instance_folders["batch"], device="cpu")
        expected = next(iter(pipeline.predict(pixels_of(BRIGHT), threshold=0.2)))
        instances = service.result(INSTANCE, image=BRIGHT, threshold=0.2)["instances"]
        assert len(instances) == len(expected["boxes"]) == 3
        for one, box, crop, whole in zip(instances, expected["boxes"], expected.crop(), expected["masks"], strict=True):
            assert one["bbox"] == pytest.approx(box["coordinate"])
            assert (one["categoryId"], one["categoryName"]) == (box["cls_id"], box["label"])
            assert one["score"] == pytest.approx(box["score"])
            mask = decode(one["mask"])
            assert np.array_equal(mask, crop)
            x, y = one["mask"]["offset"]
            height, width = one["mask"]["size"]
            assert np.array_equal(mask, whole[y : y + height, x : x + width])

    def test_threshold(self, service: Service) -> None:
        counts = [len(service.result(INSTANCE, image=BRIGHT, threshold=t)["instances"]) for t in (0.2, 0.5, 0.8, 1)]
        assert counts == [3, 2, 1, 0]
        assert len(service.result(INSTANCE, image=BRIGHT)["instances"]) == 2

    def test_polygons_are_in_pixels_of_the_image(self, service: Service) -> None:
        mask = service.result(INSTANCE, image=BRIGHT, threshold=0.8, polygons=True)["instances"][0]["mask"]
        (line,) = mask["polygons"]
        (x, y), (height, width) = mask["offset"], mask["size"]
        assert (min(line[::2]), min(line[1::2])) == (x, y)
        assert (max(line[::2]), max(line[1::2])) == (x + width - 1, y + height - 1)

    def test_a_bad_image_spoils_no_other(self, service: Service) -> None:
        from concurrent.futures import ThreadPoolExecutor

        images = [BRIGHT, "AAAA", BRIGHT, as_base64(plain((250, 250, 250), 40, 40)), BRIGHT] * 4
        with ThreadPoolExecutor(20) as pool:
            found = list(pool.map(lambda image: service.post(INSTANCE, image=image), images))
        assert [response.status_code for response in found] == [200, 422, 200, 200, 200] * 4
        sizes = [response.json()["result"]["instances"][0]["mask"]["size"] for response in found[2:4]]
        assert sizes == [[24, 40], [15, 20]]


class TestIndexes:
    def build(self, service: Service, *pairs: tuple[str, Any]) -> Any:
        listed = [{"image": as_base64(plain(colour)), "label": label} for label, colour in pairs]
        return service.result("/shitu-index-build", imageLabelPairs=listed)

    def test_build_add_remove_and_infer(self, service: Service) -> None:
        built = self.build(service, ("red", RED), ("green", GREEN))
        assert built["idMap"] == {"0": "red", "1": "green"} and built["imageCount"] == 2
        key = built["indexKey"]
        pair = {"image": as_base64(plain(BLUE)), "label": "blue"}
        added = service.result("/shitu-index-add", imageLabelPairs=[pair], indexKey=key)
        assert added == {"idMap": {"0": "red", "1": "green", "2": "blue"}, "imageCount": 3}
        removed = service.result("/shitu-index-remove", ids=[0], indexKey=key)
        assert removed == {"idMap": {"1": "green", "2": "blue"}, "imageCount": 2}
        image = as_base64(halves(GREEN, BLUE))
        asked = {"image": image, "indexKey": key, "detThreshold": 0.1, "topk": 1}
        found = service.result("/shitu-infer", **asked)
        boxes = {one["recResults"][0]["label"]: np.round(one["bbox"]).tolist() for one in found["detectedObjects"]}
        assert boxes == {"green": [0, 0, 30, 20], "blue": [30, 0, 60, 20]}
        assert PIL.Image.open(io.BytesIO(base64.b64decode(found["image"]))).size == (60, 20)
        assert "image" not in service.result("/shitu-infer", **asked, visualize=False)

    def test_thresholds(self, service: Service) -> None:
        key = self.build(service, ("red", RED), ("green", GREEN))["indexKey"]
        asked = {"image": as_base64(plain(RED)), "indexKey": key, "visualize": False, "detThreshold": 0.1}
        first = service.result("/shitu-infer", **asked)["detectedObjects"][0]
        assert first["recResults"][0]["label"] == "red" and first["recResults"][0]["score"] == pytest.approx(
            1, abs=1e-3
        )
        assert len(first["recResults"]) == 2
        far = service.result("/shitu-infer", **asked, recThreshold=1.1)["detectedObjects"]
        assert all(one["recResults"] == [] for one in far)
        none = service.result("/shitu-infer", **(asked | {"detThreshold": 1.0}))["detectedObjects"]
        assert [(one["bbox"], one["score"]) for one in none] == [([0, 0, 30, 20], 0)]

    def test_unknown_ids_change_nothing(self, service: Service) -> None:
        key = self.build(service, ("red", RED), ("green", GREEN))["indexKey"]
        response = service.post("/shitu-index-remove", ids=[0, 7], indexKey=key)
        assert response.status_code == 422 and "7" in response.json()["errorMsg"]
        assert service.result("/shitu-index-remove", ids=[0], indexKey=key)["idMap"] == {"1": "green"}

    def test_a_bad_picture_changes_nothing(self, service: Service) -> None:
        key = self.build(service, ("red", RED))["indexKey"]
        pairs = [{"image": as_base64(plain(BLUE)), "label": "blue"}, {"image": "AAAA", "label": "broken"}]
        response = service.post("/shitu-index-add", imageLabelPairs=pairs, indexKey=key)
        assert response.status_code == 422 and "Image 1" in response.json()["errorMsg"]
        assert service.result("/shitu-index-add", imageLabelPairs=pairs[:1], indexKey=key)["imageCount"] == 2

    def test_without_a_key(self, service: Service) -> None:
        response = service.post("/shitu-infer", image=as_base64(plain(RED)))
        assert response.status_code == 422 and "indexKey" in response.json()["errorMsg"]


class TestRest:
    @pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
    def test_health(self, service: Service, path: str) -> None:
        answer = requests.get(service.url + path)
        assert answer.status_code == 200 and answer.json()["errorMsg"] == "Healthy"

    def test_metrics(self, service: Service, photo: str) -> None:
        service.result(PROMPT, image=photo, prompt=[[1, 2]], prompt_type="point")
        text = requests.get(service.url + "/metrics").text
        assert f'ovs_requests_total{{route="{PROMPT}",status="200"}}' in text
        assert 'ovs_queue_length{pipeline="instance_segmentation"} 0.0' in text
        assert "process_resident_memory_bytes" in text

    def test_docs_need_nothing_from_elsewhere(self, service: Service) -> None:
        import re

        text = requests.get(service.url + "/docs").text
        files = re.findall(r'(?:src|href)="([^"]+)"', text)
        assert files and all(file.startswith("/") and not file.startswith("//") for file in files)
        for file in files:
            assert requests.get(service.url + file).status_code == 200

    def test_info(self, service: Service) -> None:
        info = requests.get(service.url + "/info").json()
        assert [one["name"] for one in info["pipelines"]] == [
            "open_vocabulary_segmentation",
            "instance_segmentation",
            "PP-ShiTuV2",
        ]
        assert info["pipelines"][1]["labels"] == ["person", "dog", "traffic light", "kite"]
        assert requests.get(f"{service.url}/samples/{info['samples'][0]}").headers["content-type"] == "image/jpeg"
