"""The objects of the training scenes: what each one is, and which split it belongs to.

The rules are tables at the top of this file: the folders held out for testing, the folders for
validation, the objects that are not used (such as those of a held-out class), the drawings, and the
categories. `fetch.py` writes the catalogue, and `load_catalogue` reads it.

    python catalogue.py DATA        # prints a table of the categories
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Literal

Kind = Literal["photo", "drawing"]
Split = Literal["train", "val", "test"]

CATALOGUE_NAME = "catalogue.json"

HELD_OUT = (
    "animals/fish",
    "animals/mammals/aquatic",
    "animals/mammals/cats",
    "animals/mammals/deer",
    "animals/mammals/dogs",
    "animals/mammals/equines",
    "animals/mammals/rodents",
    "food/vegetables",
    "hobbies/music/string",
    "plants/mushrooms",
    "vehicles",
)
"""Stamp folders of the test split. No training and no choice of a setting uses them."""

VALIDATION = (
    "animals/insects",
    "animals/mammals",  # this folder only: its sub-folders have splits of their own
    "household/tools",
    "medical",
    "plants/trees",
    "space/moon",
    "space/planets",
    "sports",
    "town/roadsigns",
)
"""Stamp folders of the validation split. They serve to choose settings, not for training."""

EXCLUDED = (
    # Vehicles, and objects that show a vehicle.
    "military/vehicles/*",
    "household/tools/cementmixer",
    "people/cartoon/girl_in_wheelchair",
    "seasonal/winter/sledge",
    "space/apollo_lander",
    "space/*rocket*",
    "town/cartoon/docks",
    "town/cartoon/mine",
    "town/cartoon/shipwreck",
    "town/houses/cartoon/fishery",
    # Cats, deer, horses, rodents (that folder contains rabbits), a mermaid, coins with animals.
    "animals/mammals/rabbit_little",
    "people/cartoon/mermaid",
    "seasonal/christmas/rudolf_reindeer",
    "seasonal/easter/bunny*",
    "seasonal/halloween/blackcat",
    "symbols/money/canadian/coins/005nickel",
    "symbols/money/canadian/coins/010dime",
    "symbols/money/canadian/coins/025quarter",
    "symbols/chess/*",
    # Vegetables and mushrooms.
    "plants/eggplant",
    "plants/lettuce_bolted",
    "plants/toadstool",
    "seasonal/halloween/jackolantern_mean",
    # Windmills and stables, because tests by other people use them.
    "town/houses/cartoon/stables",
    "town/houses/cartoon/windmill",
    # Duplicates: one picture saved twice.
    "*_mirror",
    "military/fireman240a",
    # Not objects: letters, signs, rectangles, single lines, glows and bursts.
    "symbols/[!m]*",
    "symbols/math/*",
    "symbols/money/00_symbols/*",
    "symbols/music/*",
    "naturalforces/lightningbolt",
    "people/body_parts/eye*",
    "people/body_parts/manga_eye*",
    "seasonal/christmas/lamp",
    "seasonal/christmas/star",
    "people/cartoon/snowman",
    "seasonal/newyears/confetti",
    "seasonal/newyears/fireworks*",
    "space/planets/0_sun",
    "sports/rugby_goal_posts",
    "town/monuments/inukshuk-outline",
    # Classes of the validation folders.
    "seasonal/christmas/tree",
    "seasonal/easter/butterfly",
    "seasonal/halloween/spider",
    # Furniture package: held-out classes and validation classes.
    *(
        f"furniture/{pattern}"
        for pattern in (
            "*Truck* *truck* *[bB]us bus *bike* *bicycle* bike motorbike *scooter* *sedan* suv van"
            " chevrolet fordFocus peterbilt peugeot* renault* seat_leon smart-car VW-* yamaha*"
            " rowboat forkLift cartoon_biplane carrito* stroller toyTrain tricycle wheelchair"
            " wheelbarrow mower skateboard casque caballito passage-a-niveau"
            " *[cC]at cat dog bulldog dog-house horse* deer rabbit chicken roasted-chicken aquarium"
            " electricGuitar piano* bowlWithSalad frenchFries hotDog hamburger sushi_tray"
            " basketball ball* ballonFoot tennisRacket tableTennisBat big-football-goal"
            " football-goal punching-ball *tape* marteau pelle pince* scie* tournevis shovel"
            " meuleuse* perceuse* sickle medic* thermometer hospital-bed *Tree *tree acacia bamboo"
            " bush copperBeech cypress japaneseMaple palm peachBlossom pine* poplar sabalPalmeto"
            " sycamoreMaple cone emergencySign bluePineSnow christmas_tree coconutTree* arbolito"
            # Rectangles, road markings, and things drawn as a few thin lines.
            " fleche* stationnement* passage-pieton billet* *rails rails *switch* *plug* *RJ-45*"
            " *antenna* *dimmer* air-mattress concrete-sidewalk candelabre window-blinds"
        ).split()
    ),
)
"""Objects that no split uses: patterns that must match the whole of `folder/name`."""

DRAWINGS = (
    "*/cartoon/*",
    "animals/insects/bee",
    "animals/mammals/echidna",
    "animals/mammals/hedgehog",
    "clothes/button",
    "clothes/t_*",
    "clothes/hats/*",
    "food/pizza",
    "furniture/*",
    "household/arttools/highlighter",
    "medical/tooth",
    "people/body_parts/*",
    "people/drawn/*",
    "seasonal/christmas/Santa",
    "seasonal/christmas/[a-z]*",
    "seasonal/easter/*",
    "seasonal/halloween/[!g]*",
    "seasonal/halloween/ghost",
    "seasonal/hanukkah/*",
    "seasonal/newyears/*",
    "town/flags/*",
    "town/roadsigns/arrow",
    "town/roadsigns/crossroads",
    "town/roadsigns/give_way_sign",
    "town/roadsigns/hospital",
    "town/roadsigns/roundabout",
    "town/roadsigns/stop*",
    "town/roadsigns/t-junction",
    "town/roadsigns/toilets",
    "town/roadsigns/xing_school",
    "town/roadsigns/yield",
)
"""Bitmaps of drawn or rendered objects. Vector files always count as drawings."""

PHOTOGRAPHS = ("seasonal/christmas/xmaswreath",)
"""Exceptions of `DRAWINGS`."""

MIXED_FOLDERS = (
    "clothes",
    "food",
    "food/dessert",
    "furniture",
    "hobbies",
    "household",
    "household/arttools",
    "household/dishes",
    "household/dishes/utensils",
    "household/electronics",
    "military",
    "military/ammunition",
    "naturalforces",
    "people/body_parts",
    "people/toys",
    "plants",
    "seasonal",
    "seasonal/christmas",
    "seasonal/easter",
    "seasonal/halloween",
    "seasonal/hanukkah",
    "seasonal/newyears",
    "seasonal/winter",
    "space",
    "things",
    "town",
    "town/monuments",
)
"""Folders of unrelated things. Their categories are things (see `THINGS`), not folders."""

THINGS = (
    # (pattern of the lower-case name, thing). The first match counts. "people" and a thing with "/"
    # are categories. An empty thing means that the name itself is the thing.
    ("fire-hydrant|fire_hydrant", "hydrant"),
    ("post_box|mailbox|letters_box", "mailbox"),
    ("bin$|garbagecan|trash|dustbin|recyclingbox", "bin"),
    ("male\\d|boy|girl(?!face)|male-|mannequin|lyingdown|sitmale|holding|spacewalk", "people"),
    ("tulip|lily|orchid|flower|daffodil", "plants/flowers"),
    ("apples|fruit", "food/fruit"),
    ("headphones|xylophone|spicetower|fitnesstower|padlock|graveyard|cctv", ""),
    ("tower", "tower"),
    ("pencil|biro|ballpoint|pen_|textmarker|highlighter", "pen"),
    ("lamppost|lightbulb|lamp|light|chandelier|lantern", "lamp"),
    ("candle|tealight", "candle"),
    ("candy_cane", "candy_cane"),
    ("grave", "gravestone"),
    ("hat$|hat2?$|casquette|chapeau|cap$|helmet", "hat"),
    ("camera", "camera"),
    ("laptop|ibook", "laptop"),
    ("phone|mobile|intercom", "phone"),
    ("mug|coffee_?cup|^cup$|caffe|creamer|expresso|coffeecup", "cup"),
    ("teapot|kettle|boiler", "pot"),
    ("bottle|flacon|soap", "bottle"),
    ("glass$|beerglass", "glass"),
    ("fork|spoon|knife|kitchen_tool", "cutlery"),
    ("scissors|cissors", "scissors"),
    ("glasses", "glasses"),
    ("boot|shoe|sneakers|mocassin|slippers|highheel", "shoe"),
    ("jeans|pants|bottoms|pantalon|shorts", "trousers"),
    ("shirt|jacket|blouson|^suit$|polo", "shirt"),
    ("dress$|^robe$|skirt|jupe", "dress"),
    ("bag$|briefcase|suitcase|backpack|sleepingbag", "bag"),
    ("umbrella", "umbrella"),
    ("clothespin", "clothespin"),
    ("clock|montre|watch", "clock"),
    ("fireman", "fireman"),
    ("^hair|wig", "hair"),
    ("head_|girlface", "head"),
    ("bread$|loaf", "bread"),
    ("snowman|boneco", "snowman"),
    ("dreydl", "dreydl"),
    ("party-horn", "party_horn"),
    ("chick", "chick"),
    ("egg", "egg"),
    ("doll|teddybear|woodtoy", "doll"),
    ("toilet|urinal|bidet|ets_unit", "toilet"),
    ("washbasin|lavatory|sink|bathroom\\d|basin|vanity", "basin"),
    ("bath$|bathtub|jacuzzi|pool$|bath_", "bath"),
    ("shower", "shower"),
    ("armchair|chair|stool|silla|seat|thonet|fotel|chaise|lounge", "chair"),
    ("sofa|couch|futon", "sofa"),
    ("bench|wood_bank|littlebank", "bench"),
    ("bed\\d?$|bed_|crib|babyrockingbed|bedwith", "bed"),
    ("fridge|refrigerator|freezer", "fridge"),
    ("oven|stove|cooker|cooktop|microwave", "stove"),
    ("washing|dryer", "washing_machine"),
    ("fan$", "fan"),
    ("tv|imac|monitor|apple_pc|tablet$", "screen"),
    ("table|desk|biurko", "table"),
    (
        "cabinet|wardrobe|cupboard|drawer|chest|shel[fv]|bookcase|locker|dresser|office_box",
        "cabinet",
    ),
    ("plant|orchid|lily|tulip|cactus|ficus|maceta|bonsai|bamboo|augalas|flower|spati", "plant"),
    ("tatami|carpet|rug|mat$", "carpet"),
    ("door|puerta", "door"),
    ("window", "window"),
    ("railing|fence", "fence"),
    ("hedge", "hedge"),
    ("vase|jar$|pottery", "vase"),
    ("bowl", "bowl"),
    ("plate", "plate"),
    ("rock", "rock"),
    ("radiator", "radiator"),
    ("towel\\d?$", "towel"),
    ("speaker|stereo|mp3|radio", "speaker"),
    ("column", "column"),
)


@dataclass(frozen=True)
class Cutout:
    """One object with transparency around it; `path` is relative to the data folder."""

    path: str
    folder: str
    category: str
    kind: Kind
    split: Split


def is_within(folder: str, root: str) -> bool:
    """Return whether `folder` is `root` or below it."""
    return folder == root or folder.startswith(f"{root}/")


def _plain(folder: str) -> str:
    """Remove a last part such as `/cartoon` or `/toys`, which does not name a class."""
    return re.sub(r"/(cartoon|toys|plastic|drawn)$", "", folder)


def split_of(folder: str) -> Split:
    """Return the split of the objects in a folder."""
    if any(is_within(folder, root) for root in HELD_OUT):
        return "test"
    return "val" if _plain(folder) in VALIDATION else "train"


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def kind_of(folder: str, name: str, *, vector: bool = False) -> Kind:
    """Return whether an object is a photograph or a drawing."""
    key = f"{folder}/{name}"
    drawn = vector or (_matches(key, DRAWINGS) and not _matches(key, PHOTOGRAPHS))
    return "drawing" if drawn else "photo"


def category_of(folder: str, name: str) -> str:
    """Return the category of an object: its folder or, in a mixed folder, its thing."""
    folder = _plain(folder)
    if is_within(folder, "symbols/money"):
        return "symbols/coins"
    if folder == "space/moon":
        return "space/planets"
    if split_of(folder) != "train" or folder not in MIXED_FOLDERS:
        return folder
    lower = name.lower()
    for pattern, thing in THINGS:
        if re.search(pattern, lower):
            # Not the folder: a drawn lamp must not be a distractor of a photographed lamp.
            if thing:
                return thing if "/" in thing or thing == "people" else f"things/{thing}"
            break
    return f"things/{re.sub(r'[-_ ]*[0-9]*$', '', lower)}"


def classify(folder: str, name: str, *, vector: bool = False) -> Cutout | None:
    """Return the entry of the object `name` of `folder`, or None if no split may use it."""
    if _matches(f"{folder}/{name}", EXCLUDED):
        return None
    split, kind = split_of(folder), kind_of(folder, name, vector=vector)
    if split != "train" and kind == "drawing":
        return None  # val and test use photographs only
    path = PurePosixPath("objects", folder, f"{name}.png")
    return Cutout(str(path), folder, category_of(folder, name), kind, split)


def save_catalogue(data_dir: Path, cutouts: Iterable[Cutout]) -> None:
    """Write the catalogue to a data folder."""
    rows = [asdict(cutout) for cutout in sorted(cutouts, key=lambda cutout: cutout.path)]
    target = data_dir / CATALOGUE_NAME
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    temporary.replace(target)


def load_catalogue(data_dir: Path | str) -> list[Cutout]:
    """Read a catalogue and apply the rules again: an old file cannot leak a held-out class.

    Raises:
        FileNotFoundError: If there is no catalogue. Run `fetch.py` first.
    """
    text = (Path(data_dir) / CATALOGUE_NAME).read_text(encoding="utf-8")
    cutouts = []
    for row in json.loads(text):
        old = Cutout(**row)
        vector = old.kind == "drawing"  # the catalogue does not store the file format
        new = classify(old.folder, Path(old.path).stem, vector=vector)
        if new is not None:
            cutouts.append(replace(new, path=old.path))
    return cutouts


def main() -> None:
    """Print a table of the categories."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data folder that fetch.py wrote")
    cutouts = load_catalogue(parser.parse_args().data)
    counts = Counter((cutout.split, cutout.category, cutout.kind) for cutout in cutouts)
    rows = sorted({(split, category) for split, category, _ in counts})
    lines = [f"{'category':32} {'split':6} {'photos':>7} {'drawings':>9}"]
    for split, category in rows:
        photos, drawings = (counts[split, category, kind] for kind in ("photo", "drawing"))
        lines.append(f"{category:32} {split:6} {photos:7} {drawings:9}")
    for split in ("train", "val", "test"):
        photos, drawings = (
            sum(number for key, number in counts.items() if (key[0], key[2]) == (split, kind))
            for kind in ("photo", "drawing")
        )
        lines.append(f"{'total':32} {split:6} {photos:7} {drawings:9}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
