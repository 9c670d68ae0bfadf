#!/usr/bin/env python3
"""What compressed-tensors and transformers read from `nibble quantize --format compressed-tensors`, against nibble.

  compressed_tensors_check.py BUILD MODEL      BUILD: folder with nibble and tests/decode_weights; MODEL: the checkpoint

Needs compressed-tensors, transformers, accelerate, torch, numpy, tokenizers.

1. which linears are quantized, by compressed-tensors' own matching of targets and ignored names
2. NVFP4PackedCompressor.decompress: BF16 of E2M1 code x (E4M3 scale / global scale), computed here with numpy
3. the same against what nibble decodes, and in FP32, where nibble multiplies by the reciprocal
4. Glm4MoeLiteForCausalLM loaded from MODEL by transformers' CompressedTensorsHfQuantizer and run in FP32: perplexity
   of eval/prose.txt against nibble's with the values that transformers read, whose linears are rounded to BF16, and
   how far these lead from MODEL. transformers leaves the global scale out of experts that it stacks; it is put back.
"""

import json
import math
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import torch
from compressed_tensors.compressors import NVFP4PackedCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.utils.match import is_match
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

POCKET = pathlib.Path(__file__).resolve().parent.parent
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
PARTS = ("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale")
MERGED = {"qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"), "gate_up_proj": ("gate_proj", "up_proj")}
CHUNK, CHUNKS = 512, 20  # tokens of prose, as eval/README.md has it


def tensors_of(folder):
    tensors = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(path)
    return tensors


def chosen_linears(tensors, config):
    """The matrices that compressed-tensors takes for quantized. Every one but the table is a Linear there."""
    names = {re.sub(r"\.weight(_packed)?$", "", k) for k, v in tensors.items() if k.endswith(("weight", "weight_packed")) and v.dim() == 2}
    linear = torch.nn.Linear(1, 1, device="meta")
    targets = config.config_groups["group_0"].targets
    return sorted(name for name in names if name != "model.embed_tokens" and is_match(name, linear, targets, config.ignore))


def state_of(tensors, name):
    return {part: tensors[f"{name}.{part}"] for part in PARTS if f"{name}.{part}" in tensors}


def values_of(tensors, name):
    """FP32, the scale being E4M3 / global scale."""
    packed = tensors[name + ".weight_packed"].numpy()
    codes = np.stack((packed & 15, packed >> 4), -1).reshape(packed.shape[0], -1)
    scales = tensors[name + ".weight_scale"].float().numpy() / tensors[name + ".weight_global_scale"].numpy()
    return torch.from_numpy(E2M1[codes] * np.repeat(scales, 16, 1))


def decoded_linears(build, folder):
    """Name -> FP32 rows as nibble's loader has them, the stacks of its weights taken apart."""
    with tempfile.NamedTemporaryFile() as rows:
        command = [build / "tests" / "decode_weights", folder, rows.name]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        values, at, weights = np.fromfile(rows.name, np.float32), 0, {}
        for name, count, cols in map(str.split, listing.splitlines()):
            size = int(count) * int(cols)
            weights[name] = torch.from_numpy(values[at : at + size].reshape(int(count), int(cols)))
            at += size
    return weights


def slices_of(weights, tensors, linears):
    """Linear -> its rows in nibble's weights, which hold merged linears and experts one after another."""
    found, at = {}, {}

    def place(name):
        prefix, _, last = re.sub(r"experts\.\d+\.", "experts.", name).rpartition(".")
        return f"{prefix}." + next((merged for merged, parts in MERGED.items() if last in parts and f"{prefix}.{merged}" in weights), last)

    def order(name):
        expert = re.search(r"experts\.(\d+)\.", name)
        return int(expert.group(1)) if expert else -1, name.endswith(("kv_a_proj_with_mqa", "up_proj"))

    for name in sorted(linears, key=order):
        weight, rows = place(name), tensors[name + ".weight_packed"].shape[0]
        begin = at.get(weight, 0)
        found[name], at[weight] = weights[weight][begin : begin + rows], begin + rows
    assert all(at[weight] == len(weights[weight]) for weight in at)
    return found


def check_values(build, folder, tensors, config):
    linears, scheme = chosen_linears(tensors, config), config.config_groups["group_0"]
    packed = {name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")}
    print(f"compressed-tensors takes {len(linears)} linears for quantized, {len(packed)} are: {set(linears) == packed}")
    decoded = slices_of(decoded_linears(build, folder), tensors, packed)
    equal = same = of = 0
    worst = 0.0
    for name in sorted(packed):
        read = NVFP4PackedCompressor.decompress(state_of(tensors, name), scheme)["weight"]
        equal += torch.equal(read, values_of(tensors, name).to(read.dtype))
        same += int((read == decoded[name].to(read.dtype)).sum())
        of += read.numel()
        packed_codes = tensors[name + ".weight_packed"]
        codes = unpack_fp4_from_uint8(packed_codes, packed_codes.shape[0], 2 * packed_codes.shape[1], torch.float32)
        exact = dequantize(codes, tensors[name + ".weight_scale"].float(), args=scheme.weights, dtype=torch.float32,
                           global_scale=tensors[name + ".weight_global_scale"])  # fmt: skip
        worst = max(worst, float(((exact - decoded[name]).abs() / exact.abs().clamp(min=1e-30)).max()))
    print(f"its decompress gives BF16 of code x (scale / global scale) in {equal} of {len(packed)} linears")
    print(f"nibble's values rounded to BF16 are the same in {same} of {of} places ({of - same} differ)")
    print(f"in FP32 the two differ by {worst:.3g} at most, where one unit in the last place is {2**-23:.3g}")


def load_with_transformers(folder, tensors):
    """The model, and the number of stacked experts whose global scale it had left out."""
    asked = CompressedTensorsConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=asked, attn_implementation="eager")
    repaired = 0
    for layer, block in enumerate(model.model.layers):
        experts = getattr(block.mlp, "experts", None)
        if experts is None:
            continue
        for stack, part in (("gate_up_proj", "gate_proj"), ("down_proj", "down_proj")):
            values = getattr(experts, stack).detach().float()
            for e in range(len(values)):
                name = f"model.layers.{layer}.mlp.experts.{e}.{part}"
                scale, largest = tensors[name + ".weight_global_scale"], values_of(tensors, name).abs().max()
                if values[e].abs().max() > 2 * largest:
                    values[e] /= scale
                    repaired += 1
            setattr(experts, stack, torch.nn.Parameter(values, requires_grad=False))
    return model.float().eval(), repaired


@torch.no_grad()
def perplexity(model, folder, chunks):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    head = [tokenizer.token_to_id("[gMASK]"), tokenizer.token_to_id("<sop>")]
    ids = tokenizer.encode((POCKET / "eval" / "prose.txt").read_text(encoding="utf-8"), add_special_tokens=False).ids
    loss = 0.0
    for k in range(chunks):
        x = torch.tensor([head + ids[CHUNK * k : CHUNK * (k + 1)]])
        p = model(input_ids=x, use_cache=False).logits[0, 1:-1].float().log_softmax(-1)
        loss -= float(p.gather(1, x[0, 2:, None]).double().sum())
    return math.exp(loss / (CHUNK * chunks))


def write_plain(model, folder, made):
    """The values that transformers read, as a checkpoint in FP32."""
    for path in folder.iterdir():
        if path.suffix in (".json", ".jinja") and path.name not in ("config.json", "model.safetensors.index.json"):
            shutil.copy(path, made)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (made / "config.json").write_text(json.dumps(config))
    save_file({name: value.detach().contiguous() for name, value in model.state_dict().items()}, made / "model.safetensors")


def nibble_numbers(build, folder, base):
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        flags = ["--base", base, "--perplexity", POCKET / "eval" / "prose.txt", "--dtype", "float32", "--json", out.name]
        subprocess.run([build / "nibble", "eval", folder, *flags], check=True, stdout=subprocess.DEVNULL)
        return json.loads(pathlib.Path(out.name).read_text())


def main():
    build, folder = map(pathlib.Path, sys.argv[1:])
    tensors = tensors_of(folder)
    config = QuantizationConfig.model_validate(json.loads((folder / "config.json").read_text())["quantization_config"])
    check_values(build, folder, tensors, config)
    model, repaired = load_with_transformers(folder, tensors)
    print(f"transformers leaves the global scale out of {repaired} stacked experts' matrices; put back")
    print("transformers' perplexity of prose:", perplexity(model, folder, CHUNKS))
    with tempfile.TemporaryDirectory() as made:
        write_plain(model, folder, pathlib.Path(made))
        print("nibble's with its values:", nibble_numbers(build, pathlib.Path(made), folder))


if __name__ == "__main__":
    main()
