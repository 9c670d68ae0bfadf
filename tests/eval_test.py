"""`nibble eval` on the first 16 problems of every family: within two problems of the reference in FP32 arithmetic."""

import json
import subprocess

import pytest

PROBLEMS = 16
TOLERANCE = 2  # of problems right; near-ties fall differently in BF16

# eval_reference.py models/pocket --no-lm --tasks --n 16 (tools has up to two turns a problem)
ALL_RIGHT = "add sub mul div bases weekday date clock listops taller extract needle story_qa memory chat define facts"
RIGHT = dict.fromkeys(ALL_RIGHT.split(), 16) | {
    "compare": 14,
    "units": 13,
    "sequence": 15,
    "sort": 10,
    "spell": 15,
    "copy": 15,
    "word_problem": 15,
    "where": 10,
    "table": 4,
    "program": 4,
    "tools": 27,
    "needle_long": 10,
}


@pytest.fixture(scope="module")
def scores(nibble, tmp_path_factory):
    path = tmp_path_factory.mktemp("eval") / "scores.json"
    command = [str(nibble), "eval", "--problems", str(PROBLEMS), "--json", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(path.read_text())["families"]


def test_families(scores):
    assert scores.keys() == RIGHT.keys()
    assert all(score["of"] == (27 if family == "tools" else PROBLEMS) for family, score in scores.items())


@pytest.mark.parametrize("family", RIGHT)
def test_score(scores, family):
    assert abs(scores[family]["right"] - RIGHT[family]) <= TOLERANCE
