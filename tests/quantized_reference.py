"""ModelOpt's NVFP4 rounding, written independently with numpy, and safetensors files as arrays."""

import json
import pathlib

import numpy as np

DTYPES = {"BF16": np.uint16, "F32": np.float32, "U8": np.uint8, "F8_E4M3": np.uint8}
E2M1_BOUNDS = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], np.float32)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def tensors_of(folder):
    """Name -> array of all tensors; BF16 as FP32, E4M3 as its bytes."""
    tensors = {}
    for path in sorted(pathlib.Path(folder).glob("model*.safetensors")):
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + size]).items():
            if name == "__metadata__":
                continue
            begin, end = (8 + size + x for x in entry["data_offsets"])
            array = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
            if entry["dtype"] == "BF16":
                array = (array.astype(np.uint32) << 16).view(np.float32)
            tensors[name] = array
    return tensors


def e4m3_values():
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    return np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0)).astype(np.float32)


def round_to_e4m3(x):
    """Codes of non-negative values up to 448, ties to even."""
    values = e4m3_values().astype(np.float64)
    high = np.clip(np.searchsorted(values, x), 1, 126)
    low = high - 1
    middle = (values[low] + values[high]) / 2
    return np.where((x > middle) | ((x == middle) & (high % 2 == 0)), high, low).astype(np.uint8)


def nvfp4(weight, tensor_scale):
    """weight [N, K] FP32 -> packed codes, E4M3 scales."""
    blocks = weight.reshape(weight.shape[0], -1, 16)
    amax = np.abs(blocks).max(-1)
    scale = amax / (np.float32(6) * tensor_scale)
    scale[scale == 0] = 1
    scales = round_to_e4m3(np.clip(scale, np.float32(2.0**-9), np.float32(448)))
    y = blocks / (e4m3_values()[scales] * tensor_scale)[..., None]
    code = np.searchsorted(E2M1_BOUNDS, np.abs(y), side="left")
    code = code + np.isin(np.abs(y), [0.75, 1.75, 3.5]) + 8 * (y < 0)
    code = code.reshape(weight.shape).astype(np.uint8)
    return code[:, 0::2] | code[:, 1::2] << 4, scales


def decode(packed, scales, tensor_scale):
    codes = np.stack((packed & 15, packed >> 4), -1).reshape(packed.shape[0], -1)
    values = E2M1[codes & 7] * np.where(codes & 8, -1, 1).astype(np.float32)
    return values * np.repeat(e4m3_values()[scales] * tensor_scale, 16, 1)


def tensor_scales(tensors):
    """Name of every linear of the layers -> its FP32 tensor scale; linears with one input share it."""
    amax = {}
    for name, weight in tensors.items():
        linear = name.removesuffix(".weight")
        if linear.endswith("_proj") or linear.endswith("kv_a_proj_with_mqa"):
            amax[linear] = np.float32(np.abs(weight).max())
    shared = {"q_a_proj": "kv_a_proj_with_mqa", "kv_a_proj_with_mqa": "q_a_proj", "gate_proj": "up_proj", "up_proj": "gate_proj"}
    scales = {}
    for linear in amax:
        parent, _, kind = linear.rpartition(".")
        partner = f"{parent}.{shared.get(kind, kind)}"
        scales[linear] = max(amax[linear], amax[partner]) / np.float32(2688)
    return scales
