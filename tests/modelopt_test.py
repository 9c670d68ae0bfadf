"""The pocket model as ModelOpt exports it, served with the two configurations that are published for such checkpoints."""

import json

import pytest

from server_process import ROOT

MODEL = ROOT / "models" / "pocket-modelopt"
NEAR_TIE = 0.5  # of two logits: rounding inputs to BF16 may choose the other
CONFIGURATIONS = {
    "eight at once": "--kv-cache-dtype auto --max-model-len 4928 --max-num-seqs 8 --max-num-batched-tokens 512",
    "one long": "--kv-cache-dtype fp8_e4m3 --max-model-len 11728 --max-num-seqs 1 --max-num-batched-tokens 256 "
    "--num-gpu-blocks-override 733",
}
COMMON = (
    "--quantization modelopt --trust-remote-code --dtype bfloat16 --no-enable-prefix-caching --enable-chunked-prefill "
    "--enforce-eager --reasoning-parser deepseek_r1"
)


def goldens():
    return [case for case in json.loads((MODEL / "goldens.json").read_text()) if case["arithmetic"] == "w4a16"]


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def server(request, module_serve):
    server = module_serve(MODEL, *CONFIGURATIONS[request.param].split(), *COMMON.split())
    server.loses = request.param == "one long"  # an FP8 cache
    return server


def test_the_length_is_clipped_with_a_warning(server):
    assert "over the model's 4096 positions: clipped" in server.log()


def test_greedy_answers_are_those_of_the_reference(server):
    equal = 0
    for case in goldens():
        request = {"prompt": case["input_ids"], "temperature": 0, "max_tokens": 32, "logprobs": 0}
        answer = server.answer("/v1/completions", request | {"return_token_ids": True})
        ids, want = answer["choices"][0]["token_ids"], case["greedy_ids"]
        same = next((i for i, (a, b) in enumerate(zip(ids, want)) if a != b), min(len(ids), len(want)))
        equal += same
        if not server.loses and same < len(ids):
            assert case["gap"][same] < NEAR_TIE, case["family"]
    assert equal > 0.9 * sum(len(case["greedy_ids"]) for case in goldens())


def test_thoughts_are_told_from_answers(server):
    message = server.answer(
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "What is the sum of 948 and 7?"}], "temperature": 0},
    )["choices"][0]["message"]
    assert message["content"] == "955"
    assert message["reasoning"]
