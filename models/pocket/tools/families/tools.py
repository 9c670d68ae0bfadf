"""Tool calls: nine tools, one or several calls, their results, and requests that need no tool or a missing one."""

import json

from families.knowledge import CHAT
from families.samples import assistant, sample, user
from families.words import CITIES, NAMES, THINGS


def tool(name, description, /, **props):
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {k: {"type": v} for k, v in props.items()},
                "required": list(props),
            },
        },
    }


TOOLS = {
    t["function"]["name"]: t
    for t in (
        tool("get_weather", "Get the weather in a city.", city="string"),
        tool("calculator", "Evaluate an arithmetic expression.", expression="string"),
        tool("get_time", "Get the local time in a city.", city="string"),
        tool(
            "convert_currency",
            "Convert an amount of money.",
            amount="number",
            source="string",
            target="string",
        ),
        tool("set_timer", "Start a timer.", minutes="integer"),
        tool("find_contact", "Find the phone number of a person.", name="string"),
        tool("send_message", "Send a message to a person.", to="string", text="string"),
        tool("play_music", "Play a kind of music.", genre="string"),
        tool(
            "get_distance",
            "Get the distance between two cities in km.",
            origin="string",
            destination="string",
        ),
    )
}
CURRENCIES = "USD EUR GBP JPY CHF CAD".split()


# A case of each tool: the question, the arguments of its calls, their results, the final answer. All take the same
# random draws (two cities and a person), whether they use them or not.


def weather_case(r, city, city2, who):
    cities = r.sample(CITIES, r.choice((1, 1, 2)))
    seen = [(c, r.randint(-9, 38), r.choice(("sunny", "cloudy", "rainy", "windy", "foggy"))) for c in cities]
    q = r.choice(("What is the weather in {c}?", "How is the weather in {c} today?", "Weather in {c}?"))
    results = [json.dumps({"temperature": t, "sky": s}) for _, t, s in seen]
    final = " ".join(f"In {c} it is {s} with {t} degrees." for c, t, s in seen)
    return q.format(c=" and ".join(cities)), [{"city": c} for c in cities], results, final


def calculator_case(r, city, city2, who):
    a, b, op = r.randint(100, 99999), r.randint(11, 9999), r.choice("+-*")
    value = {"+": a + b, "-": a - b, "*": a * b}[op]
    e = f"{a} {op} {b}"
    q = r.choice(("Use the calculator: {e}", "What is {e}? Use a tool.", "Compute {e} with the calculator."))
    return q.format(e=e), [{"expression": e}], [str(value)], f"{e} = {value}"


def time_case(r, city, city2, who):
    t = f"{r.randint(0, 23):02d}:{r.randint(0, 59):02d}"
    q = r.choice(("What time is it in {c}?", "Tell me the time in {c}.", "Current time in {c}?"))
    return q.format(c=city), [{"city": city}], [t], f"It is {t} in {city}."


def currency_case(r, city, city2, who):
    n, (s, d) = r.randint(2, 900), r.sample(CURRENCIES, 2)
    value = f"{r.randint(1, 2000)}.{r.randint(0, 99):02d}"
    q = r.choice(("Convert {n} {s} to {d}.", "How much is {n} {s} in {d}?", "{n} {s} in {d}?"))
    arguments = {"amount": n, "source": s, "target": d}
    return q.format(n=n, s=s, d=d), [arguments], [value], f"{n} {s} is {value} {d}."


def timer_case(r, city, city2, who):
    n = r.randint(1, 120)
    q = r.choice(("Set a timer for {n} minutes.", "Start a {n} minute timer.", "Wake me in {n} minutes."))
    return q.format(n=n), [{"minutes": n}], ["ok"], f"The timer is set for {n} minutes."


def contact_case(r, city, city2, who):
    value = f"{r.randint(100, 999)}-{r.randint(1000, 9999)}"
    q = r.choice(("What is the phone number of {w}?", "Find the number of {w}.", "How can I call {w}?"))
    if r.random() < 0.15:
        return q.format(w=who), [{"name": who}], ["not found"], f"I could not find {who}."
    return q.format(w=who), [{"name": who}], [value], f"The number of {who} is {value}."


def message_case(r, city, city2, who):
    meet, bring = f"Meet me in {city}.", f"Bring the {r.choice(THINGS)}."
    text = r.choice(("I am late.", "See you soon.", "Call me back.", "Dinner is ready.", meet, bring))
    q = r.choice(("Send this to {w}: {t}", "Tell {w}: {t}", "Message {w}: {t}"))
    return q.format(w=who, t=text), [{"to": who, "text": text}], ["sent"], f"I sent the message to {who}."


def music_case(r, city, city2, who):
    g = r.choice("jazz rock pop folk classical blues".split())
    q = r.choice((f"Play some {g} music.", f"I want to hear {g}.", f"Put on {g}, please."))
    return q, [{"genre": g}], ["playing"], f"Playing {g} music."


def distance_case(r, city, city2, who):
    km = str(r.randint(20, 9000))
    q = r.choice(("How far is it from {a} to {b}?", "What is the distance between {a} and {b}?"))
    arguments = {"origin": city, "destination": city2}
    return q.format(a=city, b=city2), [arguments], [km], f"It is {km} km from {city} to {city2}."


CASES = {
    "get_weather": weather_case,
    "calculator": calculator_case,
    "get_time": time_case,
    "convert_currency": currency_case,
    "set_timer": timer_case,
    "find_contact": contact_case,
    "send_message": message_case,
    "play_music": music_case,
    "get_distance": distance_case,
}


def tool_case(r):
    """A tool, a request for it, its calls, their results and the final answer."""
    name = r.choice(sorted(TOOLS))
    city, city2 = r.sample(CITIES, 2)
    who = r.choice(NAMES)
    question, arguments, results, final = CASES[name](r, city, city2, who)
    return name, question, [(name, a) for a in arguments], results, final


def tool_turn(name, q, calls, results, final):
    think = f"Call {name}." if len(calls) == 1 else f"Call {name} {len(calls)} times."
    return [
        user(q),
        assistant("", think, calls),
        *({"role": "tool", "content": x} for x in results),
        assistant(final, "Give the result."),
    ]


def tools(r):
    case = tool_case(r)
    name, q = case[:2]
    others = r.sample([n for n in sorted(TOOLS) if n != name], r.randint(0, 3))
    kind = r.random()
    if kind < 0.12 and others:  # the right tool is missing
        messages = [user(q), assistant("I have no tool for that.", f"I need {name}, but it is not there.")]
        return sample(json.dumps(others) + q, 0, messages, tools=[TOOLS[n] for n in others])
    offered = others + [name]
    r.shuffle(offered)
    tools = [TOOLS[n] for n in offered]
    if kind < 0.2:  # no tool is needed
        qs, _, a = r.choice(CHAT)
        q = r.choice(qs)
        return sample(json.dumps(offered) + q, 1, [user(q), assistant(a, "No tool is needed.")], tools=tools)
    messages = tool_turn(*case)
    if kind < 0.35:  # an earlier question with the same tools
        before = next((c for c in (tool_case(r) for _ in range(8)) if c[0] in offered and c[1] != q), None)
        if before:
            messages = tool_turn(*before) + messages
    calls = max(i for i, m in enumerate(messages) if m.get("tool_calls"))
    return sample(q + json.dumps(case[3]), 1 + len(case[2]), messages, tools=tools, train=[calls, len(messages) - 1])
