"""`nibble eval --dtype float32` on a part of the pocket model's data: the numbers of eval_reference.py --act off."""

import json

import pytest

import layouts
from command_line_test import check_error, run
from server_process import POCKET, ROOT

MODELOPT = ROOT / "models" / "pocket-modelopt"
CONVERSATIONS = 24
PROSE_CHARACTERS = 4200  # two chunks of 512 tokens, and a rest

# eval_reference.py of the ModelOpt export, --base models/pocket --act off, on the files that `data` writes.
REFERENCE = {
    "chat": {"tokens": 1114, "ppl": 1.046503490678498, "base_ppl": 1.039225688683271, "kl": 0.004483960762131827,
             "kl_se": 0.0028807431755838516, "top1": 0.9910233393177738},
    "perplexity": {"tokens": 1024, "ppl": 260.7293298979753, "base_ppl": 251.76221436911453, "kl": 0.23288754659022265,
                   "kl_se": 0.010609988271426509, "top1": 0.7138671875},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The first conversations and the beginning of the prose."""
    folder = tmp_path_factory.mktemp("data")
    lines = (POCKET / "eval" / "chat.jsonl").read_text().splitlines(keepends=True)
    (folder / "chat.jsonl").write_text("".join(lines[:CONVERSATIONS]))
    (folder / "prose.txt").write_text((POCKET / "eval" / "prose.txt").read_text()[:PROSE_CHARACTERS])
    return folder


def evaluate(nibble, folder, *arguments):
    result = run(nibble, "eval", *arguments, "--json", folder / "out.json")
    assert result.returncode == 0, result.stderr.decode()
    return json.loads((folder / "out.json").read_text()), result.stdout.decode()


@pytest.fixture(scope="module")
def both(nibble, data):
    """The export judged, and the BF16 model itself beside it."""
    texts = ["--chat", data / "chat.jsonl", "--perplexity", data / "prose.txt"]
    models = [MODELOPT, "--base", POCKET, "--compare", POCKET]
    return evaluate(nibble, data, *models, *texts, "--dtype", "float32")


@pytest.mark.parametrize("text", REFERENCE)
def test_numbers_are_the_reference_s(both, text):
    got, want = both[0][text], REFERENCE[text]
    assert got["tokens"] == want["tokens"]
    assert got["ppl"] == pytest.approx(want["ppl"], rel=1e-4)
    assert got["base_ppl"] == pytest.approx(want["base_ppl"], rel=1e-4)
    assert got["kl"] == pytest.approx(want["kl"], rel=0.005, abs=1e-5)
    assert got["kl_se"] == pytest.approx(want["kl_se"], rel=0.005, abs=1e-5)
    assert got["top1"] == pytest.approx(want["top1"], abs=1.5 / want["tokens"])


@pytest.mark.parametrize("text", REFERENCE)
def test_a_model_beside_another(both, text):
    """The base itself diverges by nothing, and the differences are those of the means."""
    scores = both[0]
    own, other, difference = scores[text], scores["compare"][text], scores["difference"][text]
    assert other["kl"] == 0 and other["top1"] == 1
    assert other["ppl"] == own["base_ppl"]
    assert difference["kl"] == pytest.approx(-own["kl"]) and difference["kl_se"] == pytest.approx(own["kl_se"])
    assert difference["nll"] == pytest.approx(other["nll"] - own["nll"])
    assert 0 < difference["nll_se"] < own["nll_se"] + other["nll_se"]


def test_tables_for_people(both):
    assert "chat, 1114 tokens" in both[1] and "prose, 1024 tokens" in both[1]
    assert "KL from the base" in both[1] and "difference" in both[1]


def test_bf16_products_are_near(nibble, data):
    scores, _ = evaluate(nibble, data, POCKET, "--chat", data / "chat.jsonl")
    assert scores["chat"]["ppl"] == pytest.approx(REFERENCE["chat"]["base_ppl"], rel=0.01)
    assert "kl" not in scores["chat"]


def test_problems_side_by_side(nibble, data):
    arguments = ["--compare", MODELOPT, "--problems", 6, "--families", "add,spell"]
    scores, text = evaluate(nibble, data, POCKET, *arguments)
    own, other = scores["families"], scores["compare"]["families"]
    assert own.keys() == other.keys() == {"add", "spell"}
    assert own["add"] == {"right": 6, "of": 6}
    bits = [scores["compare"]["problems"][key] - bit for key, bit in scores["problems"].items()]
    assert scores["difference"]["mean_percent"] == pytest.approx(100 * sum(bits) / len(bits))
    assert "mean of families" in text


BAD_LINES = {
    "no JSON": ("{", "must be an object"),
    "no spans": ('{"ids": [1, 2]}', '"spans"'),
    "an id too large": ('{"ids": [1, 6144], "spans": [[1, 2]]}', "0 to 6143"),
    "a word as id": ('{"ids": ["a"], "spans": []}', "whole numbers"),
    "a span from the first token": ('{"ids": [1, 2], "spans": [[0, 1]]}', "0 < a < b"),
    "a span beyond the end": ('{"ids": [1, 2], "spans": [[1, 3]]}', "0 < a < b"),
    "a span of three": ('{"ids": [1, 2, 3], "spans": [[1, 2, 3]]}', "0 < a < b"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_lines(nibble, data, tmp_path, name):
    line, *words = BAD_LINES[name]
    good = (data / "chat.jsonl").read_text().splitlines()[0]
    (tmp_path / "bad.jsonl").write_text(f"{good}\n\n{line}\n")
    check_error(run(nibble, "eval", POCKET, "--chat", tmp_path / "bad.jsonl"), "bad.jsonl:3: ", *words)


def test_bad_files(nibble, tmp_path):
    def refuse(flag, content, *words):
        path = tmp_path / "file"
        path.write_bytes(content)
        check_error(run(nibble, "eval", POCKET, flag, path), path, *words)

    refuse("--perplexity", b"too short", "at least 512")
    refuse("--perplexity", b"\xff" * 5000, "UTF-8")
    refuse("--chat", b'{"ids": [1], "spans": []}\n', "counts no token")
    refuse("--chat", json.dumps({"ids": [5] * 4097, "spans": [[1, 2]]}).encode(), "4096 positions")
    refuse("--tasks", b'{"id": "a/0", "family": "a", "prompt": "b", "answer": "c", "score": "best"}', "exact or json")
    for flag in ("--perplexity", "--chat", "--tasks"):
        check_error(run(nibble, "eval", POCKET, flag, tmp_path / "missing"), "missing", "cannot be read")


def test_models_that_do_not_fit_together(nibble, data, tmp_path):
    check_error(run(nibble, "eval", POCKET, "--base", MODELOPT), "--base", "--chat or --perplexity")
    tensors = layouts.pocket_tensors()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = layouts.Stored("BF16", [6000, 256], tensors[name].data[: 6000 * 256 * 2])
    layouts.write_safetensors(tmp_path / "model.safetensors", tensors)
    config = json.loads((POCKET / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 6000, "eos_token_id": 1}))
    result = run(nibble, "eval", POCKET, "--base", tmp_path, "--chat", data / "chat.jsonl")
    check_error(result, f"--base {tmp_path}", "vocab_size 6000", "6144")
