"""`nibble quantize`: bytes against an independent implementation, what a folder contains, and bad input."""

import json
import shutil
import subprocess

import numpy as np
import pytest

import quantized_reference as reference
from server_process import ROOT

POCKET = ROOT / "models" / "pocket"
LAYERS = 6  # of the pocket model; what follows is its MTP layer


def run(nibble, *arguments):
    return subprocess.run([str(nibble), "quantize", *map(str, arguments)], capture_output=True, text=True, timeout=600)


def expect_error(nibble, *arguments):
    """The single line on stderr of a run that must fail, leaving nothing at its target."""
    result = run(nibble, *arguments)
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def source():
    return reference.tensors_of(POCKET)


@pytest.fixture(scope="module")
def rtn(nibble, tmp_path_factory):
    target = tmp_path_factory.mktemp("quantized") / "rtn"
    result = run(nibble, POCKET, target, "--recipe", "rtn")
    assert result.returncode == 0, result.stderr
    return target


def test_rtn_is_modelopts_arithmetic_bit_for_bit(rtn, source):
    made = reference.tensors_of(rtn)
    linears = {k: v for k, v in reference.tensor_scales(source).items() if int(k.split(".")[2]) < LAYERS}
    assert len(linears) == 288
    for name, scale in linears.items():
        codes, scales = reference.nvfp4(source[name + ".weight"], scale)
        assert made[name + ".weight_scale_2"] == scale, name
        assert np.array_equal(made[name + ".weight_scale"], scales), name
        assert np.array_equal(made[name + ".weight"], codes), name


def test_all_else_is_copied(rtn, source):
    made = reference.tensors_of(rtn)
    quantized = {k.removesuffix("_scale_2") for k in made if k.endswith(".weight_scale_2")}
    for name, values in source.items():
        if name not in quantized:
            assert np.array_equal(made[name], values), name
    assert made.keys() == source.keys() | {k + s for k in quantized for s in ("_scale", "_scale_2")}


def test_folder_has_what_engines_look_for(rtn):
    config = json.loads((rtn / "config.json").read_text())
    assert config["quantization_config"]["quant_algo"] == "W4A16_NVFP4"
    assert config["quantization_config"]["quant_method"] == "modelopt"
    described = json.loads((rtn / "hf_quant_config.json").read_text())["quantization"]
    assert described["group_size"] == 16 and described["kv_cache_quant_algo"] is None
    assert {"lm_head", "model.layers.1.mlp.gate", "model.layers.6*"} <= set(described["exclude_modules"])
    index = json.loads((rtn / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(reference.tensors_of(rtn))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (rtn / name).read_bytes() == (POCKET / name).read_bytes()


def test_quantized_sources_are_refused(nibble, rtn, tmp_path):
    assert "is quantized already" in expect_error(nibble, rtn, tmp_path / "again", "--recipe", "rtn")


def test_existing_target_is_refused(nibble, tmp_path):
    assert "is there already" in expect_error(nibble, POCKET, tmp_path, "--recipe", "rtn")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--recipe", "magic"], "--recipe magic: is not known; there are best, awq-lite, rtn"),
        (["--exclude", "*.nothing"], "--exclude *.nothing: matches no linear"),
        (["--fp8", "*.q_a_proj"], "takes only one of model.layers.0.self_attn.q_a_proj and"),
        (["--format", "gguf"], "--format gguf"),
        (["--lm-head", "int4"], "--lm-head int4"),
        (["--resume"], "nothing to go on with"),
    ],
)
def test_wrong_flags_are_named(nibble, tmp_path, flags, message):
    assert message in expect_error(nibble, POCKET, tmp_path / "made", "--recipe", "rtn", *flags)
    assert not list(tmp_path.iterdir())


def changed_model(folder, change):
    """A copy of the pocket model whose tensors' bytes `change(name, bytes)` may replace or (None) drop."""
    folder.mkdir()
    for path in POCKET.glob("*.json"):
        if "index" not in path.name and "goldens" not in path.name:
            shutil.copy(path, folder)
    for path in sorted(POCKET.glob("model*.safetensors")):
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header, body = {}, b""
        for name, entry in json.loads(data[8 : 8 + size]).items():
            if name == "__metadata__":
                continue
            begin, end = (8 + size + x for x in entry["data_offsets"])
            new = change(name, data[begin:end])
            if new is None:
                continue
            header[name] = entry | {"data_offsets": [len(body), len(body) + len(new)]}
            body += new
        text = json.dumps(header).encode()
        (folder / path.name).write_bytes(len(text).to_bytes(8, "little") + text + body)
    return folder


LINEAR = "model.layers.2.self_attn.q_b_proj"


@pytest.mark.parametrize("value, bits", [("NaN", b"\xc0\x7f"), ("infinity", b"\x80\x7f")])
def test_weights_that_are_not_finite_are_named(nibble, tmp_path, value, bits):
    broken = changed_model(tmp_path / "broken", lambda k, b: bits + b[2:] if k == LINEAR + ".weight" else b)
    assert LINEAR in expect_error(nibble, broken, tmp_path / "made", "--recipe", "rtn")
    assert not list(tmp_path.glob("made*"))


def test_missing_tensor_is_named(nibble, tmp_path):
    broken = changed_model(tmp_path / "broken", lambda k, b: None if k == LINEAR + ".weight" else b)
    assert LINEAR in expect_error(nibble, broken, tmp_path / "made", "--recipe", "rtn")


def test_zero_tensor_is_written_with_scales_of_one(nibble, tmp_path):
    zeros = changed_model(tmp_path / "zeros", lambda k, b: bytes(len(b)) if k == LINEAR + ".weight" else b)
    assert run(nibble, zeros, tmp_path / "made", "--recipe", "rtn").returncode == 0
    made = reference.tensors_of(tmp_path / "made")
    assert made[LINEAR + ".weight_scale_2"] == 1
    assert (made[LINEAR + ".weight_scale"] == 0x38).all() and not made[LINEAR + ".weight"].any()
