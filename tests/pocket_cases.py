"""What the pocket model is known to say: its goldens as chats and as tokens, and questions that call tools."""

import json

from server_process import POCKET

GOLDENS = json.loads((POCKET / "goldens.json").read_text())
STOP_IDS = {6108, 6115, 6117}
ADDED_TOKENS = {
    token["content"]: token["id"] for token in json.loads((POCKET / "tokenizer.json").read_text())["added_tokens"]
}

PROMPT_START = "[gMASK]<sop><|user|>"
PROMPT_END = "<|assistant|><think>"


class Golden:
    """One greedy answer of the transformers library; `complete`: the model ended it."""

    def __init__(self, case):
        self.name = case["family"]
        self.prompt = case["prompt"]
        self.prompt_ids = case["input_ids"]
        self.nll = case["nll"]
        self.top = list(zip(case["top_ids_last"], case["top_logprobs_last"]))
        ids, text = case["greedy_ids"], case["greedy_text"]
        self.num_generated = len(ids)
        self.complete = ids[-1] in STOP_IDS
        self.generated_ids = ids
        self.ids = ids[:-1] if self.complete else ids
        self.text = text.removesuffix("<|user|>") if self.complete else text
        self.reasoning, _, self.content = self.text.partition("</think>")
        question = self.prompt[len(PROMPT_START) : -len(PROMPT_END)]
        # More than a question: a conversation, or tools.
        self.question = None if "<|" in question or not self.prompt.startswith(PROMPT_START) else question

    @property
    def messages(self):
        return [{"role": "user", "content": self.question}]


ALL_GOLDENS = [Golden(case) for case in GOLDENS]
CHATS = [golden for golden in ALL_GOLDENS if golden.question and golden.complete]
SUM = next(golden for golden in CHATS if golden.name == "add")


def by_name(golden):
    return golden.name


def tool(name, description, **properties):
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind} for key, kind in properties.items()},
                "required": list(properties),
            },
        },
    }


PLAY_MUSIC = tool("play_music", "Play a kind of music.", genre="string")
GET_WEATHER = tool("get_weather", "Get the weather in a city.", city="string")
GET_DISTANCE = tool("get_distance", "Get the distance between two cities in km.", origin="string", destination="string")
SET_TIMER = tool("set_timer", "Start a timer.", minutes="integer")

# Question, tools, calls, results of the calls, final answer.
TOOL_CASES = {
    "one call": (
        "Play some folk music.",
        [PLAY_MUSIC],
        [("play_music", {"genre": "folk"})],
        ["playing"],
        "Playing folk music.",
    ),
    "an integer": (
        "Set a timer for 12 minutes.",
        [SET_TIMER],
        [("set_timer", {"minutes": 12})],
        ["ok"],
        "The timer is set for 12 minutes.",
    ),
    "two calls": (
        "Weather in Boise and Chicago?",
        [GET_WEATHER, GET_DISTANCE],
        [("get_weather", {"city": "Boise"}), ("get_weather", {"city": "Chicago"})],
        ['{"temperature": 11, "sky": "sunny"}', '{"temperature": 6, "sky": "cloudy"}'],
        "In Boise it is sunny with 11 degrees. In Chicago it is cloudy with 6 degrees.",
    ),
}


def tasks(problems_per_family):
    """Prompts of the evaluation's families, as text."""
    counts, prompts = {}, []
    for line in (POCKET / "eval" / "tasks.jsonl").read_text().splitlines():
        task = json.loads(line)
        if task["family"] == "needle_long":  # thousands of tokens each
            continue
        counts[task["family"]] = counts.get(task["family"], 0) + 1
        if counts[task["family"]] <= problems_per_family:
            prompts.append(task["prompt"])
    return prompts
