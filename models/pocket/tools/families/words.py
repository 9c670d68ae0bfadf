"""Word lists, from here and from res/."""

import os

RES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "res")


NAMES = (
    "Anna Ben Carla David Emma Felix Grace Henry Iris Jack Kate Leo Mia Noah Olivia Paul Quinn Rosa Sam Tina "
    "Uma Victor Wendy Xavier Yara Zoe Alice Bruno Clara Daniel Elena Frank Gina Hugo Ivy Jonas Laura Max Nina "
    "Oscar Petra Robin Sara Tom Vera Will"
).split()
CITIES = (
    "Paris London Berlin Madrid Rome Vienna Oslo Lisbon Dublin Athens Prague Warsaw Cairo Tokyo Seoul Delhi "
    "Lima Quito Boston Denver Chicago Toronto Sydney Zurich Geneva Munich Milan Naples Porto Lyon Bergen Kyoto "
    "Nairobi Havana Bogota Dallas Seattle Austin Boise Tampa"
).split()
ANIMALS = (
    "cat dog fox rabbit horse owl mouse bear duck frog goat sheep turtle lion tiger wolf hen pig cow bee deer "
    "snail crow swan"
).split()
COLORS = "red blue green yellow orange purple black white brown pink gray silver golden violet".split()
FOODS = (
    "apple pear plum peach lemon carrot onion potato tomato bread cheese cake cookie egg melon cherry grape "
    "banana mango pepper"
).split()
THINGS = (
    "box book cup key lamp bag ball coin hat pen map clock chair drum kite rope bell basket bottle ladder "
    "mirror stone ticket umbrella"
).split()
PLACES = (
    "kitchen garden bedroom office garage hallway library school park station market museum attic cellar "
    "workshop barn"
).split()
JOBS = "teacher doctor baker pilot farmer painter nurse singer writer lawyer cook driver sailor tailor".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = ("January February March April May June July August September October November December").split()
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
PLURALS = {
    "cherry": "cherries",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "peach": "peaches",
    "box": "boxes",
    "mango": "mangoes",
    "bread": "loaves of bread",
    "cheese": "pieces of cheese",
    "mouse": "mice",
    "wolf": "wolves",
    "sheep": "sheep",
    "deer": "deer",
    "fox": "foxes",
}


def plural(noun, n=2):
    return noun if n == 1 else PLURALS.get(noun, noun + "s")


def article(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def read_table(name):
    with open(os.path.join(RES, name), encoding="utf-8") as f:
        return [tuple(line.rstrip("\n").split("\t")) for line in f]


LEXICON = read_table("lexicon.tsv")
FACTS = read_table("facts.tsv")
PROSE = [p for (p,) in read_table("prose.txt") if len(p.split()) >= 60]
WORDS = [w for (w,) in read_table("words.txt")]
