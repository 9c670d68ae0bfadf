"""`nibble prune`: what is kept is kept as it was, routers follow, and REAP keeps more than frequency."""

import json
import re
import subprocess

import numpy as np
import pytest

import quantized_reference as reference
from server_process import ROOT

POCKET = ROOT / "models" / "pocket"
SAMPLES = 64  # enough to tell the experts apart


def run(nibble, *arguments):
    return subprocess.run([str(nibble), "prune", *map(str, arguments)], capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def source():
    return reference.tensors_of(POCKET)


@pytest.fixture(scope="module", params=["reap", "frequency"])
def pruned(request, nibble, tmp_path_factory):
    target = tmp_path_factory.mktemp("pruned") / request.param
    result = run(nibble, POCKET, target, "--experts", 12, "--method", request.param, "--samples", SAMPLES)
    assert result.returncode == 0, result.stderr
    return target


def test_experts_are_renumbered_and_routers_follow(pruned, source):
    made = reference.tensors_of(pruned)
    layers = json.loads((pruned / "pruning_report.json").read_text())["layers"]
    assert [layer["layer"] for layer in layers] == list(range(6))
    for layer in layers[1:]:
        prefix, kept = f"model.layers.{layer['layer']}.mlp.", layer["kept"]
        assert len(kept) == 12 and kept == sorted(kept)
        best = sorted(np.argsort(-np.array(layer["saliency"]), kind="stable")[:12])
        assert kept == best
        for part in ("gate.weight", "gate.e_score_correction_bias"):
            assert np.array_equal(made[prefix + part], source[prefix + part][kept])
        for new, old in enumerate(kept):
            for linear in ("gate_proj", "up_proj", "down_proj"):
                assert np.array_equal(
                    made[f"{prefix}experts.{new}.{linear}.weight"], source[f"{prefix}experts.{old}.{linear}.weight"]
                )
        assert prefix + "experts.12.gate_proj.weight" not in made


def test_all_else_is_copied(pruned, source):
    made = reference.tensors_of(pruned)
    for name, values in source.items():
        if ".experts." not in name and ".mlp.gate." not in name and not name.startswith("model.layers.6."):
            assert np.array_equal(made[name], values), name
    config = json.loads((pruned / "config.json").read_text())
    assert config["n_routed_experts"] == 12 and config["num_nextn_predict_layers"] == 0


def test_wrong_numbers_are_refused(nibble, tmp_path):
    for experts in (3, 17):
        result = run(nibble, POCKET, tmp_path / "made", "--experts", experts)
        assert result.returncode == 1 and "must be between 4 (chosen for each token) and 16" in result.stderr
    assert not list(tmp_path.iterdir())


def test_pruned_and_quantized_model_is_served(nibble, serve, pruned, tmp_path):
    """With its cache in FP8 where the checkpoint asks for that: half the bytes, twice the blocks."""
    target, cache = tmp_path / "made", ["--kv-cache-memory-bytes", "16777216"]
    command = [nibble, "quantize", pruned, target, "--recipe", "rtn", "--kv-cache-dtype", "fp8"]
    assert subprocess.run([str(x) for x in command], capture_output=True, timeout=60).returncode == 0

    def blocks(*flags):
        server = serve(target, "--served-model-name", "pruned", *cache, *flags)
        question = {"role": "user", "content": "What is 2 + 3?"}
        answer = server.answer(
            "/v1/chat/completions", {"model": "pruned", "messages": [question], "temperature": 0, "max_tokens": 64}
        )
        assert answer["usage"]["completion_tokens"] > 1
        text = server.http.get("/metrics").text
        return int(re.search(r'num_gpu_blocks="(\d+)"', text).group(1)), answer["choices"][0]["message"]["content"]

    (fp8, answer), (bf16, _) = blocks(), blocks("--kv-cache-dtype", "bfloat16")
    assert fp8 == pytest.approx(2 * bf16, abs=2)
    assert "5" in answer
