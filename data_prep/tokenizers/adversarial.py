"""Texts on which tokenizer libraries are known, or likely, to disagree."""

import random
from collections.abc import Sequence

RUN = 10_000
SEED = 20_240_229
# Names that other tokenizers reserve, and spellings that some use inside.
MARKUP = (
    "<s>",
    "</s>",
    "<unk>",
    "<|endoftext|>",
    "<0x41>",
    "<0x0A>",
    "[INST]",
    "▁",
    "▁▁a ▁",
    "Ġ Ċ Ġa",
    "<",
    "<|",
    "|>",
)
SPACES = (
    " ",
    "  ",
    " a",
    "a ",
    "  a  b   c    d ",
    "\n",
    "\t",
    "\r\n windows\r\nline\r",
    "a\n\n\nb",
    " \n \n\t \n x",
    "\ta\t\tb",
)
ODD_SPACES = (
    "x\u3000y\u00a0z\u2009w\u202f ",
    "sep \u2028 \u2029 \u0085 \x0b\x0c",
    "\u200b\u200c\u200d\u2060",
    "\ufeffa\ufeffb",
)
SCRIPTS = (
    "漢字仮名交じり文、日本語。中文测试，标点！",
    "한국어 텍스트 각",
    "العربية نص ٣٤٥ \u202e left \u202c",
    "עברית טקסט",
    "हिन्दी पाठ क्षत्रिय १२३",
    "ไทยภาษา กำลัง",
    "Ελληνικά и кириллица Ǆ ß İı ŉ",
    "ﬁ ﬂ ½ ² ℌ ﷺ Å Å",
    "𝕏𝐀 𒀀 𓀀 𐍈",
)
MARKS = (
    "e\u0301 n\u0303o a\u0308\u0323 o\u0323\u0308",
    "Z\u0337\u0328\u0310\u031b\u0318\u0316a",
    "\u0301 \u0301a",
    "é e\u0301",
    "1\u0301 .\u0301",
)
EMOJI = ("😀😃 x😀y", "👩‍👩‍👧‍👦👨🏽‍🚀", "🇩🇪🇫🇷🇩", "🏳️‍🌈 ❤️ ☺︎ 1️⃣", "👍🏽👍")
NUMBERS = (
    "0123456789",
    "1,234,567.89 3.14e-10 1/2",
    "٣٤٥ ①② ⅔ Ⅷ",
    "a1b22c333d4444",
    "2024-02-29T23:59:60Z",
    "$5 €6 7% #8",
)
WORDS = (
    "I'm don't we'll they've I'D ISN'T it’s 's 't 'S ' s",
    "CamelCase snake_case kebab-case ALLCAPS",
    "'tis ''quoted''",
)
CODE = (
    'def f(x):\n    return x**2\n\n\n\tif a:\n\t\tb = "c"\n',
    "https://example.com/a?b=c&d=%20#e me@mail.org",
    "{[(<>)]};:!?...---___",
)
PLANES = "\ue000 \ufffd \ufffe\uffff \U0010ffff \U000e0001 \U000f0000"
RUNS = ("a", " ", "\n", "\t", "1", "-", ".", "é", "漢", "😀", "\u0301", "\x00")
RUN_PATTERNS = ("ab", ". ", "=*", "a b", " \n", "1 2", "the ", "\r\n", "ha")


def adversarial_texts(special_tokens: Sequence[str]) -> list[str]:
    """About 2,000 texts of 0.5 MB, always the same for the same special tokens; the first is empty."""
    characters = _every_byte()
    return [
        "",
        *characters,
        *(f"a{character}b {character}{character} {character}" for character in characters),
        *_with_names([*special_tokens, *MARKUP]),
        *SPACES,
        *ODD_SPACES,
        *(" " * count + "x" + "\n" * count for count in range(1, 40)),
        *SCRIPTS,
        *MARKS,
        *EMOJI,
        *NUMBERS,
        *WORDS,
        *CODE,
        PLANES,
        *_runs(),
        *_marked_characters(),
        *_numerals_and_spaces(),
        *_large_texts(),
        *_shared_beginnings(),
        *_mixes([*special_tokens, *MARKUP], characters),
    ]


def _every_byte() -> list[str]:
    """Characters whose UTF-8 has each byte that UTF-8 can have, so also those bytes that a vocabulary lacks."""
    one = range(0x80)
    two = [*range(0x80, 0x100), *range(0x100, 0x800, 0x40)]
    three = [point for point in range(0x800, 0x10000, 0x400) if not 0xD800 <= point < 0xE000]
    four = [0x10000, 0x1F600, 0x40000, 0x80000, 0xC0000, 0x100000]
    return [chr(point) for point in (*one, *two, *three, *four)]


def _with_names(names: Sequence[str]) -> list[str]:
    forms = ("{0}", "a{0}b", " {0} ", "{0}{0}", "text {0}\n{0}", "\n{0}", "x{0}.")
    return [form.format(name) for name in names for form in forms] + [name[:-1] for name in names]


def _runs() -> list[str]:
    repeated = [character * RUN for character in RUNS]
    patterns = [pattern * (RUN // len(pattern)) for pattern in RUN_PATTERNS]
    return [*repeated, *patterns, "A" * 300 + " " + "B" * 300, " " * RUN + "a" + "\n" * 300]


def _marked_characters() -> list[str]:
    """Each character of the alphabets before a combining accent: normalisation reorders marks by tables that age."""
    points = [*range(0x80, 0x3400), *range(0xA000, 0xAC00), *range(0xFB00, 0xFFFE), *range(0x1E000, 0x1E900)]
    return ["".join(chr(point) + "\u0301" for point in points[i : i + 64]) for i in range(0, len(points), 64)]


def _numerals_and_spaces() -> list[str]:
    """Characters between digits, spaces and letters: which are numerals and spaces changes with Unicode's version."""
    ranges = ((0x80, 0x3400), (0xA600, 0xAC00), (0xFF00, 0xFFFE), (0x10100, 0x10200), (0x11000, 0x12500))
    later = ((0x16A00, 0x17000), (0x1D2C0, 0x1D380), (0x1D7C0, 0x1D800), (0x1E100, 0x1F110), (0x1FB00, 0x1FC00))
    points = [point for first, last in ranges + later for point in range(first, last)]
    return [
        "".join(f"{chr(point)}1 {chr(point)}a  " for point in points[i : i + 64]) for i in range(0, len(points), 64)
    ]


def _large_texts() -> list[str]:
    """Runs that lie across multiples of 64 kB, where a library may cut a large text in order to share it out."""
    beginning, end = _prose(65_000), _prose(5_000)
    return [beginning + run + end for run in (" " * 1500, "x" * 1500, " 漢" * 400)]


def _shared_beginnings() -> list[str]:
    """Texts that part from the one before after 5,000 characters, in a run of spaces: a stale memory of it shows."""
    beginning = _prose(5_000)
    spaces = beginning + " " * 300
    return [
        spaces + "x",
        spaces + " ",
        spaces + "x y",
        spaces + "\n",
        spaces + "x",
        spaces,
        beginning,
        beginning + "ing",
    ]


def _prose(length: int) -> str:
    draw = random.Random(SEED)
    words = [
        "the",
        "data",
        "of",
        "Long",
        "context",
        "models,",
        "isn't",
        "2048",
        "tokens.",
        "(see",
        "below)",
        "naïve",
        "\n",
    ]
    return " ".join(draw.choices(words, k=length // 4))[:length]


def _mixes(names: Sequence[str], characters: Sequence[str]) -> list[str]:
    draw = random.Random(SEED)
    parts = [
        "a",
        "the",
        "ing",
        " ",
        "  ",
        "\n",
        "\n\n",
        "1",
        "23",
        "'s",
        "!",
        "...",
        "é",
        "中",
        "\t",
        "\r\n",
        "_",
        "😀",
        "\u0301",
    ]
    ranges = ((0, 0x20), (0x20, 0x7F), (0x7F, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000))

    def anywhere() -> str:
        return chr(draw.randrange(*draw.choice(ranges)))

    def one_of(choices: Sequence[str], length: int) -> str:
        return "".join(draw.choices(choices, k=draw.randint(1, length)))

    return [
        *("".join(anywhere() for _ in range(draw.randint(1, 80))) for _ in range(200)),
        *(one_of(parts, 60) for _ in range(200)),
        *(one_of(characters, 40) for _ in range(100)),
        *(one_of([*parts, *names], 20) for _ in range(100)),
    ]
