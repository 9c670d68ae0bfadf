"""`--dry-run` of quantize and prune against what a run takes: anonymous memory, disk, bytes written."""

import pathlib
import re
import subprocess
import time

import pytest

from server_process import ROOT
from synthetic_checkpoint import small_widths, write_checkpoint

CALIBRATION = ["--calibration", ROOT / "models" / "pocket" / "eval" / "calibration.jsonl", "--samples", 16]
TOLERANCE = 0.1
UNITS = {"MB": 10**6, "GB": 10**9}
CASES = {
    "rtn": ["quantize", "--recipe", "rtn"],
    "awq-lite": ["quantize", "--recipe", "awq-lite", *CALIBRATION],
    "best": ["quantize", *CALIBRATION],
    "prune": ["prune", "--experts", 12, *CALIBRATION],
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    synthetic = tmp_path_factory.mktemp("synthetic") / "model"
    write_checkpoint(synthetic, small_widths(), layers=2)
    return {"pocket": ROOT / "models" / "pocket", "synthetic": synthetic}


def command_line(nibble, case, source, target, *flags):
    verb, *rest = CASES[case]
    return [str(x) for x in (nibble, verb, source, target, *rest, *flags)]


def dry_run(command):
    """Rows of the table, by what they begin with: a list of bytes each."""
    result = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    rows = {}
    for line in result.stdout.splitlines()[1:]:
        sizes = [float(x) * UNITS[unit] for x, unit in re.findall(r"([\d.]+) (MB|GB)", line)]
        rows.setdefault(line.split()[0], []).append(sizes[0])
    return rows


def measured_run(command):
    """The most anonymous memory that a run held, and the bytes that it wrote."""
    process, memory, written = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), 0, 0
    folder = pathlib.Path(f"/proc/{process.pid}")
    while process.poll() is None:
        found = re.search(r"RssAnon:\s+(\d+) kB", (folder / "status").read_text())
        if found:  # not yet ended
            memory = max(memory, int(found.group(1)) * 1024)
            written = int(re.search(r"wchar: (\d+)", (folder / "io").read_text()).group(1))
        time.sleep(0.002)
    assert process.returncode == 0
    return memory, written


def close(said, taken):
    return abs(said - taken) < TOLERANCE * taken


@pytest.mark.parametrize("case, source", [*((case, "pocket") for case in CASES), ("best", "synthetic"), ("prune", "synthetic")])
def test_dry_run_holds(nibble, sources, case, source, tmp_path):
    command = command_line(nibble, case, sources[source], tmp_path / "made")
    said = dry_run(command)
    assert not list(tmp_path.iterdir())
    memory, written = measured_run(command)
    assert close(said["memory"][0], memory), f"said {said}, took {memory}"
    assert close(said["disk"][0], sum(path.stat().st_size for path in (tmp_path / "made").glob("*.safetensors")))
    assert close(said["writes"][0], written), f"said {said}, wrote {written}"


def test_spilled_activations_are_disk_instead_of_memory(nibble, tmp_path):
    pocket = ROOT / "models" / "pocket"
    command = command_line(nibble, "best", pocket, tmp_path / "made")
    # What the process itself holds varies by more than the difference is known to: the least of some.
    memory, spilled = (
        min((dry_run([*command, *flags]) for _ in range(5)), key=lambda rows: rows["memory"][0]) for flags in ([], ["--spill", str(tmp_path)])
    )
    assert len(spilled["disk"]) == 2 and spilled["memory"][0] < memory["memory"][0]
    in_memory = memory["memory"][0] - spilled["memory"][0]
    assert abs(in_memory - spilled["disk"][1]) < 2e5  # as printed
    taken, written = measured_run([*command, "--spill", str(tmp_path)])
    assert close(spilled["memory"][0], taken), f"said {spilled}, took {taken}"
    assert close(spilled["writes"][0], written), f"said {spilled}, wrote {written}"


def test_dry_run_refuses_what_a_run_refuses(nibble, tmp_path):
    pocket = ROOT / "models" / "pocket"
    result = subprocess.run([*command_line(nibble, "rtn", pocket, tmp_path), "--dry-run"], capture_output=True, text=True)
    assert result.returncode == 1 and "is there already" in result.stderr
