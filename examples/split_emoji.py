"""Split two sets of emoji into training and held-out pictures, by kind.

    mkdir fluent google
    npm pack @lobehub/fluent-emoji-3d@1.1.0 && tar xzf lobehub-fluent-emoji-3d-1.1.0.tgz -C fluent
    npm pack emoji-datasource-google@16.0.0 && tar xzf emoji-datasource-google-16.0.0.tgz -C google
    python examples/split_emoji.py runs/emoji fluent/package/assets google/package/img/google/64

This copies the pictures (Fluent: MIT licence; Google's Noto: Apache-2.0) into runs/emoji/train and
runs/emoji/held_out, with a numbered folder for each set. A file's name consists of its code points. Emoji
that differ only in skin tone, gender or age are one kind. All pictures of a kind, in every set, are on the
same side. One kind in ten is held out, with one picture from each set. For training, a kind has at most six
pictures from each set, so that people, who have up to 18 variants, do not outnumber everything else.
"""

import argparse
import hashlib
import shutil
from collections import defaultdict
from pathlib import Path

SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
SIGNS = {"2640", "2642", "fe0f", "200d"}  # female, male, emoji style, joiner
PERSON, CHILD = "1f9d1", "1f9d2"
AGE_AND_GENDER = {
    **dict.fromkeys(["1f468", "1f469", "1f474", "1f475", "1f9d3"], PERSON),
    **dict.fromkeys(["1f466", "1f467", "1f476"], CHILD),
    "1f478": "1f934",  # princess, prince
    "1f936": "1f385",  # Mrs. and Mr. Claus
    "1f57a": "1f483",  # a man and a woman dancing
    "1f470": "1f935",  # veil, tuxedo
    **dict.fromkeys(["1f46b", "1f46c", "1f46d"], f"{PERSON}-1f91d-{PERSON}"),  # two people holding hands
    "1f491": f"{PERSON}-2764-{PERSON}",
    "1f48f": f"{PERSON}-2764-1f48b-{PERSON}",
    "1f46a": f"{PERSON}-{PERSON}-{CHILD}",
}
SUFFIXES = (".webp", ".png")


def kind(name: str) -> str:
    written = (point.lstrip("0") for point in name.replace("_", "-").split("-"))
    points = (AGE_AND_GENDER.get(point, point) for point in written)
    return "-".join(point for point in points if point not in SKIN_TONES | SIGNS)


def digest(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET", help="folder of a package's pictures")
    options = parser.parse_args()

    for number, pictures in enumerate(options.sets, start=1):
        variants = defaultdict(list)
        for path in sorted(pictures.iterdir()):
            if path.suffix in SUFFIXES:
                variants[kind(path.stem)].append(path)
        if not variants:
            parser.error(f"{pictures} holds no {' or '.join(SUFFIXES)} files")
        for name, paths in variants.items():
            held_out = digest(name) % 10 == 0
            folder = options.output / ("held_out" if held_out else "train") / str(number)
            folder.mkdir(parents=True, exist_ok=True)
            chosen = paths[:1] if held_out else sorted(paths, key=lambda path: digest(path.stem))[:6]
            for path in chosen:
                shutil.copy(path, folder)
    for folder in sorted(options.output.glob("*/*")):
        print(f"{folder}: {len(list(folder.iterdir()))} pictures")


if __name__ == "__main__":
    main()
