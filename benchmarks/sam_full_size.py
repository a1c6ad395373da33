"""A SAM of full size (ViT-H, 641 M parameters, random weights) through `ovs export`: seconds, memory, a mask.

    python benchmarks/sam_full_size.py work
    python benchmarks/sam_full_size.py work --size tiny

The model is built first, which is not measured. Memory is that of the export and of the processes that it starts,
pages that they share counted once (PSS of /proc, so Linux only), every half second. Needs the export extra and 6 GB
of disk.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "export"))

from ovseg_export.builders import sam  # noqa: E402

from ovseg import create_pipeline  # noqa: E402
from ovseg.samples import samples  # noqa: E402

LIMITS = "limits: 300 s, 12 GB"


def tree(root: int) -> list[int]:
    """A process and its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            parents.setdefault(int(entry.read_text().rsplit(")", 1)[1].split()[1]), []).append(int(entry.parent.name))
    found = [root]
    for process in found:
        found += parents.get(process, [])
    return found


def memory(processes: list[int]) -> tuple[int, int]:
    """Bytes of these processes, shared pages counted once; and those of them that no file stands behind."""
    total = own = 0
    for process in processes:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]:
                key, value, *_ = line.split()
                total += int(value) * 1024 * (key == "Pss:")
                own += int(value) * 1024 * (key == "Pss_Anon:")
    return total, own


def main() -> None:
    """Build, export, and segment with the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the models")
    parser.add_argument("--size", choices=sam.SIZES, default="huge")
    arguments = parser.parse_args()
    source, out = arguments.work / f"sam-{arguments.size}", arguments.work / f"sam-{arguments.size}-onnx"
    if not (source / "inference.yml").exists():
        sam.build(source, size=arguments.size)
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "ovseg", "export", "SAM-H_box", "--from", str(source), "--out", str(out)]
    start, peak, peak_own = time.perf_counter(), 0, 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            total, own = memory(tree(process.pid))
            peak, peak_own = max(peak, total), max(peak_own, own)
            time.sleep(0.5)
    seconds = time.perf_counter() - start
    print(
        f"exit {process.returncode}, {seconds:.0f} s, {peak / 1e9:.2f} GB, {peak_own / 1e9:.2f} GB without mapped files"
    )
    print(LIMITS)
    if process.returncode:
        sys.exit(1)
    print({path.name: path.stat().st_size for path in sorted(out.iterdir())})
    pipeline = create_pipeline("open_vocabulary_segmentation", model_dir=out, device="cpu")
    with pipeline.open(samples()[0].path) as image:
        mask = image.segment(boxes=[[50.0, 50.0, 300.0, 250.0]])["masks"][0]
    print(f"mask {mask.shape}, {(mask > 0).mean():.3f} of the picture")


if __name__ == "__main__":
    main()
