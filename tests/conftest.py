import os
from collections.abc import Iterator

import pytest
from file_server import file_server, home  # noqa: F401 - fixtures for every test below
from sam_fixtures import image_file, instance_folders, pixels, sam_folders  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """What tests write need not outlive a power cut: on a slow disk, their thousand flushes would take hours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield
