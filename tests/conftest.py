"""--nibble: the binary under test, build/nibble unless named (a sanitizer's build, an installed one)."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def pytest_addoption(parser):
    parser.addoption("--nibble", default=str(ROOT / "build" / "nibble"), help="the binary under test")


@pytest.fixture(scope="session")
def nibble(request):
    path = pathlib.Path(request.config.getoption("--nibble")).resolve()
    assert path.exists(), f"{path} is missing: make build"
    return path
