"""PaddleX's own service, `paddlex --serve`, to compare with; run it with an interpreter that has paddlex 3.7.2.

python benchmarks/paddlex_service.py --serve --pipeline paddlex.yaml --port 8081
"""

from __future__ import annotations

import os

os.environ.setdefault("PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK", "True")

from paddlex.inference.models.image_feature.processors import NormalizeFeatures
from paddlex.paddlex_cli import main


def repair() -> None:
    """Make PaddleX 3.7.2 able to build an index at all.

    It splits the results of a batch where they are lists, and the features are an array: each image gets those of the
    whole batch, and building fails with "too many values to unpack".
    """
    normalise = NormalizeFeatures.__call__
    NormalizeFeatures.__call__ = lambda self, preds: list(normalise(self, preds))


if __name__ == "__main__":
    repair()
    main()
