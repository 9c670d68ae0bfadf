"""The pocket model's training samples stay the same byte for byte: they define its test problems and goldens."""

import hashlib
import json
import pathlib
import sys

import pytest

TOOLS = pathlib.Path(__file__).parent.parent / "models" / "pocket" / "tools"
sys.path.insert(0, str(TOOLS))
import gen  # noqa: E402

HASHES = json.loads((pathlib.Path(__file__).parent / "golden" / "pocket_samples.json").read_text())
SAMPLES = {"train": 2000, "test": 100}  # a test sample costs 32 tries


def digest(family, split):
    """Covers the sample, its rendering with the trained spans, and the prompts of its scored turns."""
    sha = hashlib.sha256()
    for i in range(SAMPLES[split]):
        s = gen.make(family, i, 7, split)
        whole = [s, gen.segments(s), [gen.prompt(s, turn) for turn in s["train"]]]
        sha.update(json.dumps(whole, ensure_ascii=False).encode())
    return sha.hexdigest()


def test_families():
    assert sorted({key.split("/")[0] for key in HASHES}) == sorted(gen.FAMILIES)


@pytest.mark.parametrize("family", gen.FAMILIES)
@pytest.mark.parametrize("split", SAMPLES)
def test_samples(family, split):
    assert digest(family, split) == HASHES[f"{family}/{split}"]


@pytest.mark.parametrize("family", gen.FAMILIES)
def test_self_check(family):
    for split in SAMPLES:
        for i in range(20):
            gen.check(gen.make(family, i, 1, split))
