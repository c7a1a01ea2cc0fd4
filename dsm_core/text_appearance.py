"""How does a class look on CT: location, shape, density and enhancement in a few words, for encoders that know words.

After ZePT (Jiang et al. 2023, arXiv:2312.04964) and Malenia (Jiang et al. 2024, arXiv:2410.15744).
Densities and enhancement are those of a portal venous phase.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from dsm_core.classes import ClassInfo, ClassKind


@dataclass(frozen=True)
class Appearance:
    """What a radiologist would say of a class; every part may stand in a sentence after a comma."""

    location: str
    shape: str
    density: str
    enhancement: str

    def __str__(self) -> str:
        return ", ".join(astuple(self))


_SOFT, _BLOOD, _AIR, _BONE = "soft tissue density", "blood density", "air density", "bone density"
_EVEN, _BRIGHT, _NONE, _WALL = "even enhancement", "bright enhancement", "no enhancement", "enhancing wall"

# A side is said before the location: "on the left, beside the spine".
_ORGANS = {
    "spleen": Appearance("in the left upper abdomen under the ribs", "crescent", _SOFT, _EVEN),
    "kidney": Appearance("beside the lumbar spine", "bean with a hilum", _SOFT, _BRIGHT),
    "gallbladder": Appearance("under the right lobe of the liver", "pear with a thin wall", "bile density", _WALL),
    "esophagus": Appearance("behind the heart before the spine", "collapsed tube", _SOFT, _WALL),
    "liver": Appearance("in the right upper abdomen under the diaphragm", "large wedge", _SOFT, _EVEN),
    "stomach": Appearance("in the left upper abdomen before the pancreas", "bag with folds", "fluid and gas", _WALL),
    "aorta": Appearance("left before the spine", "straight round tube", _BLOOD, _BRIGHT),
    "postcava": Appearance("right before the spine", "straight oval tube", _BLOOD, _BRIGHT),
    "portal vein and splenic vein": Appearance("behind the pancreas", "branching tube", _BLOOD, _BRIGHT),
    "pancreas": Appearance("across the upper abdomen", "lobulated band", _SOFT, _EVEN),
    "adrenal gland": Appearance("above the kidney", "thin inverted Y", _SOFT, _EVEN),
    "duodenum": Appearance("around the head of the pancreas", "C shaped tube", "fluid and gas", _WALL),
    "hepatic vessel": Appearance("within the liver", "branching tube", _BLOOD, _BRIGHT),
    "lung": Appearance("in the chest beside the heart", "large cone", _AIR, _NONE),
    "colon": Appearance("around the border of the abdomen", "wide tube with pouches", "stool and gas", _WALL),
    "intestine": Appearance("in the middle of the abdomen", "narrow coiled tube", "fluid and gas", _WALL),
    "rectum": Appearance("before the sacrum", "straight tube", "stool and gas", _WALL),
    "bladder": Appearance("behind the pubic bone", "round bag", "urine density", _WALL),
    "prostate": Appearance("below the bladder", "walnut", _SOFT, _EVEN),
    "head of femur": Appearance("in the hip joint", "ball", _BONE, _NONE),
    "celiac trunk": Appearance("before the aorta above the pancreas", "short branching tube", _BLOOD, _BRIGHT),
    "vertebrae": Appearance("in the middle of the back", "column of blocks", _BONE, _NONE),
    "brainstem": Appearance("in the skull before the cerebellum", "stalk", _SOFT, _NONE),
    "spinal cord": Appearance("within the canal of the spine", "thin cord", _SOFT, _NONE),
    "parotid gland": Appearance("before the ear behind the jaw", "lobulated wedge", "fat and soft tissue", _EVEN),
    "mandible": Appearance("in the lower face", "horseshoe", _BONE, _NONE),
    "larynx": Appearance("in the front of the neck", "short tube of cartilage", "air and soft tissue", _NONE),
}
_LESIONS = {
    "cyst": Appearance("", "round with a sharp border", "water density", _NONE),
    "thrombus": Appearance("", "filling defect in a vessel", _SOFT, "less enhancement than blood"),
    "sarcoma": Appearance("", "large lobulated mass", _SOFT, "uneven enhancement"),
    "target": Appearance("", "treated volume with a margin", _SOFT, "uneven enhancement"),
    "tumor": Appearance("", "irregular mass", "less dense than the organ", "uneven enhancement"),
}
_SIDES = ("right", "left")


def appearance_of(info: ClassInfo) -> Appearance | None:
    """How the class looks; a lesion lies where its host lies. None where nothing is known."""
    if info.kind is ClassKind.ORGAN:
        return _organ(info.name)
    kind = next((kind for kind in _LESIONS if kind in info.name.split()), "tumor")
    host = _organ(info.host or "")
    location = f"in the {info.host} {host.location}" if host else ""
    look = _LESIONS[kind]
    return Appearance(location, look.shape, look.density, look.enhancement) if host else None


def _organ(name: str) -> Appearance | None:
    side, _, rest = name.partition(" ")
    if side in _SIDES and (known := _ORGANS.get(rest)):
        return Appearance(f"on the {side} {known.location}", known.shape, known.density, known.enhancement)
    return _ORGANS.get(name)
