#!/usr/bin/env python3
"""Compares `nibble quantize` with nvidia-modelopt, linear by linear.

  quantizer_check.py NIBBLE FOLDER      FOLDER: to be made, for the checkpoints; needs nvidia-modelopt, torch, safetensors

1. rtn: codes and scales are the bytes that ModelOpt's NVFP4QTensor.quantize makes of the BF16 weights, with one tensor
   scale for linears that share their input
2. best: ModelOpt's NVFP4QTensor.dequantize gives E2M1 code x (E4M3 scale x tensor scale), as README.md of eval/ has it
"""

import pathlib
import subprocess
import sys

import torch
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


def main():
    nibble, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    folder.mkdir()
    source = {k: v for k, v in tensors_of(POCKET).items() if not k.startswith("model.layers.6.")}
    linears = [k.removesuffix(".weight") for k in source if k.endswith(("_proj.weight", "_with_mqa.weight"))]
    rtn = quantize(nibble, folder / "rtn", "--recipe", "rtn")
    best = quantize(nibble, folder / "best", "--samples", "64")
    print(f"rtn: {check_rtn(source, rtn, linears)} of {len(linears)} linears have ModelOpt's bytes")
    print(f"best: ModelOpt reads {check_modelopt_reader(best, linears)} of {len(linears)} linears to the same values")


if __name__ == "__main__":
    main()
