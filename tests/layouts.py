"""Checkpoints of the pocket model in the layouts of other tools, written with numpy alone.

Each layout is a function from a linear's FP32 values to its tensors and to the values that they stand for.
"""

import json
import shutil
import struct

import numpy as np

from server_process import POCKET

SIZES = {"BF16": 2, "F32": 4, "U8": 1, "F8_E4M3": 1, "I32": 4, "I64": 8}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


class Stored:
    """A tensor of a safetensors file: dtype, shape, bytes."""

    def __init__(self, dtype, shape, data):
        self.dtype, self.shape, self.data = dtype, list(shape), bytes(data)
        assert len(self.data) == SIZES[dtype] * int(np.prod(self.shape, dtype=np.int64)), (dtype, shape, len(self.data))


def read_safetensors(path):
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    body = data[8 + size :]
    return {name: Stored(t["dtype"], t["shape"], body[slice(*t["data_offsets"])]) for name, t in header.items()}


def write_safetensors(path, tensors):
    header, at = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, at + len(tensor.data)]}
        at += len(tensor.data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(t.data for t in tensors.values()))


def values(tensor):
    if tensor.dtype == "BF16":
        bits = np.frombuffer(tensor.data, np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(tensor.shape)
    assert tensor.dtype == "F32"
    return np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)


def bf16(array):
    """Stored in BF16, and the rounded values."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32).astype(np.uint64)
    halves = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    stored = Stored("BF16", array.shape, halves.tobytes())
    return stored, values(stored)


def f32(number, shape=()):
    return Stored("F32", shape, np.float32(number).tobytes())


def all_e4m3():
    """The values of the codes 0 .. 126."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    return np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0)).astype(np.float32)


E4M3 = all_e4m3()


def nearest(grid, array):
    """The indices of the nearest values of a rising grid, of equally near ones the even."""
    high = np.clip(np.searchsorted(grid, array), 1, len(grid) - 1)
    below, above = array - grid[high - 1], grid[high] - array
    return np.where((below < above) | ((below == above) & (high % 2 == 1)), high - 1, high)


def nvfp4_parts(w):
    """Codes, block scales, the tensor's scale; as ModelOpt rounds."""
    blocks = w.reshape(w.shape[0], -1, 16)
    scale2 = np.float32(np.abs(w).max()) / np.float32(2688)
    scale = np.abs(blocks).max(-1) / (np.float32(6) * scale2)
    scale = nearest(E4M3, np.clip(np.where(scale == 0, np.float32(1), scale), np.float32(2**-9), np.float32(448)))
    codes = nearest(E2M1, np.minimum(np.abs(blocks) / (E4M3[scale] * scale2)[..., None], np.float32(6)))
    codes = (codes + 8 * (blocks < 0)).astype(np.uint8).reshape(w.shape)
    return codes, scale.astype(np.uint8), scale2


def nvfp4_values(codes, scale, factor):
    magnitude = E2M1[codes & 7].reshape(codes.shape[0], -1, 16) * (E4M3[scale] * factor)[..., None]
    return np.where(codes & 8, -1, 1).astype(np.float32) * magnitude.reshape(codes.shape)


def low_nibble_first(codes):
    return codes[:, 0::2] | codes[:, 1::2] << 4


def nvfp4(w, input_scale=None):
    codes, scale, scale2 = nvfp4_parts(w)
    tensors = {
        "weight": Stored("U8", [w.shape[0], w.shape[1] // 2], low_nibble_first(codes).tobytes()),
        "weight_scale": Stored("F8_E4M3", scale.shape, scale.tobytes()),
        "weight_scale_2": f32(scale2),
    }
    if input_scale is not None:
        tensors["input_scale"] = f32(input_scale)
    return tensors, nvfp4_values(codes, scale, scale2)


def nvfp4_awq(w, seed):
    """A scale of the input divided out of the columns; another one for each seed."""
    factors = np.exp(np.random.default_rng(seed).normal(0, 0.3, w.shape[1])).astype(np.float32)
    stored, factors = bf16(factors)
    tensors, decoded = nvfp4(bf16(w / factors)[1], input_scale=0.01)
    return tensors | {"pre_quant_scale": stored}, decoded * factors


def nvfp4_compressed(w):
    codes, scale, scale2 = nvfp4_parts(w)
    reciprocal = np.float32(1) / scale2
    tensors = {
        "weight_packed": Stored("U8", [w.shape[0], w.shape[1] // 2], low_nibble_first(codes).tobytes()),
        "weight_scale": Stored("F8_E4M3", scale.shape, scale.tobytes()),
        "weight_global_scale": f32(reciprocal, [1]),
        "input_global_scale": f32(100, [1]),
    }
    return tensors, nvfp4_values(codes, scale, np.float32(1) / reciprocal)


def fp8(w):
    scale = np.float32(np.abs(w).max()) / np.float32(448)
    codes = nearest(E4M3, np.minimum(np.abs(w) / scale, np.float32(448)))
    sign = np.where(w < 0, -1, 1).astype(np.float32)
    tensors = {
        "weight": Stored("F8_E4M3", w.shape, (codes + 128 * (w < 0)).astype(np.uint8).tobytes()),
        "weight_scale": f32(scale),
        "input_scale": f32(0.02),
    }
    return tensors, sign * E4M3[codes] * scale


def int4(w, group):
    grouped = w.reshape(w.shape[0], -1, group)
    stored, scale = bf16(np.abs(grouped).max(-1) / np.float32(7.5) + np.float32(1e-8))
    codes = np.clip(np.rint(grouped / scale[..., None]), -8, 7)
    nibbles = (codes + 8).astype(np.uint32).reshape(w.shape[0], -1, 8)
    words = (nibbles << np.arange(0, 32, 4, dtype=np.uint32)).sum(-1, dtype=np.uint32)
    tensors = {
        "weight_packed": Stored("I32", words.shape, words.astype("<u4").tobytes()),
        "weight_scale": stored,
        "weight_shape": Stored("I64", [2], np.array(w.shape, "<i8").tobytes()),
    }
    return tensors, (codes.astype(np.float32) * scale[..., None]).reshape(w.shape)


def pocket_tensors():
    """All tensors of the pocket model but its MTP layer."""
    tensors = {}
    for path in sorted(POCKET.glob("model-*.safetensors")):
        tensors |= read_safetensors(path)
    return {name: t for name, t in tensors.items() if not name.startswith("model.layers.6.")}


def is_linear(name):
    return name.endswith("_proj.weight") or name.endswith("kv_a_proj_with_mqa.weight")


def write_model(folder, quantize, quantization_config, hf_quant_config=None):
    """The pocket model with `quantize(name, values)` -> (tensors, decoded) or None applied to every matrix. Gives the
    values of all tensors by their name in the BF16 model, and the number of matrices that were quantized."""
    tensors, decoded, count = {}, {}, 0
    for name, tensor in pocket_tensors().items():
        decoded[name] = values(tensor)
        module = name.removesuffix(".weight")
        result = quantize(module, decoded[name]) if len(tensor.shape) == 2 else None
        if result is None:
            tensors[name] = tensor
            continue
        parts, decoded[name] = result
        tensors |= {f"{module}.{part}": stored for part, stored in parts.items()}
        count += 1
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", tensors)
    config = json.loads((POCKET / "config.json").read_text())
    if quantization_config:
        config["quantization_config"] = quantization_config
    (folder / "config.json").write_text(json.dumps(config))
    if hf_quant_config:
        (folder / "hf_quant_config.json").write_text(json.dumps(hf_quant_config))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(POCKET / name, folder)
    return decoded, count


def stacked(decoded, name):
    """The rows of a weight of nibble's model from the tensors of the checkpoint."""
    prefix, _, last = name.rpartition(".")
    merged = {"qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"), "gate_up_proj": ("gate_proj", "up_proj")}
    if prefix.endswith("mlp.experts"):
        parts = merged.get(last, (last,))
        experts = range(16)
        return np.concatenate([decoded[f"{prefix}.{e}.{part}.weight"] for e in experts for part in parts])
    if last in merged:
        return np.concatenate([decoded[f"{prefix}.{part}.weight"] for part in merged[last]])
    found = decoded[name] if name in decoded else decoded[name + ".weight"]
    return np.atleast_2d(found)
