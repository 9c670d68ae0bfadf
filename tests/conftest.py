"""--nibble: the binary under test, build/nibble unless named (a sanitizer's build, an installed one)."""

import os
import pathlib

import pytest

from server_process import ROOT, ServerProcess

os.environ["NO_PROXY"] = "localhost,127.0.0.1"
for variable in ("VLLM_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
    os.environ.pop(variable, None)


def pytest_addoption(parser):
    parser.addoption("--nibble", default=str(ROOT / "build" / "nibble"), help="the binary under test")


@pytest.fixture(scope="session")
def nibble(request):
    path = pathlib.Path(request.config.getoption("--nibble")).resolve()
    assert path.exists(), f"{path} is missing: make build"
    return path


def servers(nibble, folder):
    """A function that starts servers; at the end all must stop cleanly, those too that ended by themselves."""
    started = []

    def start(*arguments, **options):
        started.append(ServerProcess(nibble, folder / f"server-{len(started)}.log", *arguments, **options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def serve(nibble, tmp_path):
    yield from servers(nibble, tmp_path)


@pytest.fixture(scope="module")
def module_serve(nibble, tmp_path_factory):
    yield from servers(nibble, tmp_path_factory.mktemp("servers"))


@pytest.fixture(scope="session")
def server(nibble, tmp_path_factory):
    """The pocket model with all defaults, shared by all tests that leave it as it was."""
    started = ServerProcess(nibble, tmp_path_factory.mktemp("server") / "server.log")
    yield started
    started.stop()


@pytest.fixture(scope="session")
def client(server):
    return server.openai()


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id
