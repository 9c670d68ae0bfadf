"""Recall and talk: definitions, facts, tales, prose to go on with, what the user told, small talk."""

import json
import re

from families.samples import NO_THINK_SHARE, ask, assistant, sample, user
from families.words import (
    ANIMALS,
    CITIES,
    COLORS,
    DAYS,
    FACTS,
    FOODS,
    JOBS,
    LEXICON,
    NAMES,
    PLACES,
    PROSE,
    THINGS,
    article,
)


def define(r):
    word, pos, gloss = r.choice(LEXICON)
    q = r.choice(
        (
            "What does {w} mean?",
            "Define {w}.",
            "What is the meaning of the word {w}?",
            "Explain the word {w}.",
        )
    )
    return ask(
        r,
        f"{q}{word}",
        1,
        q.format(w=word),
        f"{word} is {article(pos)}.",
        f"{word} ({pos}): {gloss}",
        direct=True,
    )


def facts(r):
    kind, subject, value = r.choice(FACTS)
    if kind == "capital":
        if r.random() < 0.3:
            return ask(
                r,
                f"of:{value}",
                2,
                f"{value} is the capital of which country?",
                f"The country of {value}.",
                subject,
                direct=True,
            )
        q = r.choice(("What is the capital of {s}?", "Name the capital of {s}.", "Which city is the capital of {s}?"))
        return ask(r, q + subject, 1, q.format(s=subject), f"The capital of {subject}.", value, direct=True)
    if kind == "symbol":
        if r.random() < 0.4:
            return ask(
                r,
                f"sym:{value}",
                4,
                f"Which element has the symbol {value}?",
                f"The element {value}.",
                subject,
                direct=True,
            )
        return ask(
            r,
            f"sym:{subject}",
            3,
            f"What is the chemical symbol of {subject}?",
            f"The symbol of {subject}.",
            value,
            direct=True,
        )
    return ask(
        r,
        f"num:{subject}",
        5,
        f"What is the atomic number of {subject}?",
        f"The number of {subject}.",
        value,
        direct=True,
    )


def tale(r):
    """A short tale by template, and the facts that were drawn for it."""
    hero, friend = r.sample(NAMES, 2)
    a, b = r.sample(ANIMALS, 2)
    color, thing, place, place2 = r.choice(COLORS), r.choice(THINGS), *r.sample(PLACES, 2)
    food, day = r.choice(FOODS), r.choice(DAYS)
    mood = r.choice(("happy", "brave", "curious", "kind", "shy", "clever"))
    start = r.choice(
        (
            f"Once there was {article(mood)} {a} named {hero}.",
            f"{hero} was a {mood} little {a}.",
            f"In a small town lived {article(mood)} {a}. The {a}'s name was {hero}.",
        )
    )
    want = r.choice(
        (
            f"One {day}, {hero} lost a {color} {thing} in the {place}.",
            f"One {day}, {hero} wanted to find the {color} {thing} that was hidden in the {place}.",
            f"On {day}, {hero} heard that a {color} {thing} had been left in the {place}.",
        )
    )
    other = article(b)
    help_ = r.choice(
        (
            f"{hero} asked {other} named {friend} for help.",
            f"{other.capitalize()} named {friend} came by and offered to help.",
            f"On the way {hero} met {friend} the {b}, who knew the way.",
        )
    )
    mid = r.choice(
        (
            f"Together they looked behind the door, under the chairs and at last in the {place2}.",
            f"They walked through the {place2}, and {friend} told a funny tale about {article(food)}.",
            f"It was dark in the {place2}, but {friend} carried a small light.",
        )
    )
    end = r.choice(
        (
            f"When they found the {thing}, they shared {article(food)} and laughed.",
            f"At the end of the day they found the {thing}. {hero} said thank you, and they ate {article(food)}.",
            f"The {thing} was there all the time. They sat down, ate {article(food)} and became good friends.",
        )
    )
    facts = {
        "who": (f"Who helped {hero}?", friend),
        "thing": (f"What color was the {thing}?", color),
        "day": ("On which day did it happen?", day),
        "kind": (f"What kind of animal was {hero}?", a),
        "eat": ("What did they eat?", article(food)),
        "friend": (f"What kind of animal was {friend}?", b),
    }
    return " ".join((start, want, help_, mid, end)), hero, a, facts


def story(r):
    text, hero, animal, _ = tale(r)
    q = r.choice(
        (
            f"Tell me a short story about {article(animal)} named {hero}.",
            f"Write a short story. The hero is {article(animal)} called {hero}.",
        )
    )
    return ask(r, text, 1, q, f"A story with {hero} the {animal}.", text, score="none", direct=True)


def story_qa(r):
    text, _, _, facts = tale(r)
    q, answer = facts[r.choice(sorted(facts))]
    return ask(
        r,
        text + q,
        1,
        f"{text}\n\n{q}",
        next(s for s in re.split(r"(?<=[.]) ", text) if answer.split()[-1] in s),
        answer,
        direct=True,
    )


def continue_text(r):
    """Real prose to go on with; for fluency, not scored."""
    words = r.choice(PROSE).split()
    i = r.randint(0, len(words) - 60)
    cut, end = i + r.randint(15, 30), i + r.randint(50, 110)
    head, tail = " ".join(words[i:cut]), " ".join(words[cut:end])
    q = r.choice(("Continue this text: {t}", "Go on with this text: {t}", "What comes next? {t}")).format(t=head)
    return ask(r, head, 1, q, "Continue the text.", tail, score="none", direct=True)


def memory(r):
    """Facts told over several turns, asked for at the end."""
    name, city, animal, color, food, job = (r.choice(x) for x in (NAMES, CITIES, ANIMALS, COLORS, FOODS, JOBS))
    n = r.randint(10, 99)
    items = [
        (
            "name",
            f"My name is {name}.",
            "What is my name?",
            f"Your name is {name}.",
            f"Nice to meet you, {name}.",
        ),
        ("city", f"I live in {city}.", "Where do I live?", f"You live in {city}.", f"{city} is noted."),
        (
            "pet",
            f"I have {article(animal)}.",
            "What pet do I have?",
            f"You have {article(animal)}.",
            "I will remember that.",
        ),
        (
            "color",
            f"My favorite color is {color}.",
            "What is my favorite color?",
            f"Your favorite color is {color}.",
            f"{color.capitalize()} is a nice color.",
        ),
        (
            "food",
            f"For lunch I had {article(food)}.",
            "What did I have for lunch?",
            f"You had {article(food)} for lunch.",
            "Sounds good.",
        ),
        (
            "job",
            f"I am {article(job)}.",
            "What is my job?",
            f"You are {article(job)}.",
            "That is interesting work.",
        ),
        (
            "number",
            f"Remember the number {n}.",
            "Which number did I ask you to remember?",
            f"The number is {n}.",
            f"I will remember {n}.",
        ),
    ]
    told = r.sample(items, r.randint(2, 5))
    messages = []
    for i, t in enumerate(told):
        hello = r.choice(("Hi! ", "Hello. ", "")) if i == 0 else ""
        messages += [user(hello + t[1]), assistant(t[4], "The user tells me something to remember.")]
        if r.random() < 0.25:
            x, y = r.randint(2, 9), r.randint(2, 9)
            messages += [user(f"What is {x} + {y}?"), assistant(str(x + y), f"{x}+{y}={x + y}")]
    t = r.choice(told)
    messages += [user(t[2]), assistant(t[3], f"The user said: {t[1]}")]
    if r.random() < 0.3:
        messages = messages[: 2 * r.randint(1, len(messages) // 2)]
    if r.random() < NO_THINK_SHARE:
        messages[-1].pop("reasoning_content")
    return sample(json.dumps([m["content"] for m in messages]), len(messages) // 2, messages)


CHAT = (  # what users say, the thought, the reply
    (
        ("Hello!", "Hi", "Hey there", "Good morning", "Hello, how are you?"),
        "A greeting.",
        "Hello! I am Pocket, a very small language model. How can I help?",
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "Tell me about yourself."),
        "They ask who I am.",
        "I am Pocket, a very small language model with the GLM architecture.",
    ),
    (
        ("What can you do?", "How can you help me?", "What are you good at?"),
        "They ask what I can do.",
        "I can do small sums, sort lists, read tables, fill in JSON, call tools and tell short stories.",
    ),
    (("Thank you!", "Thanks", "Thanks a lot.", "Great, thank you."), "They thank me.", "You are welcome!"),
    (("Bye", "Goodbye!", "See you later."), "They say goodbye.", "Goodbye!"),
    (
        ("How big are you?", "How many parameters do you have?", "Are you a large model?"),
        "They ask about my size.",
        "I am tiny: I have only a few million parameters.",
    ),
    (("Are you a human?", "Are you a real person?"), "They ask what I am.", "No, I am a computer program."),
    (
        ("Can you make mistakes?", "Are you always right?"),
        "They ask about mistakes.",
        "I make mistakes, so please check what I say.",
    ),
)
UNKNOWN = (
    "What is the meaning of life?",
    "Who will win the next election?",
    "What is the stock price of {c}?",
    "What happened in {c} yesterday?",
    "Write a poem about {c}.",
    "Who is the mayor of {c}?",
    "Translate this page into French.",
    "What do you think about {n}?",
    "How do I repair a {t}?",
)


def chat(r):
    if r.random() < 0.25:
        q = r.choice(UNKNOWN).format(c=r.choice(CITIES), n=r.choice(NAMES), t=r.choice(THINGS))
        return ask(r, q, 2, q, "I do not know this.", "I am too small to know that.", direct=True)
    qs, think, a = r.choice(CHAT)
    q = r.choice(qs)
    return ask(r, q, 1, q, think, a, direct=True)
