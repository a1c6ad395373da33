"""The setting that `ovs tune` finds over the default, for each bundled model, measured anew in turns: at most 1.

Where the answer is the default, both are the same setting, and what the ratio differs from 1 by is the noise of the
machine; it is printed beside, from the default against itself.
"""

from __future__ import annotations

import argparse

from ovseg.device import resolve_device
from ovseg.pipelines.hpi import HpiConfig
from ovseg.pipelines.tuning import Setting, measure, tuned
from ovseg.pipelines.workloads import load_workload
from ovseg.zoo import bundled_dir, load_zoo, open_model_folder


def main() -> None:
    """Tune, or take what is remembered, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    for name, spec in load_zoo().items():
        if not spec.bundled:
            continue
        folder = open_model_folder(bundled_dir(name))
        setting = tuned(folder, device, HpiConfig()).setting
        default = Setting(arguments.device)
        reference, same, chosen = (
            load_workload(*each.apply(folder, {})) for each in (default, default, Setting(**vars(setting)))
        )
        noise = measure(reference, same).ratio
        found = measure(reference, chosen)
        limit = max(1.0, noise, 1 / noise)
        kept = setting == default
        verdict = "ok" if kept or found.ratio <= limit else "SLOWER"
        chosen_is = f"{setting}, the default itself" if kept else str(setting)
        print(
            f"{name}: {chosen_is}: {found.ratio:.3f} of the default's time (noise {noise:.3f}): {verdict}", flush=True
        )


if __name__ == "__main__":
    main()
