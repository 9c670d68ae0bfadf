"""Model folders that are broken: one line that names the file and what is wrong, and status 1."""

import json
import shutil

import pytest

from command_line_test import check_error, run
from pocket_cases import SUM
from server_process import POCKET

FIRST_SHARD = "model-00001-of-00003.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A copy of the pocket model to break."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in POCKET.iterdir():
        if file.is_file() and not file.name.startswith("goldens"):
            shutil.copy(file, copy)
    return copy


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def refuse(nibble, *arguments):
    """What the server says; should it start all the same, it finds no port to listen on."""
    return run(nibble, "serve", *arguments, "--host", "192.0.2.1", "--port", 1)


def check_refused(nibble, folder, *words):
    for result in (refuse(nibble, folder), run(nibble, "chat", folder, stdin="Hi!")):
        assert len(check_error(result, *words)) < 2000


def test_what_is_not_a_model(nibble, tmp_path):
    check_refused(nibble, tmp_path / "missing", "missing")
    check_refused(nibble, "zai-org/GLM-4.7-Flash", "zai-org/GLM-4.7-Flash", "folder")
    check_refused(nibble, tmp_path, tmp_path, "config.json")
    file = tmp_path / "file"
    file.write_text("x")
    check_refused(nibble, file, file)


def test_the_copy_works(serve, folder):
    """So that what the other tests see comes from what they break."""
    answer = serve(folder).answer("/v1/chat/completions", {"messages": SUM.messages, "temperature": 0})
    assert answer["choices"][0]["message"]["content"] == SUM.content


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


HEADER_LENGTHS = [0, 1, 2**31, 2**62, 2**63, 2**64 - 1]


@pytest.mark.parametrize("keep", [0, 4, 8, 1000, 14_000_000, -1])
def test_truncated_safetensors(nibble, folder, keep):
    cut(folder / FIRST_SHARD, keep)
    check_refused(nibble, folder, FIRST_SHARD)


@pytest.mark.parametrize("length", HEADER_LENGTHS)
def test_length_of_the_header(nibble, folder, length):
    path = folder / FIRST_SHARD
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    check_refused(nibble, folder, FIRST_SHARD)


def rewrite_header(path, change):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def first_tensor(header):
    return next(name for name in header if name != "__metadata__")


def set_first(key, value):
    def change(header):
        header[first_tensor(header)][key] = value

    return change


def overlap(header):
    tensors = sorted((name for name in header if name != "__metadata__"), key=lambda n: header[n]["data_offsets"])
    header[tensors[1]]["data_offsets"] = header[tensors[0]]["data_offsets"]


HEADERS = {
    "unknown dtype": set_first("dtype", "Q3"),
    "huge shape": set_first("shape", [2**40, 2**40]),
    "negative shape": set_first("shape", [-1, 4]),
    "wrong shape": set_first("shape", [3]),
    "backward offsets": set_first("data_offsets", [100, 50]),
    "offsets beyond the file": set_first("data_offsets", [0, 2**50]),
    "no offsets": set_first("data_offsets", None),
    "overlap": overlap,
    "not a tensor": lambda header: header.__setitem__(first_tensor(header), 5),
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_header(nibble, folder, name):
    rewrite_header(folder / FIRST_SHARD, HEADERS[name])
    check_refused(nibble, folder, FIRST_SHARD)


def test_missing_tensor(nibble, folder):
    name = "model.layers.2.self_attn.q_a_proj.weight"
    index = folder / "model.safetensors.index.json"
    shard = json.loads(index.read_text())["weight_map"][name]

    def rename(header):
        header["something.else"] = header.pop(name)

    rewrite_header(folder / shard, rename)
    check_refused(nibble, folder, name)


def test_unknown_tensors_are_listed_once(serve, folder):
    extra = {f"vision.{i}.weight": {"dtype": "BF16", "shape": [2], "data_offsets": None} for i in range(20)}
    index = folder / "model.safetensors.index.json"
    edit(index, lambda content: content["weight_map"].update(dict.fromkeys(extra, FIRST_SHARD)))

    def append(header):
        end = max(tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__")
        for i, tensor in enumerate(extra.values()):
            tensor["data_offsets"] = [end + 4 * i, end + 4 * i + 4]
        header.update(extra)

    rewrite_header(folder / FIRST_SHARD, append)
    with open(folder / FIRST_SHARD, "ab") as file:
        file.write(bytes(4 * len(extra)))
    (warning,) = serve(folder).warnings()
    assert "20 tensors" in warning and "vision.0.weight" in warning and warning.endswith("...")


def test_missing_files(nibble, folder):
    (folder / "model-00002-of-00003.safetensors").unlink()
    check_refused(nibble, folder, "model-00002-of-00003.safetensors")
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    check_refused(nibble, folder, folder, "safetensors")


def test_missing_tokenizer(nibble, folder):
    (folder / "tokenizer.json").unlink()
    check_refused(nibble, folder, "tokenizer.json")


REQUIRED = [
    "model_type", "num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads", "q_lora_rank",
    "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "intermediate_size",
    "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok", "routed_scaling_factor", "rms_norm_eps",
    "max_position_embeddings",
]  # fmt: skip


@pytest.mark.parametrize("key", REQUIRED)
def test_missing_or_absurd_field(nibble, folder, key):
    path = folder / "config.json"
    original = path.read_text()
    edit(path, lambda config: config.pop(key))
    check_error(refuse(nibble, folder), "config.json", key)
    for absurd in ("many", -1, 10**12, [], 1e300, True):
        path.write_text(original)
        edit(path, lambda config: config.__setitem__(key, absurd))
        check_error(refuse(nibble, folder), "config.json", key)


CONTRADICTIONS = [
    ("hidden_size", 512), ("kv_lora_rank", 256), ("n_routed_experts", 32), ("num_hidden_layers", 9),
    ("vocab_size", 8192),
]  # fmt: skip


@pytest.mark.parametrize("key, value", CONTRADICTIONS)
def test_config_that_contradicts_the_tensors(nibble, folder, key, value):
    def change(config):
        config[key] = value
        if key == "num_hidden_layers":
            config["mlp_layer_types"] = ["dense"] + ["sparse"] * (value - 1)

    edit(folder / "config.json", change)
    line = check_error(refuse(nibble, folder))
    assert "model." in line or "lm_head" in line or key in line


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "generation_config.json", "tokenizer_config.json"])
def test_files_that_are_not_json(nibble, folder, file):
    for text in ("", "{", "[]", "\xff", "[" * 100_000):
        (folder / file).write_text(text, "latin-1")
        check_refused(nibble, folder, file)


def test_another_model(nibble, folder):
    edit(folder / "config.json", lambda config: config.update(model_type="llama"))
    check_refused(nibble, folder, "config.json", "model_type", "llama")


TOKENIZERS = {
    "merge of unknown tokens": lambda t: t["model"]["merges"].append(["nowhere", "seen"]),
    "merge that is not a pair": lambda t: t["model"]["merges"].append(["one"]),
    "merge in words": lambda t: t["model"].update(merges="many"),
    "no model": lambda t: t.pop("model"),
    "another model": lambda t: t["model"].update(type="Unigram"),
    "no vocabulary": lambda t: t["model"].pop("vocab"),
    "negative id": lambda t: t["model"]["vocab"].update(x=-5),
    "huge id": lambda t: t["model"]["vocab"].update(nowhere=2**31),
    "bad pattern": lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "("}),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_broken_tokenizer(nibble, folder, name):
    edit(folder / "tokenizer.json", TOKENIZERS[name])
    check_refused(nibble, folder, "tokenizer.json")


SYNTAX_ERRORS = ["{% if %}", "{{", "{% for x in y %}", "{% endfor %}", "{{ 1 + }}"]


@pytest.mark.parametrize("text", SYNTAX_ERRORS)
def test_template_with_a_syntax_error(nibble, folder, text):
    (folder / "chat_template.jinja").write_text("line one\n" + text)
    check_refused(nibble, folder, "chat_template.jinja")
    check_error(refuse(nibble, "--chat-template", folder / "chat_template.jinja"), "chat_template.jinja", "2")


MESSAGES = {"messages": [{"role": "user", "content": "Hi!"}], "max_tokens": 1}
CHAINED = "{{ " + "1" + " + 1" * 100_000 + " }}"
TRAPS = {
    "endless loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "1 GB of output": "{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
    "one long string": "{{ 'x' * 1000000000 }}",
    "long list": "{{ [1] * 1000000000 }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "doubling": "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "raised": "{{ raise_exception('no such thing') }}",
    "unknown filter": "{{ messages | no_such_filter }}",
    "undefined": "{{ nothing.at.all }}",
    "include": "{% include '/etc/passwd' %}",
}


@pytest.mark.parametrize("name", TRAPS)
def test_template_without_end(serve, tmp_path, name):
    """What a template does when it runs is the request's error, quickly; the server lives on."""
    path = tmp_path / "trap.jinja"
    path.write_text(TRAPS[name])
    server = serve("--chat-template", path)
    for _ in range(2):
        response = server.post("/v1/chat/completions", MESSAGES, timeout=60)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["message"]
    assert server.answer("/v1/completions", {"prompt": "Hi!", "max_tokens": 1})["choices"]


def test_template_with_100000_operators(nibble, tmp_path):
    """Refused at the start or answered, but no stack overflows."""
    path = tmp_path / "chained.jinja"
    path.write_text(CHAINED)
    check_error(refuse(nibble, "--chat-template", path))


def test_without_a_template(serve, folder):
    (folder / "chat_template.jinja").unlink()
    server = serve(folder)
    response = server.post("/v1/chat/completions", MESSAGES)
    assert response.status_code == 400 and "--chat-template" in response.json()["error"]["message"]
    response = server.post("/tokenize", {"messages": MESSAGES["messages"]})
    assert response.status_code == 400 and "template" in response.json()["error"]["message"]
    assert server.answer("/v1/completions", {"prompt": "Hi!", "max_tokens": 1})["choices"]


def test_without_the_draft_layer(serve, folder):
    """A checkpoint may lack what num_nextn_predict_layers announces."""
    edit(folder / "config.json", lambda config: config.update(num_nextn_predict_layers=0))
    answer = serve(folder).answer("/v1/chat/completions", {"messages": SUM.messages, "temperature": 0})
    assert answer["choices"][0]["message"]["content"] == SUM.content
