"""What is a class: its name, whether it is an organ or a lesion, and the organ that hosts it.

Classes are identified by name everywhere; nothing in this system holds a hand-typed class index.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ClassKind(StrEnum):
    """An organ (any normal structure) or a lesion (tumour, cyst, thrombus, target volume)."""

    ORGAN = "organ"
    LESION = "lesion"


@dataclass(frozen=True)
class ClassInfo:
    """One class of the label contract, by name.

    Attributes:
        name: lower-case clinical name, the identity of the class.
        kind: organ or lesion.
        host: name of the organ that holds a lesion; None for organs and for lesions without a single host.
        synonyms: other phrases that mean the same class.
    """

    name: str
    kind: ClassKind
    host: str | None = None
    synonyms: tuple[str, ...] = ()


_LESION_WORDS = frozenset(
    "tumor tumour tumors tumours cancer cancers lesion lesions metastasis metastases metastatic cyst cysts cystic "
    "carcinoma carcinomas adenocarcinoma sarcoma lymphoma melanoma adenoma hemangioma malignancy neoplasm neoplasms "
    "thrombus thrombi thrombosis mass masses nodule nodules polyp polyps abscess abscesses hematoma infarct infarction "
    "target".split()
)

# Adjectives that mean one organ.
ORGAN_ADJECTIVES = {
    "renal": "kidney",
    "hepatic": "liver",
    "splenic": "spleen",
    "pancreatic": "pancreas",
    "aortic": "aorta",
    "duodenal": "duodenum",
    "rectal": "rectum",
    "colonic": "colon",
    "colorectal": "colon",
    "gastric": "stomach",
    "pulmonary": "lung",
    "esophageal": "esophagus",
    "oesophageal": "esophagus",
    "intestinal": "intestine",
    "bowel": "intestine",
    "prostatic": "prostate",
    "femoral": "femur",
    "mandibular": "mandible",
    "laryngeal": "larynx",
}

_ORGANS = {
    "spleen": (),
    "right kidney": (),
    "left kidney": (),
    "kidney": ("kidneys", "renal parenchyma"),
    "gallbladder": (),
    "esophagus": ("oesophagus",),
    "liver": ("hepatic parenchyma",),
    "stomach": (),
    "aorta": (),
    "postcava": ("inferior vena cava",),
    "portal vein and splenic vein": (),
    "pancreas": (),
    "right adrenal gland": (),
    "left adrenal gland": (),
    "duodenum": (),
    "hepatic vessel": (),
    "right lung": (),
    "left lung": (),
    "lung": ("lungs",),
    "colon": (),
    "intestine": ("small bowel",),
    "rectum": (),
    "bladder": ("urinary bladder",),
    "prostate": (),
    "left head of femur": ("left femoral head",),
    "right head of femur": ("right femoral head",),
    "celiac trunk": (),
    "vertebrae": ("spine",),
    "brainstem": (),
    "spinal cord": (),
    "right parotid gland": (),
    "left parotid gland": (),
    "mandible": ("lower jaw",),
    "larynx": (),
}

_LESIONS = {
    "spleen tumor": ("spleen", ("splenic metastasis",)),
    "kidney tumor": ("kidney", ("renal cell carcinoma", "renal tumor")),
    "kidney cyst": ("kidney", ("renal cyst",)),
    "gallbladder tumor": ("gallbladder", ()),
    "esophagus tumor": ("esophagus", ()),
    "liver tumor": ("liver", ("hepatic tumor", "liver cancer", "liver metastasis")),
    "stomach tumor": ("stomach", ("gastric tumor",)),
    "aortic tumor": ("aorta", ()),
    "postcava tumor thrombus": ("postcava", ()),
    "portal vein tumor thrombus": ("portal vein and splenic vein", ()),
    "pancreas tumor": ("pancreas", ("pancreatic tumor", "pancreatic cancer")),
    "adrenal tumor": (None, ()),
    "adrenal cyst": (None, ()),
    "duodenal tumor": ("duodenum", ()),
    "hepatic vessel tumor": ("liver", ()),
    "lung tumor": ("lung", ("lung cancer", "lung nodule")),
    "lung cyst": ("lung", ()),
    "colon tumor": ("colon", ("colon cancer",)),
    "small intestinal neoplasm": ("intestine", ()),
    "rectal tumor": ("rectum", ()),
    "radiotherapy target": (None, ("planning target volume", "gross tumor volume")),
    "soft tissue sarcoma": (None, ()),
}

ATLAS: dict[str, ClassInfo] = {
    **{name: ClassInfo(name, ClassKind.ORGAN, None, synonyms) for name, synonyms in _ORGANS.items()},
    **{name: ClassInfo(name, ClassKind.LESION, host, synonyms) for name, (host, synonyms) in _LESIONS.items()},
}


def normalise_name(name: str) -> str:
    """Lower case, single spaces, underscores as spaces, American spelling: the form under which a class is known."""
    return " ".join(name.replace("_", " ").lower().split()).replace("tumour", "tumor")


def describe_class(name: str, kind: ClassKind | str | None = None, host: str | None = None) -> ClassInfo:
    """The class of a name, as the site declares it, else as the atlas knows it, else as its words say.

    A name that holds a lesion word ("tumor", "cyst", ...) is a lesion; its host is the longest organ name inside it,
    by noun, by synonym or by adjective ("splenic abscess": the spleen).

    Raises:
        ValueError: the name is empty or the kind is neither "organ" nor "lesion".
    """
    name = normalise_name(name)
    if not name:
        raise ValueError("a class needs a name; found an empty one")
    known = ATLAS.get(name)
    words = name.split()
    if kind is None:
        kind = known.kind if known else (ClassKind.LESION if _LESION_WORDS & set(words) else ClassKind.ORGAN)
    kind = ClassKind(kind)
    if kind is ClassKind.ORGAN:
        return ClassInfo(name, kind, None, known.synonyms if known else ())
    if host is None:
        host = known.host if known else _host_in(name)
    return ClassInfo(name, kind, normalise_name(host) if host else None, known.synonyms if known else ())


def _host_in(name: str) -> str | None:
    nouns = " ".join(ORGAN_ADJECTIVES.get(word, word) for word in name.split())
    called = {phrase: organ for organ, synonyms in _ORGANS.items() for phrase in (organ, *synonyms)}
    held = [phrase for phrase in called if f" {phrase} " in f" {name} " or f" {phrase} " in f" {nouns} "]
    return called[max(held, key=len)] if held else None
