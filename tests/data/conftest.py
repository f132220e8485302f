"""A cache and a TFDS folder of each test's own, and no network."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lira_jax.data import images


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache and a TFDS folder of this test's own, and no network."""
    tried: list[Any] = []

    def refuse(*target: Any, **_: Any) -> None:
        tried.append(target)
        raise OSError("no network here")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield tmp_path / "cache" / "lira_jax" / "datasets"
    assert not tried  # also where a library swallowed the error


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The places of the images decoded so far."""
    places: list[str] = []
    original = images._pixels

    def counted(image: Any, shape: images.Shape, place: str) -> np.ndarray:
        places.append(place)
        return original(image, shape, place)

    monkeypatch.setattr(images, "_pixels", counted)
    return places
