"""Builds one archive in this process; the functions `build` call it."""

from __future__ import annotations

import argparse
import json

from .archive import write_archive

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m ovseg_export.builders", description=__doc__)
    keys = ("family", "out_dir", "seed", "fmt", "options")
    parser.add_argument("request", type=json.loads, help=f"arguments of `write_archive` as JSON: {', '.join(keys)}")
    request = parser.parse_args().request
    if not isinstance(request, dict) or set(request) != set(keys):
        parser.error(f"the request must have {', '.join(keys)}")
    write_archive(**request)
