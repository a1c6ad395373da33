"""`python -m ovseg_export.builders '{"family": …}'`: builds one archive in this process."""

from __future__ import annotations

import json
import sys

from .archive import write_archive

if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    write_archive(
        request["family"],
        request["out_dir"],
        seed=request["seed"],
        fmt=request["fmt"],
        options=request["options"],
    )
