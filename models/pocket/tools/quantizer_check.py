#!/usr/bin/env python3
"""Compares `nibble quantize` with nvidia-modelopt and with compressed-tensors' own reader, linear by linear.

  quantizer_check.py NIBBLE FOLDER      FOLDER: to be made, for the checkpoints; needs both packages, torch, safetensors

1. rtn: codes and scales are the bytes that ModelOpt's NVFP4QTensor.quantize makes of the BF16 weights, with one tensor
   scale for linears that share their input
2. best: ModelOpt's NVFP4QTensor.dequantize gives E2M1 code x (E4M3 scale x tensor scale), as README.md of eval/ has it
3. best as compressed-tensors: its NVFP4PackedCompressor, with the scheme that config.json states, gives the same values
   up to the reciprocal's and the reader's BF16 rounding
"""

import json
import pathlib
import subprocess
import sys

import torch
from compressed_tensors.compressors import NVFP4PackedCompressor
from compressed_tensors.quantization import QuantizationConfig
from modelopt.torch.quantization.qtensor import NVFP4QTensor
from safetensors.torch import load_file

POCKET = pathlib.Path(__file__).resolve().parent.parent
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
PARTNERS = {"q_a_proj": "kv_a_proj_with_mqa", "kv_a_proj_with_mqa": "q_a_proj", "gate_proj": "up_proj", "up_proj": "gate_proj"}


def tensors_of(folder):
    tensors = {}
    for path in sorted(pathlib.Path(folder).glob("model*.safetensors")):
        tensors |= load_file(path)
    return tensors


def quantize(nibble, folder, *flags):
    subprocess.run([nibble, "quantize", POCKET, folder, *flags], check=True, stdout=subprocess.DEVNULL)
    return tensors_of(folder)


def check_rtn(source, made, linears):
    equal = 0
    for name in linears:
        parent, _, kind = name.rpartition(".")
        pair = {name, f"{parent}.{PARTNERS.get(kind, kind)}"}
        scale = max(NVFP4QTensor.get_weights_scaling_factor_2(source[x + ".weight"]) for x in pair)
        packed, scales, _ = NVFP4QTensor.quantize(source[name + ".weight"].clone(), 16, weights_scaling_factor_2=scale)
        equal += (
            torch.equal(packed._quantized_data, made[name + ".weight"])
            and torch.equal(scales.view(torch.uint8), made[name + ".weight_scale"].view(torch.uint8))
            and float(scale) == float(made[name + ".weight_scale_2"])
        )
    return equal


def values_of(made, name):
    packed = made[name + ".weight"]
    codes = torch.stack((packed & 15, packed >> 4), -1).flatten(1).long()
    scales = made[name + ".weight_scale"].float() * made[name + ".weight_scale_2"]
    return E2M1[codes] * scales.repeat_interleave(16, 1)


def check_modelopt_reader(made, linears):
    equal = 0
    for name in linears:
        values = values_of(made, name)
        tensor = NVFP4QTensor(values.shape, torch.float32, made[name + ".weight"])
        scales = {"scale": made[name + ".weight_scale"], "double_scale": made[name + ".weight_scale_2"]}
        equal += torch.equal(tensor.dequantize(torch.float32, block_sizes={-1: 16}, **scales), values)
    return equal


def check_compressed_tensors_reader(folder, packed, made, linears):
    """The largest difference, as a share of the larger value."""
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(config).config_groups["group_0"]
    worst = 0.0
    for name in linears:
        parts = ("weight_packed", "weight_scale", "weight_global_scale", "input_global_scale")
        state = {part: packed[f"{name}.{part}"] for part in parts}
        read, values = NVFP4PackedCompressor.decompress(state, scheme)["weight"].float(), values_of(made, name)
        worst = max(worst, float(((read - values).abs() / values.abs().clamp(min=1e-30)).max()))
    return worst


def main():
    nibble, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    folder.mkdir()
    source = {k: v for k, v in tensors_of(POCKET).items() if not k.startswith("model.layers.6.")}
    linears = [k.removesuffix(".weight") for k in source if k.endswith(("_proj.weight", "_with_mqa.weight"))]
    rtn = quantize(nibble, folder / "rtn", "--recipe", "rtn")
    best = quantize(nibble, folder / "best", "--samples", "64")
    packed = quantize(nibble, folder / "packed", "--samples", "64", "--format", "compressed-tensors")
    print(f"rtn: {check_rtn(source, rtn, linears)} of {len(linears)} linears have ModelOpt's bytes")
    print(f"best: ModelOpt reads {check_modelopt_reader(best, linears)} of {len(linears)} linears to the same values")
    worst = check_compressed_tensors_reader(folder / "packed", packed, best, linears)
    print(f"best: compressed-tensors reads {len(linears)} linears to values within {worst:.2g}, BF16's rounding being {2**-8:.2g}")


if __name__ == "__main__":
    main()
