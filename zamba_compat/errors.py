"""The errors this package raises. Each one says what is wrong, where, and what to do about it."""

from __future__ import annotations


class ZambaCompatError(Exception):
    """Base of every error raised by this package.

    Args:
        what: the fault, one sentence.
        where: the file, tensor, key or release it was found in.
        remedy: what the reader can do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        message = what if where is None else f"{where}: {what}"
        super().__init__(message if remedy is None else f"{message} {remedy}")


class ConfigError(ZambaCompatError, ValueError):
    """A config that describes no Zamba or Zamba2 model, contradicts itself, or asks for what such a model lacks."""


class CheckpointError(ZambaCompatError, ValueError):
    """A checkpoint whose tensors do not make up the model its config describes."""


class MissingTensorError(CheckpointError):
    """Shared tensors of which the checkpoint holds no copy anywhere."""


class DivergentCopiesError(CheckpointError):
    """Copies of one shared tensor that are present and different, where they were required to be equal."""


class DestinationError(ZambaCompatError):
    """A destination that cannot take a checkpoint: not empty, in use, read-only, full, or the source itself."""


class PackedSamplesError(ZambaCompatError, ValueError):
    """Samples packed into one row in a way that a release or an attention implementation would mix up."""


class AdapterError(ZambaCompatError):
    """An adapter that cannot be applied, or whose target is not what a tested release has.

    No RuntimeError: lazily importing modules turn one into ModuleNotFoundError and bury the message.
    """


class UnverifiedReleaseError(ZambaCompatError):
    """In a library release that was not tested, what was loaded, saved or computed is wrong."""


class UnsupportedReleaseError(ZambaCompatError, ImportError):
    """A library release this package has no adapters for, and that is not right without them."""
