"""`nibble plan` without a card: its table against a running server's memory, its flags."""

import pathlib
import re
import subprocess

import pytest

from server_process import PATIENCE_S, ROOT

MIB = 1 << 20


def plan(nibble, *arguments):
    return subprocess.run(
        [str(nibble), "plan", *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_S
    )


def rows_of(text):
    """Bytes by the name of a piece."""
    found = re.findall(r"^[A-Z.] (.+?) +(-?\d+) MiB$", text, re.M)
    return {name: int(number) * MIB for name, number in found}


def resident_bytes(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


@pytest.mark.parametrize("model", ["pocket", "pocket-modelopt"])
def test_a_server_at_rest_takes_what_the_plan_says(nibble, serve, model):
    folder = ROOT / "models" / model
    result = plan(nibble, folder, "--device", "cpu", "--memory", "4GiB")
    assert result.returncode == 0, result.stderr
    rows = rows_of(result.stdout)
    server = serve(folder, "--device", "cpu")
    # Of the rows that stay in the file only those that were read are resident; the activations and
    # the workspace come with the first step.
    least = rows["weights"] + rows["program"]
    most = least + rows["rows read as stored"]
    slack = 0.02 * rows["weights"] + 6 * MIB  # the program's own memory differs by machine
    assert least - slack < resident_bytes(server.process.pid) < most + slack
    assert sum(rows.values()) == pytest.approx(4 << 30, abs=8 * MIB)


def test_the_longest_context_is_what_the_cache_holds(nibble):
    flags = ["glm-4.7-flash-reap-23b", "--load-format", "dummy", "--device", "cpu"]
    result = plan(nibble, *flags, "--memory", "16GiB")
    assert result.returncode == 0, result.stderr
    cache = rows_of(result.stdout)["cache"]
    tokens = int(re.search(r"^bfloat16 +(\d+)", result.stdout, re.M)[1])
    assert tokens * 47 * 576 * 2 == pytest.approx(cache, rel=0.01)
    result = plan(nibble, *flags, "--memory", "12GiB")
    assert result.returncode == 1
    assert re.search(r"does not fit: \d+ MiB are missing", result.stdout)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--device", "cpu", "--gpu-memory", "16GB"], ["--gpu-memory", "--memory"]),
        (["--device", "cuda", "--memory", "16GB"], ["--memory", "--gpu-memory"]),
        (["--device", "cpu", "--memory", "much"], ["--memory much", "16GB"]),
    ],
)
def test_a_size_of_the_wrong_machine_is_refused(nibble, flags, words):
    result = plan(nibble, *flags)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    for word in words:
        assert word in result.stderr


def test_memory_alone_means_a_machine_without_a_card(nibble):
    assert "without a card, in 4096 MiB" in plan(nibble, "--memory", "4GiB").stdout
    assert "on a card of 4096 MiB" in plan(nibble, "--gpu-memory", "4GiB").stdout
