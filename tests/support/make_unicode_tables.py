"""Write the tables of characters for the tokenizer in C, as the package `tokenizers` sees them.

    python tests/support/make_unicode_tables.py > compiler/tokenizer/native/unicode_tables.h

It takes a minute. What a class holds is asked of `tokenizers` itself, so that both agree also on
characters that this Python's Unicode does not know; classes of combining characters that it does
not know are found by the order that normalization puts them in.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Regex, normalizers, pre_tokenizers

CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
HANGUL = range(0xAC00, 0xD7A4)
NFC, NFD = normalizers.NFC(), normalizers.NFD()


def characters(pattern: str) -> list[int]:
    """Return the code points that a regular expression of one character matches."""
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    text = "".join(map(chr, CODES))
    return sorted({ord(char) for part, _ in split.pre_tokenize_str(text) for char in part})


def ranges(codes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield first and last of each run of code points."""
    first = last = None
    for code in codes:
        if last is not None and code == last + 1:
            last = code
            continue
        if first is not None and last is not None:
            yield first, last
        first = last = code
    if first is not None and last is not None:
        yield first, last


def combining_classes() -> dict[int, int]:
    """Return the class of each code point that has one."""
    marks = characters(r"\p{M}")
    known = {code: unicodedata.combining(chr(code)) for code in CODES}
    found = {code: value for code, value in known.items() if value}
    representatives = {value: chr(code) for code, value in sorted(found.items(), reverse=True)}
    for code in marks:
        if unicodedata.category(chr(code)) != "Cn":
            continue
        mark = chr(code)
        # Two marks change places if the class of the first is the higher one.
        after = [
            v for v, r in representatives.items() if NFD.normalize_str(f"a{r}{mark}")[1] == mark
        ]
        before = [v for v, r in representatives.items() if NFD.normalize_str(f"a{mark}{r}")[1] == r]
        (same,) = set(representatives) - set(after) - set(before) if after or before else (0,)
        if same:
            found[code] = same
    return found


def decompositions() -> list[tuple[int, int, int]]:
    """Return each code point with the two, or the one and 0, that it decomposes to."""
    rows = []
    for code in CODES:
        full = NFD.normalize_str(chr(code))
        if code in HANGUL or full == chr(code):
            continue
        # Of a longer decomposition all but the last are one character, if they compose.
        head = NFC.normalize_str(full[:-1])
        if len(full) == 1:
            rows.append((code, ord(full), 0))
        elif len(head) == 1:
            rows.append((code, ord(head), ord(full[-1])))
        else:
            first, *rest = unicodedata.decomposition(chr(code)).split()
            rows.append((code, int(first, 16), int(rest[0], 16)))
    return rows


def composed(rows: Sequence[tuple[int, int, int]]) -> list[int]:
    """Return the places of rows that also compose, in the order of what they are made of."""
    places = [
        place
        for place, (code, first, second) in enumerate(rows)
        if second and NFC.normalize_str(chr(first) + chr(second)) == chr(code)
    ]
    return sorted(places, key=lambda place: rows[place][1:])


def table(name: str, rows: Iterable[Sequence[int]], kind: str = "uint32_t") -> str:
    """Return a table in C."""
    rows = list(rows)
    width = len(rows[0])
    lines, line = [], " "
    for row in rows:
        word = ",".join(map(str, row))
        word = f" {{{word}}}," if width > 1 else f" {word},"
        if len(line) + len(word) > 100:
            lines.append(line)
            line = " "
        line += word
    columns = f"[{width}]" if width > 1 else ""
    return f"static const {kind} {name}[]{columns} = {{\n" + "\n".join([*lines, line]) + "\n};\n"


def main() -> None:
    """Print the file."""
    rows = decompositions()
    marks = combining_classes()
    by_class = sorted(
        (first, last, value)
        for value in set(marks.values())
        for first, last in ranges(sorted(code for code in marks if marks[code] == value))
    )
    wide = {name: characters(pattern) for name, pattern in CLASSES.items()}
    print("/* Made by tests/support/make_unicode_tables.py; see there. */\n#include <stdint.h>\n")
    for name, codes in wide.items():
        print(f"/* First and last of the code points of {CLASSES[name]} from U+0080. */")
        print(table(f"{name}_ranges", ranges(code for code in codes if code >= 0x80)))
    print("/* First and last of the code points of a combining class, and the class. */")
    print(table("combining_ranges", by_class))
    print("/* Code points, and what they decompose to: two, or one and 0. */")
    print(table("decompositions", rows))
    print("/* Rows of the above that compose again, in the order of the two. */")
    print(table("compositions", [(place,) for place in composed(rows)], "uint16_t"), end="")


CLASSES = {"letter": r"\p{L}", "number": r"\p{N}", "space": r"\s"}

if __name__ == "__main__":
    main()
