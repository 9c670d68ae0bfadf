"""`nibble quantize`: bytes against an independent implementation, what a folder contains, and bad input."""

import json
import re
import shutil
import subprocess
import time

import numpy as np
import pytest

import quantized_reference as reference
from server_process import ROOT

POCKET = ROOT / "models" / "pocket"
LAYERS = 6  # of the pocket model; what follows is its MTP layer
CALIBRATION = POCKET / "eval" / "calibration.jsonl"
FEW = ["--samples", 8]  # what is tested does not depend on quality


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
        (["--budget", "1"], "--budget 1: must be a percentage"),
        (["--budget", "+1%"], "which recipe rtn has not"),
    ],
)
def test_wrong_flags_are_named(nibble, tmp_path, flags, message):
    assert message in expect_error(nibble, POCKET, tmp_path / "made", "--recipe", "rtn", *flags)
    assert not list(tmp_path.iterdir())


def changed_model(folder, change):
    """A copy of the pocket model whose tensors' bytes `change(name, bytes)` may replace or (None) drop."""
    folder.mkdir()
    for path in [*POCKET.glob("*.json"), POCKET / "chat_template.jinja"]:
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


LINEAR_WEIGHT, COPIED_WEIGHT = LINEAR + ".weight", "model.layers.3.mlp.gate.weight"


@pytest.mark.parametrize("recipe", ["rtn", "best"])
@pytest.mark.parametrize("name", [LINEAR_WEIGHT, COPIED_WEIGHT])
@pytest.mark.parametrize("value, bits", [("NaN", b"\xc0\x7f"), ("infinity", b"\x80\x7f")])
def test_weights_that_are_not_finite_are_named(nibble, tmp_path, recipe, name, value, bits):
    broken = changed_model(tmp_path / "broken", lambda k, b: bits + b[2:] if k == name else b)
    flags = ["--recipe", recipe, "--calibration", CALIBRATION, *FEW]
    assert name + ": has a NaN or an infinity" in expect_error(nibble, broken, tmp_path / "made", *flags)
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


@pytest.fixture(scope="module")
def best(nibble, tmp_path_factory):
    target = tmp_path_factory.mktemp("quantized") / "best"
    result = run(nibble, POCKET, target, *FEW)
    assert result.returncode == 0, result.stderr
    return target


def test_best_is_plain_nvfp4_with_input_scales(best, source):
    made = reference.tensors_of(best)
    for name in reference.tensor_scales(source):
        if int(name.split(".")[2]) < LAYERS:
            values = reference.decode(made[name + ".weight"], made[name + ".weight_scale"], made[name + ".weight_scale_2"])
            original = source[name + ".weight"]
            assert np.linalg.norm(values - original) < 0.35 * np.linalg.norm(original), name
            assert made[name + ".input_scale"] > 0 and name + ".pre_quant_scale" not in made
    assert json.loads((best / "hf_quant_config.json").read_text())["quantization"]["quant_algo"] == "NVFP4"
    report = json.loads((best / "quantization_report.json").read_text())
    assert [layer["layer"] for layer in report["layers"]] == list(range(LAYERS))
    assert all(0 < layer["stream_error"] < 0.2 for layer in report["layers"])


def test_linears_of_one_input_share_their_scales(best):
    made = reference.tensors_of(best)
    for name in made:
        for one, other in (("q_a_proj", "kv_a_proj_with_mqa"), ("gate_proj", "up_proj")):
            if name.endswith(f"{one}.weight_scale_2"):
                assert made[name] == made[name.replace(one, other)]
                scale = name.replace("weight_scale_2", "input_scale")
                assert made[scale] == made[scale.replace(one, other)]


RECIPES = {
    "best": [],
    "all of it": ["--format", "compressed-tensors", "--embed", "nvfp4", "--lm-head", "nvfp4"],
    "awq-lite": ["--recipe", "awq-lite"],
}


@pytest.mark.parametrize("recipe, layers", [*((recipe, 1) for recipe in RECIPES), ("best", 0)])
def test_killed_run_resumes_to_the_same_bytes(nibble, tmp_path, recipe, layers):
    """Killed after so many layers; none: while the first is encoded, the tokens being weighed."""
    whole, target, flags = tmp_path / "whole", tmp_path / "made", [*FEW, *RECIPES[recipe]]
    assert run(nibble, POCKET, whole, *flags).returncode == 0
    command = [str(nibble), "quantize", str(POCKET), str(target), *map(str, flags)]
    journal = tmp_path / "made.partial" / "progress.json"
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while killed.poll() is None and not (journal.exists() and len(json.loads(journal.read_text())["layers"]) >= layers):
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert not target.exists() and len(json.loads(journal.read_text())["layers"]) >= layers
    assert "--resume" in expect_error(nibble, POCKET, target, *flags)
    weights = tmp_path / "made.partial" / "token_weights.f32"
    if weights.exists():
        kept = weights.read_bytes()
        weights.write_bytes(kept[:-1])
        assert "token_weights.f32: must hold" in expect_error(nibble, POCKET, target, *flags, "--resume")
        weights.write_bytes(kept)
    assert "needs the model and options" in expect_error(nibble, POCKET, target, *RECIPES[recipe], "--samples", 9, "--resume")
    assert run(nibble, POCKET, target, *flags, "--resume").returncode == 0
    for path in whole.iterdir():
        assert (target / path.name).read_bytes() == path.read_bytes(), path.name
    assert len(list(target.iterdir())) == len(list(whole.iterdir()))


def test_run_killed_before_its_first_layer_is_resumed(nibble, rtn, tmp_path):
    (tmp_path / "made.partial").mkdir()
    assert run(nibble, POCKET, tmp_path / "made", "--recipe", "rtn", "--resume").returncode == 0
    assert (tmp_path / "made" / "model.safetensors").read_bytes() == (rtn / "model.safetensors").read_bytes()


def test_spilling_changes_nothing(nibble, best, tmp_path):
    assert run(nibble, POCKET, tmp_path / "made", *FEW, "--spill", tmp_path).returncode == 0
    name = "model.safetensors"
    assert (tmp_path / "made" / name).read_bytes() == (best / name).read_bytes()


def test_fp8_linears_make_it_mixed_precision(nibble, source, tmp_path):
    flags = ["--fp8", "*.q_a_proj", "--fp8", "*.kv_a_proj_with_mqa", "--lm-head", "fp8", "--kv-cache-dtype", "fp8"]
    assert run(nibble, POCKET, tmp_path / "made", "--recipe", "rtn", *flags).returncode == 0
    made = reference.tensors_of(tmp_path / "made")
    described = json.loads((tmp_path / "made" / "hf_quant_config.json").read_text())["quantization"]
    assert described["quant_algo"] == "MIXED_PRECISION" and described["kv_cache_quant_algo"] == "FP8"
    name = "model.layers.3.self_attn.q_a_proj"
    assert described["quantized_layers"][name] == {"quant_algo": "FP8"}
    partner = source["model.layers.3.self_attn.kv_a_proj_with_mqa.weight"]
    scale = np.float32(max(np.abs(source[name + ".weight"]).max(), np.abs(partner).max()) / np.float32(448))
    assert made[name + ".weight_scale"] == scale
    magnitude = reference.e4m3_values()[made[name + ".weight"] & 127] * scale
    assert np.abs(magnitude - np.abs(source[name + ".weight"])).max() < 2**-4 * np.abs(source[name + ".weight"]).max()
    assert made["lm_head.weight"].shape == source["lm_head.weight"].shape and "lm_head.weight_scale" in made


def test_budget_is_spent_on_fp8_q_a_and_kv_a_first(nibble, best, tmp_path):
    assert run(nibble, POCKET, tmp_path / "made", *FEW, "--budget", "+1%").returncode == 0
    size, plain = ((x / "model.safetensors").stat().st_size for x in (tmp_path / "made", best))
    assert 1.008 * plain < size < 1.0101 * plain  # headers differ a little
    layers = json.loads((tmp_path / "made" / "hf_quant_config.json").read_text())["quantization"]["quantized_layers"]
    fp8 = {name for name, how in layers.items() if how["quant_algo"] == "FP8"}
    first = {name for name in fp8 if name.endswith("q_a_proj")}
    assert {name.replace("q_a_proj", "kv_a_proj_with_mqa") for name in first} <= fp8
    q_a = reference.tensors_of(POCKET)["model.layers.0.self_attn.q_a_proj.weight"]
    kv_a = reference.tensors_of(POCKET)["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"]
    assert len(first) == int(0.01 * plain // ((q_a.size + kv_a.size) * 7 / 16))


def test_compressed_tensors_stores_reciprocal_scales(nibble, rtn, tmp_path):
    assert run(nibble, POCKET, tmp_path / "made", "--recipe", "rtn", "--format", "compressed-tensors").returncode == 0
    made, modelopt = reference.tensors_of(tmp_path / "made"), reference.tensors_of(rtn)
    assert np.array_equal(made[LINEAR + ".weight_packed"], modelopt[LINEAR + ".weight"])
    assert np.array_equal(made[LINEAR + ".weight_scale"], modelopt[LINEAR + ".weight_scale"])
    reciprocal, blocks = made[LINEAR + ".weight_global_scale"][0], reference.e4m3_values()
    assert np.isclose(reciprocal * modelopt[LINEAR + ".weight_scale_2"], 1, rtol=2e-4)
    assert np.array_equal(blocks / reciprocal, blocks * (np.float32(1) / reciprocal))  # both ways of reading
    config = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors" and config["format"] == "nvfp4-pack-quantized"
    for name, array in made.items():  # as compressed-tensors matches: whole names and regular expressions
        module, _, part = name.rpartition(".")
        if array.ndim == 2 and part.startswith("weight") and part != "weight_scale":
            left = any(module == x or (x.startswith("re:") and re.match(x[3:], module)) for x in config["ignore"])
            assert left == (part == "weight"), name


def test_excluded_linears_stay_as_they_are(nibble, source, tmp_path):
    flags = ["--recipe", "rtn", "--exclude", "*.self_attn.*", "--embed", "nvfp4"]
    assert run(nibble, POCKET, tmp_path / "made", *flags).returncode == 0
    made = reference.tensors_of(tmp_path / "made")
    assert np.array_equal(made[LINEAR + ".weight"], source[LINEAR + ".weight"])
    assert made["model.embed_tokens.weight"].dtype == np.uint8
    config = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]
    assert LINEAR in config["ignore"] and "model.embed_tokens" not in config["ignore"]


def test_awq_folds_are_exact(nibble, source, tmp_path):
    """The scale folded into a norm is the one that was divided out of the linear: their product is the original."""
    assert run(nibble, POCKET, tmp_path / "made", *FEW, "--recipe", "awq-lite").returncode == 0
    made = reference.tensors_of(tmp_path / "made")

    def values(name):
        scales = (made[name + ".weight_scale"], made[name + ".weight_scale_2"])
        return reference.decode(made[name + ".weight"], *scales)

    prefix = "model.layers.2."
    for norm, linear in (("input_layernorm", "q_a_proj"), ("self_attn.q_a_layernorm", "q_b_proj")):
        name = prefix + "self_attn." + linear
        before = source[name + ".weight"] * source[prefix + norm + ".weight"]
        after = values(name) * made[prefix + norm + ".weight"]
        assert np.linalg.norm(after - before) < 0.2 * np.linalg.norm(before)
    gate, up, down = (prefix + "mlp.experts.3." + x + "_proj" for x in ("gate", "up", "down"))
    for name in (gate, up):
        assert name + ".pre_quant_scale" in made
    effective = values(up) * made[up + ".pre_quant_scale"]
    folded = np.einsum("nj,jk->nk", values(down), effective)
    original = np.einsum("nj,jk->nk", source[down + ".weight"], source[up + ".weight"])
    assert np.linalg.norm(folded - original) < 0.25 * np.linalg.norm(original)
    assert np.array_equal(made[prefix + "post_attention_layernorm.weight"], source[prefix + "post_attention_layernorm.weight"])


def test_unreadable_calibration_lines_are_named(nibble, tmp_path):
    lines = CALIBRATION.read_text().splitlines()[:3]
    (tmp_path / "text.jsonl").write_text("\n".join([lines[0], "{broken", '{"messages": []}', lines[1], lines[2]]))
    flags = ["--calibration", tmp_path / "text.jsonl", "--samples", 8]
    assert "text.jsonl:2: " in expect_error(nibble, POCKET, tmp_path / "made", *flags, "--strict")
    result = run(nibble, POCKET, tmp_path / "made", *flags)
    assert result.returncode == 0
    for part in ("text.jsonl:2: ", "text.jsonl:3: ", "has 3 samples, fewer than --samples 8"):
        assert part in result.stderr
