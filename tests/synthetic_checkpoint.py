#!/usr/bin/env python3
"""Writes a BF16 checkpoint of random weights with the pocket model's tokenizer: one dense layer and some with experts.

  synthetic_checkpoint.py FOLDER [--small] [--layers 3]

The widths are those of GLM-4.7-Flash pruned to 48 experts (23B); --small: a quarter of each and 16 experts. A tensor at
a time is in memory.
"""

import argparse
import json
import math
import pathlib
import shutil

import numpy as np

POCKET = pathlib.Path(__file__).resolve().parent.parent / "models" / "pocket"
WIDTHS = {
    "hidden_size": 2048,
    "intermediate_size": 10240,
    "moe_intermediate_size": 1536,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "q_lora_rank": 768,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "n_routed_experts": 48,
    "num_experts_per_tok": 4,
}


def gated(prefix, hidden, width):
    return {prefix + "gate_proj": (width, hidden), prefix + "up_proj": (width, hidden), prefix + "down_proj": (hidden, width)}


def layer_shapes(c, layer):
    prefix, hidden, heads = f"model.layers.{layer}.", c["hidden_size"], c["num_attention_heads"]
    nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    attention, mlp = prefix + "self_attn.", prefix + "mlp."
    shapes = {
        prefix + "input_layernorm": (hidden,),
        prefix + "post_attention_layernorm": (hidden,),
        attention + "q_a_layernorm": (c["q_lora_rank"],),
        attention + "kv_a_layernorm": (c["kv_lora_rank"],),
        attention + "q_a_proj": (c["q_lora_rank"], hidden),
        attention + "q_b_proj": (heads * (nope + rope), c["q_lora_rank"]),
        attention + "kv_a_proj_with_mqa": (c["kv_lora_rank"] + rope, hidden),
        attention + "kv_b_proj": (heads * (nope + value), c["kv_lora_rank"]),
        attention + "o_proj": (hidden, heads * value),
    }
    if layer == 0:
        return shapes | gated(mlp, hidden, c["intermediate_size"])
    for expert in range(c["n_routed_experts"]):
        shapes |= gated(f"{mlp}experts.{expert}.", hidden, c["moe_intermediate_size"])
    return shapes | gated(mlp + "shared_experts.", hidden, c["moe_intermediate_size"]) | {mlp + "gate": (c["n_routed_experts"], hidden)}


def bf16(values):
    """Rounded up in magnitude at the half, which is enough for random values."""
    return ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)


def write_file(path, shapes, random):
    """shapes: names without .weight. Returns the bytes of tensors."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name + ".weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    biases = [name.removesuffix(".gate") for name in shapes if name.endswith("mlp.gate")]
    for name in biases:
        end = offset + 4 * shapes[name + ".gate"][0]
        header[name + ".gate.e_score_correction_bias"] = {"dtype": "F32", "shape": shapes[name + ".gate"][:1], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            values = random.standard_normal(shape, dtype=np.float32)
            values = 1 + 0.1 * values if len(shape) == 1 else values * np.float32(shape[1] ** -0.5)
            file.write(bf16(values.astype(np.float32)).tobytes())
        for name in biases:
            file.write(np.zeros(shapes[name + ".gate"][0], np.float32).tobytes())
    return list(header), offset


def write_checkpoint(folder, widths=WIDTHS, layers=3):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    config = json.loads((POCKET / "config.json").read_text()) | widths
    config |= {"num_hidden_layers": layers, "num_nextn_predict_layers": 0, "n_shared_experts": 1, "first_k_dense_replace": 1}
    config["mlp_layer_types"] = ["dense"] + ["sparse"] * (layers - 1)
    config["head_dim"] = config["qk_rope_head_dim"]
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        shutil.copy(POCKET / name, folder)
    table = (config["vocab_size"], config["hidden_size"])
    files = [{"model.embed_tokens": table, "lm_head": table, "model.norm": table[1:]}]
    files += [layer_shapes(config, layer) for layer in range(layers)]
    random, places, total = np.random.default_rng(1), {}, 0
    for number, shapes in enumerate(files, 1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        names, size = write_file(folder / name, shapes, random)
        places |= dict.fromkeys(names, name)
        total += size
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def small_widths():
    return {k: v // 4 for k, v in WIDTHS.items()} | {"n_routed_experts": 16, "num_experts_per_tok": 4}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--layers", type=int, default=3)
    options = parser.parse_args()
    write_checkpoint(options.folder, small_widths() if options.small else WIDTHS, options.layers)
