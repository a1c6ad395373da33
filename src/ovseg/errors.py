"""Exceptions of ovseg: each message gives one sentence of cause and one of cure."""

from __future__ import annotations


class OvsError(Exception):
    """Base of every error that ovseg raises on purpose.

    Args:
        cause: what is wrong, naming the offending value.
        cure: what to do next.

    Attributes:
        exit_code: exit status of the command line for this error: 2 for bad input, 1 for a failure.
    """

    exit_code = 2

    def __init__(self, cause: str, cure: str = "") -> None:
        super().__init__(f"{cause} {cure}".strip())
        self.cause = cause
        self.cure = cure

    def __reduce__(self) -> tuple[type[OvsError], tuple[str, str]]:
        return type(self), (self.cause, self.cure)


class PromptError(OvsError):
    """A prompt that cannot be used."""


class ImageError(OvsError):
    """An image that cannot be found or read."""


class ConfigError(OvsError):
    """An argument, a pipeline name or a configuration file that cannot be used."""


class ModelError(OvsError):
    """A model that is not known, or a model folder that cannot be used."""


class GalleryError(OvsError):
    """A gallery that cannot be opened, searched or changed as asked."""


class DeviceUnavailable(OvsError):  # noqa: N818
    """A device or execution provider that was asked for and cannot really be used."""


class MissingExtra(OvsError):  # noqa: N818
    """An optional package that is needed and not installed."""


class DownloadError(OvsError):
    """A download that failed or does not have the expected checksum."""

    exit_code = 1


class SaveError(OvsError):
    """A result that could not be written."""

    exit_code = 1
