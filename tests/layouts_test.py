"""Every layout of a quantized checkpoint: read to the exact values, and served."""

import subprocess

import numpy as np
import pytest

import layouts
from command_line_test import check_error, run
from pocket_cases import SUM


def everywhere(quantize):
    return lambda name, w: quantize(w) if layouts.is_linear(name + ".weight") else None


def modelopt(algorithm, exclude=("lm_head",), **more):
    return {"quant_method": "modelopt", "quant_algo": algorithm, "ignore": list(exclude), **more}


def hf(algorithm, **more):
    return {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm, **more}}


def compressed(weights, ignore, kind):
    group = {"targets": ["Linear"], "weights": weights}
    ignored = {"ignore": ignore, "format": kind}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, **ignored}


def awq(name, w):
    """As ModelOpt leaves it: explicit scales but where the exporter folds them into the norm before."""
    if not layouts.is_linear(name + ".weight"):
        return None
    if "q_a_proj" in name or "kv_a_proj" in name or "layers.0.mlp" in name:
        return layouts.nvfp4(w, input_scale=0.01)
    shared_input = name.replace("up_proj", "gate_proj")
    return layouts.nvfp4_awq(w, seed=list(shared_input.encode()))


def mixed(name, w):
    if "q_a_proj" in name or "kv_a_proj" in name:
        return layouts.fp8(w)
    if "experts" in name or "q_b_proj" in name:
        return awq(name, w)
    return layouts.nvfp4(w) if "mlp." in name and layouts.is_linear(name + ".weight") else None


def mixed_layers():
    algorithms = {}
    for name, tensor in layouts.pocket_tensors().items():
        module = name.removesuffix(".weight")
        if len(tensor.shape) == 2 and (result := mixed(module, layouts.values(tensor))):
            fp8 = result[0]["weight"].dtype == "F8_E4M3"
            awq_scale = "pre_quant_scale" in result[0]
            algorithms[module] = {"quant_algo": "FP8" if fp8 else "NVFP4_AWQ" if awq_scale else "NVFP4"}
    return algorithms


def with_embedding(name, w):
    """All linears, and the head and the table too; the table's scale is a product of two."""
    if name == "model.embed_tokens":
        tensors, decoded = layouts.nvfp4(w, input_scale=0.5)
        codes, scale, scale2 = layouts.nvfp4_parts(w)
        return tensors, layouts.nvfp4_values(codes, scale, scale2 * np.float32(0.5))
    return layouts.nvfp4(w) if name == "lm_head" else everywhere(layouts.nvfp4)(name, w)


def experts_only(name, w):
    return layouts.nvfp4_compressed(w) if "mlp" in name and layouts.is_linear(name + ".weight") else None


def int4_in_groups_of(group):
    return lambda name, w: layouts.int4(w, group) if layouts.is_linear(name + ".weight") and w.shape[1] % group == 0 else None


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "symmetric": True}
FP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
ATTENTION = ["lm_head", "re:.*self_attn.*", "re:.*mlp\\.gate$"]
CASES = {  # quantize, quantization_config, hf_quant_config, linears of 288
    "NVFP4": (everywhere(lambda w: layouts.nvfp4(w, 0.01)), modelopt("NVFP4"), hf("NVFP4", group_size=16), 288),
    "NVFP4_AWQ": (awq, modelopt("NVFP4_AWQ"), hf("NVFP4_AWQ", pre_quant_scale=True), 288),
    "W4A16_NVFP4": (everywhere(layouts.nvfp4), None, hf("W4A16_NVFP4", exclude_modules=["lm_head"]), 288),
    "FP8": (everywhere(layouts.fp8), modelopt("FP8"), None, 288),
    "MIXED_PRECISION": (
        mixed,
        modelopt("MIXED_PRECISION", ()),
        lambda: hf("MIXED_PRECISION", quantized_layers=mixed_layers()),
        276,
    ),
    "nvfp4-pack-quantized": (experts_only, compressed(FP4, ATTENTION, "nvfp4-pack-quantized"), None, 258),
    "pack-quantized, 32": (
        int4_in_groups_of(32),
        compressed(INT4 | {"group_size": 32}, ["lm_head"], "pack-quantized"),
        None,
        288,
    ),
    "pack-quantized, 128": (  # the experts' down_proj have 64 columns
        int4_in_groups_of(128),
        compressed(INT4 | {"group_size": 128}, ["lm_head", "re:.*experts.*down_proj"], "pack-quantized"),
        None,
        203,
    ),
    "embedding and head": (with_embedding, None, hf("NVFP4", nvfp4_embed=True), 290),
    "without a label": (everywhere(layouts.nvfp4), None, None, 288),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    quantize, config, hf_config, count = CASES[request.param]
    folder = tmp_path_factory.mktemp("layouts") / "model"
    decoded, quantized = layouts.write_model(
        folder, quantize, config, hf_config() if callable(hf_config) else hf_config
    )
    assert quantized == count
    return folder, decoded


def test_weights_are_decoded_exactly(nibble, case, tmp_path):
    folder, decoded = case
    program = nibble.parent / "tests" / "decode_weights"
    listing = subprocess.run([program, folder, tmp_path / "rows"], check=True, capture_output=True, text=True).stdout
    rows, at = np.fromfile(tmp_path / "rows", np.float32), 0
    for line in listing.splitlines():
        name, shape = line.split()[0], tuple(map(int, line.split()[1:]))
        count = shape[0] * shape[1]
        want = layouts.stacked(decoded, name)
        assert want.shape == shape, name
        assert np.array_equal(rows[at : at + count].reshape(shape), want), name
        at += count
    assert at == len(rows)


def test_served(serve, case):
    answer = serve(case[0]).answer("/v1/chat/completions", {"messages": SUM.messages, "temperature": 0})
    assert answer["choices"][0]["message"]["content"] == SUM.content


def test_labels_that_the_tensors_contradict(nibble, tmp_path):
    linear = everywhere(layouts.nvfp4)
    for i, (quantize, config, *words) in enumerate(
        [
            (linear, modelopt("FP8"), "stored as NVFP4", "says FP8"),
            (linear, modelopt("NVFP4", ["model.layers.2.self_attn*"]), "layers.2.self_attn", "excludes it"),
            (lambda name, w: None, modelopt("NVFP4"), "stored as BF16", "says NVFP4"),
            (int4_in_groups_of(32), compressed(INT4 | {"group_size": 128}, [], "pack-quantized"), "group_size 128"),
        ]
    ):
        folder = tmp_path / str(i)
        layouts.write_model(folder, quantize, config)
        check_error(run(nibble, "serve", folder, "--host", "192.0.2.1", "--port", 1), "config.json", *words)
